"""The files that paths, folders, globs and addresses stand for.

What a system hides is no data: names that begin with a dot, and `__MACOSX`. Links are followed, and a file that is
named twice counts once. On a disk, what is there under a name wins over reading the name as a glob.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from exemplar_ray.errors import UsageError, one_line
from exemplar_ray.storage import chained, hub
from exemplar_ray.storage.hub_uri import AccessError, is_on_hub, without_revision
from exemplar_ray.storage.transient import ATTEMPTS, is_transient, patiently

_SHARD = ".parquet"
_MACS = "__MACOSX"
# What file systems call it: the Hub, S3 and the web, Google and Azure, archives; then when it was modified.
_STAMPS = (
    *("sha256", "blob_id", "ETag", "etag", "md5Hash", "CRC"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "modified"),
)
_FOLDER, _FILE = stat.S_IFDIR, stat.S_IFREG


class Listed(NamedTuple):
    """One file, as it was found."""

    uri: str
    """For any process to open it by; a path of the local disk is whole."""
    place: str
    """Where it is, for names: without commits, an archive like a folder."""
    size: int
    """Bytes."""
    stamp: str | None = None
    """What the storage says of the content, without reading it: an ETag, or when it was modified."""


@dataclass
class LeftOut:
    """What was passed over on the way."""

    hidden: list[str] = field(default_factory=list)
    lost_links: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    """Files that were named before, under this or another name."""

    def lines(self) -> list[str]:
        """Say it; nothing where there was nothing."""
        kinds = (
            (self.hidden, "hidden files or folders are left out"),
            (self.lost_links, "links that lead nowhere are left out"),
            (self.again, "files are named again, and counted once"),
        )
        return [f"{len(names)} {what}, such as '{shown(names[0])}'" for names, what in kinds if names]


def shown(name: str) -> str:
    """Return a name that can be printed, whatever bytes it has."""
    return name.encode(errors="backslashreplace").decode()


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is for the system, not for people."""
    return name.startswith(".") or name == _MACS


def refuse_names_that_are_no_text(paths: Iterable[str], what: str) -> None:
    """Refuse names that cannot be written down, as tables and `run.json` do.

    Raises:
        UsageError: a path is not valid UTF-8, or has half a character in it.
    """
    bad = [path for path in paths if not _is_text(path)]
    if bad:
        more = f" ({len(bad)} such names)" if len(bad) > 1 else ""
        raise UsageError(f"{what} '{shown(bad[0])}' has a name that is not UTF-8{more}; rename it, such as with convmv")


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_files(data: Sequence[str], revisions: Mapping[str, str], left_out: LeftOut) -> list[Listed]:
    """List the files that some URIs stand for, each once, sorted by place.

    Args:
        data: paths or URIs of any file system that fsspec opens. A folder stands for the `*.parquet` directly in it.
        revisions: see `hub.resolve_revisions`.
        left_out: gets what is passed over.

    Raises:
        UsageError: nothing matches, or a file system cannot be reached, or a file is in the data at two revisions.
    """
    found: dict[str, Listed] = {}
    for uri in data:
        files = _expand(hub.pinned(uri, revisions), left_out)
        if not files:
            raise UsageError(f"no parquet shard matches '{shown(uri)}'")
        for file in files:
            known = found.setdefault(file.place, file)
            if known is not file:
                if known.uri != file.uri and is_on_hub(file.uri):
                    raise UsageError(f"'{file.place}' is in the data at two revisions; give one")
                left_out.again.append(file.place)
    refuse_names_that_are_no_text(found, "shard")
    # Of several names of one file its own is kept, or else the first.
    themselves = _files_themselves(place for place, file in found.items() if file.uri == place and os.path.isabs(place))
    names: dict[str, str] = {}
    for place in sorted(themselves, key=lambda place: (themselves[place] != place, place)):
        if names.setdefault(themselves[place], place) != place:
            left_out.again.append(place)
            del found[place]
    return [found[place] for place in sorted(found)]


