"""Files on the Hugging Face Hub, and errors that say how to get access.

`HubFileSystem` is huggingface_hub's own, but for four things. It opens a file of known size without listing its
folder. It keeps the address that the Hub sends it to. It asks again where the client does not. Its errors are one line.

The library's own file asks whether its path is a folder before it reads the first bytes, and lists the folder for that.
Every process that reads shards would list it once, a request for each 1,000 files:

    a process reads           the library's own                  HubFile
    64 files                  1 info, 1 tree, 64 resolve         1 info, 64 resolve
    1,500 files               1 info, 2 tree, 1,500 resolve      1 info, 1,500 resolve

The driver has listed the folder before, so these answers say nothing new. Requests to list have a rate limit of their
own, lower than that of reading. Workers without a token share it behind one address.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from fsspec.spec import AbstractBufferedFile
from huggingface_hub import HfApi, HfFileSystem, HfFileSystemFile, constants, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status, http_backoff

from exemplar_ray.errors import UsageError
from exemplar_ray.storage.hub_uri import PROTOCOL, AccessError, NoAnswerError, parse

Answer = TypeVar("Answer")

_KINDS = {"dataset": "data set"}
# Between attempts at a question that huggingface_hub asks only once.
_PAUSES = (1.0, 2.0)
_INVALID_TOKEN = "Invalid credentials in Authorization header"
_TOO_EARLY = (408, 429)
# What a store answers to an address that it has forgotten.
_NOT_KNOWN_ANY_MORE = (400, 401, 403, 404, 410)


def commit_of(repository: str) -> str:
    """Look up the commit that a repository is at, given as a URI with a revision.

    Raises:
        UsageError: there is no such repository or revision, or no access to it, or no Hub.
    """
    place = parse(repository)

    def ask() -> str:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        info = HfApi().repo_info(place.id, revision=place.revision, repo_type=place.type, timeout=timeout)
        if info.sha is None:
            raise ValueError(f"the Hugging Face Hub does not say which commit '{repository}' is at")
        return info.sha

    try:
        return _asked_patiently(repository, ask)
    except (OSError, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from error


class HubFileSystem(HfFileSystem):
    """huggingface_hub's file system with one-line errors, all of them OSErrors.

    Raises:
        AccessError: a repository or revision is not there, or not for us.
        FileNotFoundError: a file is not there.
        NoAnswerError: the Hub cannot be reached, or cannot answer now.
    """

    def resolve_path(self, path: str, revision: str | None = None) -> Any:
        """Take a path apart; asks the Hub whether the repository is there, once for each."""
        resolve = super().resolve_path
        return _asked_patiently(path, lambda: resolve(path, revision))

    def info(self, path: str, *more: Any, **options: Any) -> dict[str, Any]:
        """Describe a file or folder; lists the folder that it is in."""
        with explained(path):
            return super().info(path, *more, **options)

    def ls(self, path: str, *more: Any, **options: Any) -> list[Any]:
        """List a folder."""
        with explained(path):
            return super().ls(path, *more, **options)

    def exists(self, path: str, **options: Any) -> bool:
        """Whether a file or folder is there; unlike the library's, does not say no where the Hub says nothing."""
        try:
            self.info(path, **options)
        except FileNotFoundError:
            return False
        return True

    def find(self, path: str, *more: Any, **options: Any) -> Any:
        """List a folder and those in it."""
        with explained(path):
            return super().find(path, *more, **options)

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, revision: str | None = None, **options: Any
    ) -> HubFile:
        return HubFile(self, path, revision, mode=mode, block_size=block_size, **options)


