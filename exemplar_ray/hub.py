"""The Hugging Face Hub as a place of data: commits instead of branches, errors that say how to get access.

A branch moves while a run goes on. Its commit is therefore looked up once, on the driver, and every URI that goes
to a task names the commit. `HubFileSystem` is huggingface_hub's own, but for three things: it opens a file of known
size without listing its folder, it asks again where the client does not, and its errors are one line.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
import httpx2
from fsspec.spec import AbstractBufferedFile
from huggingface_hub import HfApi, HfFileSystem, HfFileSystemFile, constants, hf_hub_url, parse_hf_uri
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath

from exemplar_ray.errors import UsageError

Answer = TypeVar("Answer")

_PROTOCOL = "hf://"
_KINDS = {"dataset": "data set"}
# Between attempts at a question that huggingface_hub asks only once.
_PAUSES = (1.0, 2.0)
_INVALID_TOKEN = "Invalid credentials in Authorization header"
_TOO_EARLY = (408, 429)


class AccessError(PermissionError):
    """Something on the Hub is not to be had, and trying again will not help; the message says what would."""


class NoAnswerError(ConnectionError):
    """The Hub cannot be reached, or cannot answer now; trying again may help."""


# Places -----------------------------------------------------------------------------------


def is_on_hub(uri: str) -> bool:
    """Whether a URI is one of the Hub."""
    return uri.startswith(_PROTOCOL)


def file_system(uri: str) -> tuple[Any, str]:
    """Return a URI's file system and the path in it, as `fsspec.url_to_fs` does."""
    return (HubFileSystem(), uri.removeprefix(_PROTOCOL)) if is_on_hub(uri) else fsspec.url_to_fs(uri)


def resolve_revisions(uris: Sequence[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Look up the commits that the repositories of some URIs are at.

    Args:
        uris: files, folders or globs; those that are not in a repository on the Hub are passed over.
        known: what an earlier call returned: what is in it is not looked up again.

    Returns:
        {"hf://datasets/ORG/NAME@REVISION": commit}; without a revision in the URI it is `main`.

    Raises:
        UsageError: there is no such repository or revision, or no access to it, or no Hub.
    """
    commits = {}
    for uri in uris:
        if (repository := _repository(uri)) is not None and repository not in commits:
            commits[repository] = (known or {}).get(repository) or _commit(repository)
    return commits


def pinned(uri: str, revisions: Mapping[str, str]) -> str:
    """Return a URI that names the commit of its repository, as `resolve_revisions` found it."""
    repository = _repository(uri)
    return uri if repository is None else replace(_parse(uri), revision=revisions[repository]).to_uri()


def without_revision(uri: str) -> str:
    """Return what stays of a URI whatever the commit.

    >>> without_revision("hf://datasets/org/name@v1/data/train.parquet")
    'hf://datasets/org/name/data/train.parquet'
    >>> without_revision("s3://bucket/train.parquet")
    's3://bucket/train.parquet'
    """
    return uri if _repository(uri) is None else replace(_parse(uri), revision=None).to_uri()


def refuse_writing(uri: str) -> None:
    """Refuse to write to the Hub.

    Raises:
        UsageError: the URI is one of the Hub.
    """
    if is_on_hub(uri):
        raise UsageError(
            f"'{uri}' is on the Hugging Face Hub, where a run folder can be read but not written: in a repository "
            "every file would be a commit, and commits race and are rate limited; write to a disk or an object store "
            "(--out), and put the finished run on the Hub with exemplar-ray publish"
        )


def _parse(uri: str) -> Any:
    try:
        return parse_hf_uri(uri)
    except ValueError as error:
        raise UsageError(" ".join(str(error).split())) from error


def _repository(uri: str) -> str | None:
    """Return the URI of the repository and revision that a URI is in; None if there are no revisions there."""
    if not is_on_hub(uri) or (place := _parse(uri)).is_bucket:
        return None
    return replace(place, revision=place.revision or constants.DEFAULT_REVISION, path_in_repo="").to_uri()


def _commit(repository: str) -> str:
    place = _parse(repository)

    def ask() -> str:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        return HfApi().repo_info(place.id, revision=place.revision, repo_type=place.type, timeout=timeout).sha

    try:
        return _asked_patiently(repository, ask)
    except (OSError, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from error


# Files ------------------------------------------------------------------------------------


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

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Describe a file or folder; lists the folder that it is in."""
        with _explained(path):
            return super().info(path, **options)

    def ls(self, path: str, **options: Any) -> list[Any]:
        """List a folder."""
        with _explained(path):
            return super().ls(path, **options)

    def exists(self, path: str, **options: Any) -> bool:
        """Whether a file or folder is there; unlike the library's, does not say no where the Hub says nothing."""
        try:
            self.info(path, **options)
        except FileNotFoundError:
            return False
        return True

    def find(self, path: str, **options: Any) -> Any:
        """List a folder and those in it."""
        with _explained(path):
            return super().find(path, **options)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> HubFile:
        return HubFile(self, path, mode=mode, **options)


class HubFile(HfFileSystemFile):
    """A file that is read range by range. If it is opened with its `size`, nothing is asked of the Hub but bytes."""

    read = AbstractBufferedFile.read

    def url(self) -> str:
        """Return where the bytes are; unlike the file system's, without finding out whether this is a folder."""
        place = self.resolved_path
        if not isinstance(place, HfFileSystemResolvedRepositoryPath):
            return super().url()  # in a bucket
        return hf_hub_url(
            place.repo_id,
            place.path_in_repo,
            repo_type=place.repo_type,
            revision=place.revision,
            endpoint=self.fs.endpoint,
        )

    def _fetch_range(self, start: int, end: int) -> bytes:
        with _explained(self.path):
            return super()._fetch_range(start, end)


# Errors -----------------------------------------------------------------------------------


def _asked_patiently(path: str, ask: Callable[[], Answer]) -> Answer:
    """Ask for a repository; the client tries again to list and to download, but not this."""
    for pause in _PAUSES:
        try:
            with _explained(path):
                return ask()
        except NoAnswerError:
            time.sleep(pause)
    with _explained(path):
        return ask()


@contextmanager
def _explained(path: str) -> Iterator[None]:
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
    except OfflineModeIsEnabled as error:
        raise AccessError(" ".join(str(error).split())) from error
    except httpx2.HTTPError as error:
        raise NoAnswerError(
            f"no answer from the Hugging Face Hub about '{path}' ({type(error).__name__}: {error})"
        ) from error


def _explanation(error: HfHubHTTPError, path: str) -> OSError:
    """Say what an answer of the Hub means, and what to do about it."""
    place = _parse(_PROTOCOL + path.removeprefix(_PROTOCOL))
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
        return AccessError(f"{name} is gated: accept its terms on {page}, and set HF_TOKEN ({token})")
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