def _on_disk(path: str) -> Listed:
    there = os.stat(path)
    return Listed(path, path, there.st_size, f"modified {there.st_mtime_ns}")


def _files_themselves(paths: Iterable[str]) -> dict[str, str]:
    """Return {path: the same without links on the way}, asking of every folder once."""
    folders: dict[str, str] = {}
    files = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        there = os.path.join(folders[folder], name)
        files[path] = os.path.realpath(there) if os.path.islink(there) else there
    return files


def _expand(uri: str, left_out: LeftOut) -> list[Listed]:
    """Return the files that one URI, folder or glob stands for."""
    chained.refuse_hub_inside(uri)
    try:
        # The Hub's client is patient itself.
        return patiently(lambda: _listed(uri, left_out), 1 if is_on_hub(uri) else ATTEMPTS)
    except FileNotFoundError:
        return []
    except AccessError as error:
        raise UsageError(str(error)) from error
    except PermissionError as error:
        raise UsageError(
            f"cannot list '{shown(uri)}': access denied ({one_line(error)}); check permissions or credentials"
        ) from error
    except Exception as error:
        if not isinstance(error, (OSError, ValueError, ImportError, TypeError)) and not is_transient(error):
            raise
        raise UsageError(f"cannot list '{shown(uri)}': {one_line(error)}") from error


def _listed(uri: str, left_out: LeftOut) -> list[Listed]:
    # An attempt that fails half-way leaves nothing behind.
    passed_over = LeftOut()
    fs, path = hub.file_system(uri)
    if isinstance(fs, LocalFileSystem):
        listed = [_on_disk(file) for file in dict.fromkeys(_local(path, passed_over))]
    else:
        fs.invalidate_cache()
        try:
            listed = [_remote(uri, fs, info) for info in _remote_files(fs, path, passed_over)]
        except FileNotFoundError as error:
            # fsspec's web client says so of whatever went wrong.
            if error.__cause__ is not None and is_transient(error.__cause__):
                raise ConnectionError(one_line(error.__cause__)) from error
            raise
    left_out.hidden += passed_over.hidden
    left_out.lost_links += passed_over.lost_links
    return listed


# A disk -----------------------------------------------------------------------------------


def _local(path: str, left_out: LeftOut) -> Iterator[str]:
    """Yield the files that a whole path stands for."""
    kind = _kind(path)
    if kind == _FOLDER:
        yield from _matching(path, ["*" + _SHARD], left_out)
    elif kind == _FILE:
        yield path
    elif glob.has_magic(path):
        yield from _matching("/", [part for part in path.split("/") if part], left_out)


