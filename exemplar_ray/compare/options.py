"""How two sets or two networks are compared: what the user sets. Imports nothing large."""

from __future__ import annotations

from dataclasses import dataclass

from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.keys import key

METHODS = ("pca", "umap", "tsne")
BY = ("row", "image_path")
"""What names an image: its shard and row, or its path."""


@dataclass(frozen=True)
class CompareOptions:
    """How two sets or two networks are compared. Every field is a key of the config file and a flag.

    Raises:
        UsageError: a value has the wrong type or an impossible value.
    """

    layer: tuple[str, ...] = key((), "NAME", "layers of A (default: all; of one network, those that B has, too)")
    other_layer: tuple[str, ...] = key((), "NAME", "of two networks, layers of B (default: all)")
    pool: tuple[str, ...] = key((), "NAME", "pools, or statistics of a run (default: those that both have)")
    by: str = key(BY[0], "ID", "of two networks, what names an image in both: row (default; shard and row), image_path")
    neighbours: int = key(5, "K", "to which neighbour the balls about points reach (default: 5)")
    points: int = key(
        50_000, "N", "of more images than these, neighbours are asked of so many, drawn (default: 50,000)"
    )
    exemplars: int = key(10, "K", "strongest images a channel (default: 10)")
    draws: int = key(100, "N", "halves of the shards that intervals are drawn from (default: 100)")
    method: str = key(METHODS[0], "NAME", "of the map, fitted to A: pca (default), umap, tsne")
    seed: int = key(0, "N", "of all that is drawn (default: 0)")
    pictures: bool = key(True, "", "show images, which are read anew (default: yes)")

    def __post_init__(self) -> None:
        for name in ("layer", "other_layer", "pool"):
            value = getattr(self, name)
            value = (value,) if isinstance(value, str) else value
            if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
                raise UsageError(f"{name} is one or several names, not {value!r}")
            object.__setattr__(self, name, tuple(dict.fromkeys(value)))
        for name, least in (("neighbours", 1), ("points", 2), ("exemplars", 1), ("draws", 2), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(f"{name} is a whole number from {least}, not {value!r}")
        for name, known in (("method", METHODS), ("by", BY)):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"unknown {name} '{getattr(self, name)}'; {near_matches(str(getattr(self, name)), known)}"
                )
        if not isinstance(self.pictures, bool):
            raise UsageError(f"pictures is true or false, not {self.pictures!r}")
