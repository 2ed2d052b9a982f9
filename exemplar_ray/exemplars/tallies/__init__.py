"""Tallies: what a pass keeps of every channel's activations, beside the top K.

A tally is a small object with `update`, `merge` and tables in and out. Merging is commutative
and associative, with `empty` as its neutral element, so shards can be tallied anywhere and in
any order. A new one is one class and one line in `TALLIES`.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def tables_of(tally: Tally) -> Iterable[pa.Table]:
    """Return what `to_table` returns, a few channels at a time where the tally has `to_tables`, as it may be large."""
    return tally.to_tables() if isinstance(tally, Classes) else [tally.to_table()]


def from_tables(kind: type[Tally], tables: Iterable[pa.Table], channels: int) -> Tally:
    """Read back a tally of so many channels from what `tables_of` returned, however it was cut."""
    return kind.from_tables(tables, channels) if issubclass(kind, Classes) else kind.from_table(_joined(tables))


def _joined(tables: Iterable[pa.Table]) -> pa.Table:
    first, *others = tables
    return pa.concat_tables([first, *others]) if others else first