def _matching(folder: str, parts: list[str], left_out: LeftOut, way: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the files below a folder whose names match the parts of a glob, one for each level.

    Args:
        way: the folders on the way down through `**`, themselves: a link back to one of them is not followed.
    """
    part, rest = parts[0], parts[1:]
    literal = os.path.join(folder, part)
    if not glob.has_magic(part) or _kind(literal) is not None:
        if rest and _kind(literal) == _FOLDER:
            yield from _matching(literal, rest, left_out)
        elif not rest and _kind(literal) == _FILE:
            yield literal
        return
    deep = part == "**"
    if deep and rest:
        yield from _matching(folder, rest, left_out, way)
    pattern = re.compile(fnmatch.translate(part))
    here = way | {os.path.realpath(folder)}
    for entry in _visible(folder, left_out, None if part.startswith(".") else pattern):
        if not pattern.match(entry.name):
            continue
        if not rest and entry.is_file():
            yield entry.path
        elif entry.is_dir() and deep and not (entry.is_symlink() and os.path.realpath(entry.path) in here):
            yield from _matching(entry.path, parts, left_out, here)
        elif entry.is_dir() and rest and not deep:
            yield from _matching(entry.path, rest, left_out)


def _kind(path: str) -> int | None:
    """Return what is there, links followed: `_FOLDER`, `_FILE` or another format of `stat`; None if nothing is.

    os.path would say so, too, where it could not look.
    """
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise


def _visible(folder: str, left_out: LeftOut, asked: re.Pattern[str] | None) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder, by name, without what is hidden and links that lead nowhere.

    Args:
        asked: what of these is told as left out; None where hidden ones are asked for.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if asked is not None and is_hidden(entry.name):
                if asked.match(entry.name):
                    left_out.hidden.append(entry.path)
            elif entry.is_symlink() and _kind(entry.path) is None:
                if asked is None or asked.match(entry.name):
                    left_out.lost_links.append(entry.path)
            else:
                yield entry


def files_below(folder: str, left_out: LeftOut) -> Iterator[str]:
    """Yield every file in a folder and the folders in it, links followed, but none back to where they come from."""
    yield from _matching(folder, ["**"], left_out)


# Other file systems -----------------------------------------------------------------------


def _remote_files(fs: Any, path: str, left_out: LeftOut) -> Iterator[dict[str, Any]]:
    """Yield fsspec's descriptions of the files that a path stands for."""
    root, parts = _glob_of(fs, path)
    if not parts and _is_folder(fs, path):
        parts = ["*" + _SHARD]
    if not parts:
        yield fs.info(path)
        return
    asked = any(map(is_hidden, parts))
    pattern = "/".join([*([glob.escape(root)] if root else []), *parts])
    for info in fs.glob(pattern, detail=True).values():
        if info["type"] != "file":
            continue
        below = info["name"].removeprefix(root).strip("/")
        if not asked and any(map(is_hidden, below.split("/"))):
            left_out.hidden.append(info["name"])
        else:
            yield info


def _is_folder(fs: Any, path: str) -> bool:
    """Whether there is a folder; unlike fsspec's `isdir`, does not say no where it could not look."""
    if _is_web(fs):
        # The web has no folders, but pages with links; to look for them in a shard is to download it.
        return not path.endswith(_SHARD) and fs.isdir(path)
    return fs.info(path)["type"] == "directory"


def _glob_of(fs: Any, path: str) -> tuple[str, list[str]]:
    """Return the folder below which a glob matches, and the glob's parts, one for each level; no parts if it is none.

    Stars are stars. Brackets and question marks may stand in names, too: what is there under such a name is taken.
    """
    magic = re.compile(r"[*\[]" if _is_web(fs) else r"[*?\[]")
    fixed: list[str] = []
    parts = path.split("/")
    for i, part in enumerate(parts):
        if magic.search(part) and ("*" in part or not _is_there(fs, "/".join([*fixed, part]))):
            return "/".join(fixed), parts[i:]
        fixed.append(part)
    return path.rstrip("/"), []


def _is_there(fs: Any, path: str) -> bool:
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


def _is_web(fs: Any) -> bool:
    return "http" in (fs.protocol if isinstance(fs.protocol, (list, tuple)) else (fs.protocol,))


def _remote(uri: str, fs: Any, info: Mapping[str, Any]) -> Listed:
    """Return a file by an address that others can open."""
    name, size = info["name"], info.get("size")
    if size is None:
        size = fs.info(name).get("size")
    if size is None:
        raise OSError(f"the server does not say how large '{name}' is; copy the files to a disk or an object store")
    if chained.is_chained(uri):
        address = chained.address_of(uri, name)
        return Listed(address, chained.place_of(address), size, _stamp(info))
    address = fs.unstrip_protocol(name)
    return Listed(address, without_revision(address), size, _stamp(info))


def _stamp(info: Mapping[str, Any]) -> str | None:
    """Return what tells of another content, of what fsspec's file systems say of a file; the surest that there is."""
    of_large_files = info.get("lfs") or {}
    for name in _STAMPS:
        value = of_large_files.get(name) if name == "sha256" else info.get(name)
        if value is not None and value != "":
            return f"{name} {value}".replace('"', "")
    return None
