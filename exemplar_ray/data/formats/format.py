"""What a kind of file has to say of itself, so that its shards are data like any other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa

from exemplar_ray.data.columns import Chosen, Columns
from exemplar_ray.data.shard import Shard, ShardReader


class Look(NamedTuple):
    """What a shard says of itself before its images are read."""

    uri: str
    rows: int | None
    """None where that takes reading it."""
    footer: str
    """See `Shard`."""
    columns: Columns
    label_type: pa.DataType | None
    """None without labels."""
    class_names: list[str] | None = None
    """Index = label, where the shard names them."""
    about: int | None = None
    """How many rows there may be, where `rows` is None."""
    pieces: int = 1
    """See `Shard`."""


class Format(ABC):
    """A kind of file. It is stateless."""

    name: str
    """What it is called: in `run.json`, and for people, as in `a parquet file`."""

    @abstractmethod
    def look_at(self, shard: Shard, chosen: Chosen) -> Look | None:
        """Find out what is where in a shard; None if it can be read and is not what it should be.

        Args:
            chosen: the columns that the user names.

        Raises:
            UsageError: it cannot be read, now or at all; or where its images or labels are is not clear.
        """

    @abstractmethod
    def texts(self, shard: Shard, columns: Columns, most: int) -> set[str]:
        """Return the texts that a shard's labels are, but for empty ones; no more if there are more than `most`.

        Raises:
            UsageError: they cannot be read.
        """

    def refuse_odd_labels(self, shard: Shard, look: Look) -> None:  # noqa: B027
        """Refuse labels of which only reading them says that they are none. Most formats have no such labels.

        Raises:
            UsageError: one is.
        """

    @abstractmethod
    def open(self, shard: Shard) -> ShardReader:
        """Open a shard to read its rows.

        Raises:
            ShardError: see `ShardReader`.
        """

    def open_piece(self, shard: Shard, piece: int) -> ShardReader:
        """Open a shard to read the rows of one piece, as if there were no others. Most formats have but one.

        Args:
            piece: its number, of those that the shard is listed with.

        Raises:
            ShardError: see `ShardReader`; or it has not so many pieces.
        """
        return self.open(shard)

    @abstractmethod
    def groups(self, numbers: Sequence[int]) -> str:
        """Name the groups of rows that `ShardReader.contents` tells of, by their numbers."""

    @abstractmethod
    def describe(self, columns: Sequence[Columns | None]) -> list[str]:
        """Say in lines where images and labels of a data set's shards are, if not in the usual places.

        Args:
            columns: of each shard of this format; None for the usual ones, or where they are not known.
        """


HUNDRED = 100
"""Rows that are a group where a format has none of its own."""


def in_hundreds(numbers: Iterable[int]) -> str:
    """Name groups of a hundred rows.

    >>> in_hundreds([0, 3])
    'rows 0-99, 300-399'
    """
    return "rows " + ", ".join(f"{HUNDRED * number}-{HUNDRED * number + HUNDRED - 1}" for number in numbers)
