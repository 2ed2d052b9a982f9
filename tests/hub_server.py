"""A stand-in for the Hugging Face Hub: the endpoints that huggingface_hub reads and writes data sets through, and reads
models (under `models` in place of `datasets`, files under neither).

    info     GET /api/datasets/ORG/NAME[/revision/REVISION]      what it is, and its commit
    tree     GET /api/datasets/ORG/NAME/tree/REVISION[/FOLDER]   a folder, a page at a time
    resolve  GET /datasets/ORG/NAME/resolve/REVISION/FILE        a file, or the way to it
    content  GET /content/...                                    a large file, at another host's signed address

    validate   POST /api/validate-yaml                           whether it takes a card
    create     POST /api/repos/create                            a data set without files
    preupload  POST /api/datasets/ORG/NAME/preupload/REVISION    which files are to be uploaded as large ones
    batch      POST /datasets/ORG/NAME.git/info/lfs/objects/batch  and where to
    store      PUT /store/...                                    a large file, at another host's signed address
    commit     POST /api/datasets/ORG/NAME/commit/REVISION       everything else, and which large files go where

Statuses, headers and error codes are the Hub's, also where they are odd: who has no token is told 401 for what does
not exist; the files of a gated data set are listed to everybody.
"""

import base64
import hashlib
import json
import os
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml
from stand_in import Server, serving

UNAVAILABLE, CUT = "503", "body cut short"

# The Hub's are of 1,000.
_ENTRIES_A_PAGE = 2


class Request(NamedTuple):
    """One request: its kind, as above, or other; its path and query; and whose it is."""

    kind: str
    path: str
    token: str | None


class Fault(NamedTuple):
    """What befalls the next request of a kind, by somebody or anybody."""

    kind: str
    what: str
    token: str | None = ...

    def befalls(self, request):
        """Whether it is this request's."""
        return self.kind == request.kind and self.token in (..., request.token)


@dataclass
class Repository:
    """A data set or a model: its commits, its branches, and who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    """Tokens that a private or gated data set is open to."""

    def commit(self, files, branch="main"):
        """Move a branch to a new commit that has these files: {path: content}; return its hash."""
        listing = sorted((path, hashlib.sha256(content).hexdigest()) for path, content in files.items())
        commit = hashlib.sha1(json.dumps([len(self.commits), listing]).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def upload(self, folder, under="", branch="main"):
        """Commit a local folder."""
        files = {file.relative_to(folder).as_posix(): file for file in Path(folder).rglob("*") if file.is_file()}
        return self.commit({f"{under}{path}": file.read_bytes() for path, file in files.items()}, branch)


@dataclass
class Hub:
    """What the stand-in holds, what it is to do wrong, and what it was asked."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    """Those it knows."""
    writers: dict[str, set[str]] = field(default_factory=dict)
    """Tokens that may write, and under which users' and organisations' names."""
    licences: set[str] = field(default_factory=set)
    """What a card's `license` may be."""
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files that were uploaded, by SHA-256."""
    faults: list[Fault] = field(default_factory=list)
    """Each befalls one request."""
    requests: list[Request] = field(default_factory=list)
    on_request: object = None
    """Called with a request before it is answered."""
    uses: int | None = None
    """How often a signed address of a large file's content lets one in; None for any number."""
    signed: list[int] = field(default_factory=list)
    """How often each has been used."""

    def __post_init__(self):
        self._lock = threading.Lock()

    def environment(self, home, token=None):
        """What processes need in their environment to find the Hub; `home` keeps them from this user's own token."""
        variables = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        return {**variables, "HF_ENDPOINT": self.url, "HF_HOME": str(home), **({"HF_TOKEN": token} if token else {})}

    def asked(self, kind, token=...):
        """The paths of all requests of a kind so far, of one token or of all."""
        return [request.path for request in self.requests if request.kind == kind and token in (..., request.token)]

    def sign(self):
        """Make a signature for an address."""
        with self._lock:
            self.signed.append(0)
            return len(self.signed) - 1

    def lets_in(self, signature):
        """Use it once more."""
        with self._lock:
            self.signed[signature] += 1
            return self.uses is None or self.signed[signature] <= self.uses

    def noted(self, request):
        """Remember a request, and say what is to befall it."""
        with self._lock:
            self.requests.append(request)
            if self.on_request:
                self.on_request(request)
            for fault in self.faults:
                if fault.befalls(request):
                    self.faults.remove(fault)
                    return fault.what
            return None


