"""Keys: what a user can set, each declared once, as a field of a dataclass with its words for people."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Key:
    """How a key is written and explained."""

    metavar: str
    text: str
    flow: bool = False
    """On the command line its value is YAML, such as `{resize: 256}`."""
    flag: str | None = None
    """Another name of its flag, such as `--from`."""


def key(default: Any, metavar: str, text: str, flow: bool = False, flag: str | None = None) -> Any:
    """Declare a field that is a key of the config file and a flag.

    Args:
        default: what it is if nobody sets it.
        metavar: what stands for its value in the help.
        text: what it is, for the help.
        flow, flag: see `Key`.
    """
    return field(default=default, metadata={"key": Key(metavar, text, flow, flag)})


def keys_of(*classes: type) -> dict[str, tuple[Key, type]]:
    """Return {name: (how it is explained, what type its values are)} of the keys that some dataclasses declare.

    The type is `list` for a key that takes several values.
    """
    return {
        one.name: (one.metadata["key"], _kind(get_type_hints(cls)[one.name]))
        for cls in classes
        for one in fields(cls)
        if "key" in one.metadata
    }


def _kind(hint: Any) -> type:
    """Return the type behind a field's annotation."""
    for kind in (bool, int, float, str):
        if hint in (kind, kind | None):
            return kind
    return list
