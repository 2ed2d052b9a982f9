"""Which versions computed what: every part's record keeps those of the worker that made it."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

from exemplar_ray._version import __version__

_PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "torch-lucent",
    "timm",
    "open_clip_torch",
    "transformers",
    "pyarrow",
    "numpy",
    "pillow",
    "simplejpeg",
)

Versions = tuple[tuple[str, str], ...]
"""((package, version), ...)"""


@cache
def versions() -> dict[str, str]:
    """Return this process's: {"exemplar_ray": ..., "python": ..., package: ...} of those that are there."""
    found = {"exemplar_ray": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def kept(recorded: Mapping[str, str] | None) -> Versions | None:
    """Return what is kept of the versions in a record, of which there may be very many: equal ones are one object."""
    return None if recorded is None else _one_of_equal(tuple(recorded.items()))


@cache
def _one_of_equal(recorded: Versions) -> Versions:
    return recorded


class ComputedBy(NamedTuple):
    """How many of a run's parts were computed by some versions; None where their records do not say."""

    versions: dict[str, str] | None
    parts: int


def computed_by(recorded: Iterable[Versions | None]) -> list[ComputedBy]:
    """Count the versions that parts were computed by, in the order that they first come in."""
    return [ComputedBy(None if key is None else dict(key), count) for key, count in Counter(recorded).items()]


def in_words(groups: Sequence[ComputedBy], items_name: str) -> str | None:
    """Say which versions computed how many parts, as far as they differ; None if all were computed by the same.

    >>> in_words([ComputedBy({"torch": "2.9", "numpy": "2.1"}, 5), ComputedBy({"torch": "2.10", "numpy": "2.1"}, 3)], "shards")
    '5 shards by torch 2.9; 3 shards by torch 2.10'
    """  # noqa: E501
    if len(groups) < 2:
        return None
    known: list[Mapping[str, Any]] = [group.versions for group in groups if group.versions is not None]
    names = dict.fromkeys(name for one in known for name in one)
    differing = [name for name in names if len({one.get(name) for one in known}) > 1]
    return "; ".join(
        f"{group.parts} {items_name.removesuffix('s') if group.parts == 1 else items_name} by "
        f"{_named(group.versions, differing or names)}"
        for group in groups
    )


def _named(one: Mapping[str, str] | None, names: Iterable[str]) -> str:
    if one is None:
        return "versions that were not recorded"
    return ", ".join(f"{name} {one[name]}" if name in one else f"no {name}" for name in names)
