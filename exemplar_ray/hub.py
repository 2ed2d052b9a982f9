"""URIs of the Hugging Face Hub: commits instead of branches.

A branch moves while a run goes on. Its commit is therefore looked up once, on the driver, and every URI that goes
to a task names the commit. The Hub's client takes long to import, and is not before there is something to ask it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import fsspec

from exemplar_ray.errors import UsageError

_PROTOCOL = "hf://"
_USUAL_REVISION = "main"


class AccessError(PermissionError):
    """Something on the Hub is not to be had, and trying again will not help; the message says what would."""


class NoAnswerError(ConnectionError):
    """The Hub cannot be reached, or cannot answer now; trying again may help."""


def is_on_hub(uri: str) -> bool:
    """Whether a URI is one of the Hub."""
    return uri.startswith(_PROTOCOL)


def file_system(uri: str) -> tuple[Any, str]:
    """Return a URI's file system and the path in it, as `fsspec.url_to_fs` does."""
    if not is_on_hub(uri):
        return fsspec.url_to_fs(uri)
    from exemplar_ray.hub_files import HubFileSystem

    return HubFileSystem(), uri.removeprefix(_PROTOCOL)


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
    commits = dict(known or {})
    repositories = dict.fromkeys(repository for uri in uris if (repository := _repository(uri)) is not None)
    for repository in repositories.keys() - commits.keys():
        from exemplar_ray.hub_files import commit_of

        commits[repository] = commit_of(repository)
    return {repository: commits[repository] for repository in repositories}


def pinned(uri: str, revisions: Mapping[str, str]) -> str:
    """Return a URI that names the commit of its repository, as `resolve_revisions` found it."""
    repository = _repository(uri)
    return uri if repository is None else replace(parse(uri), revision=revisions[repository]).to_uri()


def without_revision(uri: str) -> str:
    """Return what stays of a URI whatever the commit.

    >>> without_revision("hf://datasets/org/name@v1/data/train.parquet")
    'hf://datasets/org/name/data/train.parquet'
    >>> without_revision("s3://bucket/train.parquet")
    's3://bucket/train.parquet'
    """
    return uri if _repository(uri) is None else replace(parse(uri), revision=None).to_uri()


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


def parse(uri: str) -> Any:
    """Take a URI of the Hub apart, into huggingface_hub's `HfUri`.

    Raises:
        UsageError: it is none.
    """
    from huggingface_hub import parse_hf_uri

    try:
        return parse_hf_uri(uri)
    except ValueError as error:
        raise UsageError(" ".join(str(error).split())) from error


def _repository(uri: str) -> str | None:
    """Return the URI of the repository and revision that a URI is in; None if there are no revisions there."""
    if not is_on_hub(uri) or (place := parse(uri)).is_bucket:
        return None
    return replace(place, revision=place.revision or _USUAL_REVISION, path_in_repo="").to_uri()
