"""What a command says: on whatever terminal, of whatever error, and how to go on."""

from __future__ import annotations

import codecs
import io
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
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

# Set where Ray's job server started the program.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


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


def rerun_command(arguments: Sequence[str], script: Sequence[str] = ()) -> str:
    """Return a command that does once more what this program was started to do.

    Args:
        arguments: those of the command line.
        script: the words that a program of its own was started with, see `cli.main`.
    """
    if script:
        again = shlex.join(script)
    elif _is_installed():
        again = shlex.join(["exemplar-ray", *arguments])
    else:
        again = shlex.join([sys.orig_argv[0] if sys.orig_argv else "python", "-m", "exemplar_ray", *arguments])
    # A submitted job runs where nobody types, in a copy of the working folder.
    return f"ray job submit --working-dir . -- {again}" if _is_submitted() else again


def _is_installed() -> bool:
    """Whether there is a command `exemplar-ray`."""
    return shutil.which("exemplar-ray") is not None or Path(sys.executable).with_name("exemplar-ray").exists()


def _is_submitted() -> bool:
    try:
        return "job_submission_id" in json.loads(os.environ[_JOB])["metadata"]
    except (KeyError, TypeError, ValueError):
        return False