class HubFile(HfFileSystemFile):
    """A file that is read range by range. If it is opened with its `size`, nothing is asked of the Hub but bytes.

    Large files are in a store, whose address the Hub tells. It is kept: the Hub counts who asks, and how often. After a
    while the store does not know it any more.
    """

    read = AbstractBufferedFile.read
    _in_store: str | None = None

    def url(self) -> str:
        """Return where the bytes are; unlike the file system's, without finding out whether this is a folder."""
        uri = parse(PROTOCOL + self.path)
        if uri.is_bucket:
            return super().url()
        return hf_hub_url(
            uri.id, uri.path_in_repo, repo_type=uri.type, revision=uri.revision, endpoint=self.fs.endpoint
        )

    def _fetch_range(self, start: int, end: int) -> bytes:
        with explained(self.path):
            if self._in_store is not None:
                # A signed address is what lets us in; a token must not go there.
                answer = self._get(self._in_store, start, end, {})
                if answer.status_code not in _NOT_KNOWN_ANY_MORE:
                    hf_raise_for_status(answer)
                    return answer.content
            url = self.url()
            answer = self._get(url, start, end, self.fs._api._build_hf_headers())
            hf_raise_for_status(answer)
            came_from = str(answer.url)
            self._in_store = came_from if urlsplit(came_from).netloc != urlsplit(url).netloc else None
            return answer.content

    @staticmethod
    def _get(url: str, start: int, end: int, headers: dict[str, str]) -> httpx2.Response:
        asked = {**headers, "range": f"bytes={start}-{end - 1}"}
        return http_backoff("GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _asked_patiently(path: str, ask: Callable[[], Answer]) -> Answer:
    """Ask for a repository; the client tries again to list and to download, but not this."""
    for pause in _PAUSES:
        try:
            with explained(path):
                return ask()
        except NoAnswerError:
            time.sleep(pause)
    with explained(path):
        return ask()


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn huggingface_hub's errors about a path or URI into OSErrors of one line."""
    try:
        yield
    except FileNotFoundError as error:
        # The file system says so, too, where a repository is not there; why is in the cause.
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _explanation(error.__cause__, path) from error
        raise
    except HfHubHTTPError as error:
        raise _explanation(error, path) from error
    except httpx2.HTTPError as error:
        raise NoAnswerError(
            f"no answer from the Hugging Face Hub about '{path}' ({type(error).__name__}: {error})"
        ) from error


def _explanation(error: HfHubHTTPError, path: str) -> OSError:
    """Say what an answer of the Hub means, and what to do about it."""
    place = parse("hf://" + path.removeprefix("hf://"))
    name = f"{_KINDS.get(place.type, place.type)} '{place.id}'"
    page = replace(place, revision=None, path_in_repo="").to_url()
    request, status = error.response.request, error.response.status_code
    said = " ".join((error.server_message or "").split())
    host = socket.gethostname()
    sent = "authorization" in request.headers
    token = f"the token on {host} does not open it" if sent else f"there is no token on {host}"
    # What a content server that the Hub sent us to says is not about access: its addresses are good for a while only.
    from_elsewhere = request.url.host != urlsplit(constants.ENDPOINT).hostname
    if status >= 500 or status in _TOO_EARLY or from_elsewhere:
        return NoAnswerError(f"the Hugging Face Hub answered {status} when asked for '{path}'")
    if isinstance(error, GatedRepoError):
        return AccessError(
            f"{name} is gated: accept its terms on {page}, and log in with hf auth login or set HF_TOKEN ({token})"
        )
    if isinstance(error, RevisionNotFoundError):
        return AccessError(f"{name} has no revision '{place.revision}'; see {page}/tree/main for those it has")
    if isinstance(error, EntryNotFoundError):
        return FileNotFoundError(f"'{path}' is not there")
    if _INVALID_TOKEN in said:
        return AccessError(
            f"the Hugging Face Hub does not know the token on {host}; set HF_TOKEN to a valid one, or log in anew "
            "with hf auth login"
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return AccessError(
            f"{name} is not on the Hugging Face Hub, or it is private: check the name at {page}; "
            f"if it is private, set HF_TOKEN to a token that may read it ({token})"
        )
    return AccessError(
        f"the Hugging Face Hub refuses {name} with {status}: {said or 'it does not say why'}; see {page}"
    )
