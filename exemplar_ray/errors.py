"""What can go wrong, by whose hand: the user's (UsageError), a machine's (MachineError), a shard's (ShardError); and
what comes of it where Python called (IncompleteError)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """Something the user asked for cannot be done; the message says what, and what to do.

    The command line prints the message as one line and exits with status 2.
    """


class MachineError(UsageError):
    """Something is not on this machine as it is asked for; it may be on another.

    Another machine tries what was to be done; if none fares better, this is a UsageError like any other.
    """


class UnlikeRunError(MachineError):
    """What this machine has, such as weights, is not what the run is of."""


class ShardError(Exception):
    """One shard cannot be scanned or gathered, and trying again will not help.

    The other shards go on; the message lands in the run folder under `failed/`.
    """


class IncompleteError(Exception):
    """A job that Python called has no result, as some of its items failed; the message names them."""


def one_line(error: BaseException) -> str:
    """Return an error's message in one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def near_matches(name: str, names: Iterable[str]) -> str:
    """Return a hint for a misspelt name.

    >>> near_matches("mixed4aa", ["mixed3a", "mixed4a"])
    "did you mean 'mixed4a', 'mixed3a'?"
    >>> near_matches("zzz", ["mean", "max"])
    "known: 'mean', 'max'"
    """
    names = list(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + ", ".join(f"'{c}'" for c in close) + "?"
    shown = ", ".join(f"'{k}'" for k in names[:12])
    return "known: " + shown + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
