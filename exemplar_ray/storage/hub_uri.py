"""What a URI of the Hugging Face Hub says, and what can be wrong with it. Asks the Hub nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exemplar_ray.errors import UsageError

PROTOCOL = "hf://"


_DEFAULT_REVISION = "main"


class AccessError(PermissionError):
    """Something on the Hub is not to be had, and trying again will not help; the message says what would."""


class NoAnswerError(ConnectionError):
    """The Hub cannot be reached, or cannot answer now; trying again may help."""


def is_on_hub(uri: str) -> bool:
    """Whether a URI is one of the Hub."""
    return uri.startswith(PROTOCOL)


def without_revision(uri: str) -> str:
    """Return what stays of a URI whatever the commit.

    >>> without_revision("hf://datasets/org/name@v1/data/train.parquet")
    'hf://datasets/org/name/data/train.parquet'
    >>> without_revision("s3://bucket/train.parquet")
    's3://bucket/train.parquet'
    """
    return uri if repository_of(uri) is None else replace(parse(uri), revision=None).to_uri()


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


def repository_of(uri: str) -> str | None:
    """Return the URI of the repository and revision that a URI is in; None if there are no revisions there."""
    if not is_on_hub(uri) or (place := parse(uri)).is_bucket:
        return None
    return replace(place, revision=place.revision or _DEFAULT_REVISION, path_in_repo="").to_uri()