@contextmanager
def hub_server():
    """Run a Hub without data sets."""
    server = Server(_Handler)
    server.hub = Hub(server.url)
    with serving(server):
        yield server.hub


class _RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def do_GET(self):
        self._route(_ENDPOINTS)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self):
        self._route(_WRITING_ENDPOINTS)

    do_PUT = do_POST  # noqa: N815

    def _route(self, endpoints):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        for kind, pattern, answer in endpoints:
            if match := re.fullmatch(pattern, path):
                self._answer(kind, answer, match.groupdict(default=""))
                return
        self._answer("other", _Handler.unknown, {})

    def _answer(self, kind, answer, parts):
        authorization = self.headers.get("Authorization")
        self.token = authorization.removeprefix("Bearer ") if authorization else None
        self.fault = self.server.hub.noted(Request(kind, self.path, self.token))
        try:
            if self.fault == UNAVAILABLE:
                raise _RefusedError(503, "Service Unavailable")
            status, headers, content = answer(self, **{name: unquote(part) for name, part in parts.items()})
        except _RefusedError as refused:
            content = json.dumps({"error": str(refused)}).encode()
            status, headers = refused.status, {"Content-Type": "application/json", **refused.headers}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.fault == CUT:
            content = content[: len(content) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(content)

    def _repository(self, name):
        """Find a data set, as far as the one who asks may know of it."""
        hub = self.server.hub
        if self.token is not None and self.token not in hub.tokens:
            raise _RefusedError(401, "Invalid credentials in Authorization header")
        repository = hub.repositories.get(name)
        if repository is None or (repository.private and self.token not in repository.readers):
            if self.token is None:
                raise _RefusedError(401, "Invalid username or password.")
            raise _RefusedError(404, "Repository not found", "RepoNotFound")
        return repository

    def _commit(self, repository, revision):
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise _RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def unknown(self):
        raise _RefusedError(404, "Not Found")

    def info(self, name, revision):
        repository = self._repository(name)
        commit = self._commit(repository, revision or "main")
        gated = "auto" if repository.gated else False
        return _json({"id": name, "sha": commit, "private": repository.private, "gated": gated, "siblings": []})

    def tree(self, name, revision, folder):
        repository = self._repository(name)
        files = repository.commits[self._commit(repository, revision)]
        query = parse_qs(urlsplit(self.path).query)
        entries = _entries(files, f"{folder}/" if folder else "", query["recursive"] == ["true"])
        if folder and not entries:
            raise _RefusedError(404, f"{folder} does not exist on '{revision}'", "EntryNotFound")
        start = int(query.get("cursor", ["0"])[0])
        status, headers, content = _json(entries[start : start + _ENTRIES_A_PAGE])
        if start + _ENTRIES_A_PAGE < len(entries):
            rest = f"recursive={query['recursive'][0]}&expand=false&cursor={start + _ENTRIES_A_PAGE}"
            headers["Link"] = f'<{self.server.hub.url}{urlsplit(self.path).path}?{rest}>; rel="next"'
        return status, headers, content

    def resolve(self, name, revision, file):
        repository = self._repository(name)
        if repository.gated and self.token not in repository.readers:
            # Whoever asks is told so, and with which status depends on whether they are known.
            raise _RefusedError(401 if self.token is None else 403, f"Access to {name} is restricted.", "GatedRepo")
        commit = self._commit(repository, revision)
        content = repository.commits[commit].get(file)
        if content is None:
            raise _RefusedError(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not _is_large(file):
            return self._range(content, {**headers, "ETag": f'"{_blob(content)}"'})
        # Another host than the Hub's: the token must not follow.
        place = f"http://localhost:{self.server.server_address[1]}/content/{quote(name)}/{commit}/{quote(file)}"
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return 302, {**headers, **linked, "Location": f"{place}?signature={self.server.hub.sign()}"}, b""

    def content(self, name, commit, file):
        assert self.token is None, "a token was sent to a content server"
        if not self.server.hub.lets_in(int(parse_qs(urlsplit(self.path).query)["signature"][0])):
            raise _RefusedError(403, "Request has expired")
        content = self.server.hub.repositories[name].commits[commit][file]
        return self._range(content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    def validate(self):
        asked = json.loads(self.body)
        head = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)[1])
        errors = [] if head["license"] in self.server.hub.licences else [{"message": '"license" must be one of ...'}]
        status = 400 if errors else 200
        if self.headers.get("Accept") == "text/plain":
            return (
                status,
                {"Content-Type": "text/plain"},
                "".join(f"- Error: {e['message']}\n" for e in errors).encode(),
            )
        return status, *_json({"errors": errors, "warnings": []})[1:]

    def create(self):
        asked = json.loads(self.body)
        if asked["organization"] not in self._writer():
            raise _RefusedError(403, f"You don't have the rights to create a dataset under {asked['organization']}")
        assert asked["type"] == "dataset"
        name = f"{asked['organization']}/{asked['name']}"
        repository = Repository(private=asked.get("visibility") == "private", readers={self.token})
        repository.commit({".gitattributes": b"*.parquet filter=lfs\n"})
        self.server.hub.repositories[name] = repository
        return _json({"url": f"{self.server.hub.url}/datasets/{name}"})

    def preupload(self, name, revision):
        self._writable(name)
        modes = {one["path"]: "lfs" if _is_large(one["path"]) else "regular" for one in json.loads(self.body)["files"]}
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        return _json({"files": files})

    def batch(self, name):
        self._writable(name)
        store = f"http://localhost:{self.server.server_address[1]}/store"
        objects = json.loads(self.body)["objects"]
        actions = [{"upload": {"href": f"{store}/{one['oid']}?signature=valid"}} for one in objects]
        return _json({"objects": [{**one, "actions": how} for one, how in zip(objects, actions, strict=True)]})

    def store(self, oid):
        assert self.token is None, "a token was sent to a content server"
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.hub.stored[oid] = self.body
        return 200, {}, b""

    def commit(self, name, revision):
        repository = self._writable(name)
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        parent = self._commit(repository, revision)
        if header["value"].get("parentCommit", parent) != parent:
            raise _RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[parent])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.hub.stored[value["oid"]]
            else:
                assert operation["key"] == "deletedFile"
                del files[value["path"]]
        commit = repository.commit(files, revision)
        url = f"{self.server.hub.url}/datasets/{name}/commit/{commit}"
        return _json({"success": True, "commitOid": commit, "commitUrl": url})

    def _writer(self):
        """Under which names the one who asks may write."""
        if self.token not in self.server.hub.tokens:
            raise _RefusedError(401, "Invalid credentials in Authorization header")
        return self.server.hub.writers.get(self.token, ())

    def _writable(self, name):
        repository = self._repository(name)
        if name.split("/")[0] not in self._writer():
            raise _RefusedError(403, f"Forbidden: you must use a token with write access to {name}")
        return repository

    def _range(self, content, headers):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return 200, headers, content
        first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        if first > last:
            raise _RefusedError(416, "Requested Range Not Satisfiable")
        return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first : last + 1]


