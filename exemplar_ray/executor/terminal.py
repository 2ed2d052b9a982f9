"""What a command says: on whatever terminal, and of whatever error."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exemplar_ray.errors import UsageError
from exemplar_ray.storage.transient import is_transient

_HANDLER = "exemplar_ray.printable"
# For terminals that have no such signs.
_PLAIN = {
    "—": "-",
    "–": "-",
    "−": "-",
    "×": "x",
    "…": "...",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "→": "->",
    "≥": ">=",
}

# What AWS's library raises where it has not been told who asks, or where; `aws configure` mends that.
_UNCONFIGURED = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "NoRegionError",
    "InvalidRegionError",
    "ProfileNotFound",
    "ConfigNotFound",
    "ConfigParseError",
    "SSOError",
    "TokenRetrievalError",
}
# The libraries that storages are reached by: what they raise is of what is there, and no bug of ours.
_OF_STORAGES = ("aiohttp", "azure", "botocore", "gcsfs", "google", "httpx", "httpx2", "urllib3")


@contextmanager
def printable(*streams: Any) -> Iterator[None]:
    """Have streams write something for whatever they cannot encode: a terminal need not know every sign, and a file's
    name need not be text."""
    codecs.register_error(_HANDLER, _in_other_signs)
    changed = [
        (stream, stream.errors) for stream in streams if isinstance(stream, io.TextIOWrapper) and not stream.closed
    ]
    for stream, _ in changed:
        stream.reconfigure(errors=_HANDLER)
    try:
        yield
    finally:
        for stream, errors in changed:
            if not stream.closed:
                stream.reconfigure(errors=errors)


def _in_other_signs(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs), error.end


def said_of(error: Exception) -> str | None:
    """Say in one line what is wrong, and what to do; None for what is a bug, whose traceback tells more."""
    text = " ".join(str(error).split()) or "it says no more"
    named = f"{type(error).__name__}: {text}"
    library, of_class = type(error).__module__.split(".")[0], {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, UsageError):
        return text
    if isinstance(error, PermissionError):
        return f"access denied: {text}; check permissions or credentials"
    if library == "botocore" and of_class & _UNCONFIGURED:
        return f"{text}; check `aws configure`"
    if is_transient(error) and not isinstance(error, OSError):
        return f"{named}; that may pass: run the same command again"
    # Not a bug: a folder that cannot be written, a full disk, a server that is gone.
    return named if isinstance(error, OSError) or library in _OF_STORAGES else None
