"""Tallies: what a pass keeps of every channel's activations, beside the top K.

A tally is a small object with `update`, `merge` and tables in and out. Merging is commutative
and associative, with `empty` as its neutral element, so shards can be tallied anywhere and in
any order. A new one is one class and one line in `TALLIES`.
"""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
import pyarrow as pa

from exemplar_ray.exemplars.tallies.classes import Classes
from exemplar_ray.exemplars.tallies.histogram import Histogram
from exemplar_ray.exemplars.tallies.moments import Moments


class Tally(Protocol):
    """What is kept of the activations of some channels (one statistic of one layer)."""

    @classmethod
    def empty(cls, channels: int) -> Self:
        """Return the tally of no images."""

    def update(self, activations: np.ndarray, labels: np.ndarray) -> None:
        """Take in float32 [images, channels], and int64 [images] class ids (-1: no label).

        NaN and infinity are left out.
        """

    def merge(self, other: Self) -> Self:
        """Return the tally of both sets of images."""

    def to_table(self) -> pa.Table:
        """Return everything that `from_table` needs, a row a channel, in channel order."""

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Read back what `to_table` returned."""

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns that the tally adds to `channels.parquet`, a value a channel."""


TALLIES: dict[str, type[Tally]] = {
    "moments": Moments,
    "histogram": Histogram,
    "classes": Classes,
}