_NAME = "(?P<name>[^/]+/[^/]+)"
_ENDPOINTS = [
    ("tree", f"/api/(?:datasets|models)/{_NAME}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    ("info", f"/api/(?:datasets|models)/{_NAME}(?:/revision/(?P<revision>[^/]+))?", _Handler.info),
    ("resolve", f"/(?:datasets/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
    ("content", f"/content/{_NAME}/(?P<commit>[^/]+)/(?P<file>.+)", _Handler.content),
]

_WRITING_ENDPOINTS = [
    ("validate", "/api/validate-yaml", _Handler.validate),
    ("create", "/api/repos/create", _Handler.create),
    ("preupload", f"/api/datasets/{_NAME}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("batch", f"/datasets/{_NAME}.git/info/lfs/objects/batch", _Handler.batch),
    ("store", "/store/(?P<oid>[^/]+)", _Handler.store),
    ("commit", f"/api/datasets/{_NAME}/commit/(?P<revision>[^/]+)", _Handler.commit),
]


def _json(values):
    return 200, {"Content-Type": "application/json"}, json.dumps(values).encode()


def _entries(files, prefix, recursive):
    """The files and folders below a folder, as the Hub describes them."""
    entries = {}
    for path, content in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        folders = path[len(prefix) :].split("/")[:-1]
        for depth in range(len(folders) if recursive else min(len(folders), 1)):
            folder = prefix + "/".join(folders[: depth + 1])
            entries[folder] = {"type": "directory", "path": folder, "oid": _blob(folder.encode()), "size": 0}
        if recursive or not folders:
            entry = {"type": "file", "path": path, "oid": _blob(content), "size": len(content)}
            if _is_large(path):
                sha256 = hashlib.sha256(content).hexdigest()
                entry |= {"lfs": {"oid": sha256, "size": len(content), "pointerSize": 132}, "xetHash": sha256}
            entries[path] = entry
    return list(entries.values())


def _blob(content):
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_large(path):
    """Whether the Hub keeps a file outside of git."""
    return path.endswith((".parquet", ".safetensors"))
