"""A column's pages without those that hold none of the wanted rows: what a parquet file's page index saves.

In place of every other page stands a small one of as many nulls, so that pyarrow, which reads a column from its first
page on, finds each row in its place.

https://github.com/apache/parquet-format/blob/master/PageIndex.md, .../src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.data.compact_thrift import read_struct, varint, write_struct

# Numbers of fields in parquet.thrift.
_ROW_GROUPS, _COLUMNS, _INDEX_OFFSET, _INDEX_LENGTH = 4, 1, 4, 5
_LOCATIONS, _OFFSET, _SIZE, _FIRST_ROW = 1, 1, 2, 3
_DATA_PAGE, _PLAIN, _RLE = 0, 0, 3

_CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "ZSTD", "BROTLI")
# A page that is smaller is taken as it is: it costs no more than one of nulls.
_SMALL_PAGE = 1024
# Pages that are nearer to one another are fetched together.
_NEAR = 64 << 10

Fetch = Callable[[int, int], bytes]
"""Reads the bytes from one offset up to another."""


class Page(NamedTuple):
    """Where a data page is, its header included."""

    offset: int
    size: int
    first_row: int
    rows: int


class Leaf(NamedTuple):
    """What of a column is needed to write a page of nulls, and where its bytes are."""

    start: int
    end: int
    codec: str
    deepest: int
    """The definition level of a value that is there; 0 if no value can be null."""


def index_places(footer: bytes) -> list[list[tuple[int, int] | None]]:
    """Return where the offset indexes are: for each row group and column (start, end), or None where there is none.

    Args:
        footer: the metadata alone, without its length and the magic bytes.

    Raises:
        ValueError: the footer is none.
    """
    return [
        [_place(column) for column in group.get(_COLUMNS, ())] for group in read_struct(footer).get(_ROW_GROUPS, ())
    ]


def _place(column: dict[int, Any]) -> tuple[int, int] | None:
    offset, length = column.get(_INDEX_OFFSET), column.get(_INDEX_LENGTH)
    return None if offset is None or length is None else (offset, offset + length)


def leaf_of(metadata: pq.FileMetaData, group: int, column: int) -> Leaf | None:
    """Return what is needed of a column in a row group; None where pages of nulls cannot be written for it."""
    kind, chunk = metadata.schema.column(column), metadata.row_group(group).column(column)
    if kind.max_repetition_level or chunk.compression not in _CODECS:
        return None
    if not kind.max_definition_level and kind.physical_type != "BYTE_ARRAY":
        return None
    return Leaf(*chunk_of(chunk), chunk.compression, kind.max_definition_level)


def chunk_of(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Return where a column's bytes are in a row group: from its first page, of whatever kind, up to its end."""
    dictionary = chunk.dictionary_page_offset
    start = chunk.data_page_offset if not dictionary else min(dictionary, chunk.data_page_offset)
    return start, start + chunk.total_compressed_size


def pages(index: bytes, rows: int) -> list[Page]:
    """Read an offset index.

    Args:
        rows: of the row group.

    Raises:
        ValueError: it is none, or not of so many rows.
    """
    try:
        locations = [(one[_OFFSET], one[_SIZE], one[_FIRST_ROW]) for one in read_struct(index)[_LOCATIONS]]
    except (KeyError, TypeError) as error:
        raise ValueError("a page index cannot be read") from error
    ends = [first for _, _, first in locations[1:]] + [rows]
    found = [Page(*location, end - location[2]) for location, end in zip(locations, ends, strict=True)]
    if not found or found[0].first_row != 0 or any(page.rows <= 0 for page in found):
        raise ValueError("a page index has not its row group's rows")
    return found


class Sparse(NamedTuple):
    """The pages of a column of which some are wanted."""

    leaf: Leaf
    pages: list[Page]
    wanted: list[bool]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Return what is to be fetched: the dictionary, if there is one, and the wanted pages."""
        first = self.pages[0].offset
        parts = [(self.leaf.start, first)] if first > self.leaf.start else []
        parts += [(p.offset, p.offset + p.size) for p, wanted in zip(self.pages, self.wanted, strict=True) if wanted]
        return merged(parts, _NEAR)

    def content(self, fetch: Fetch) -> bytes:
        """Fetch what is wanted, and return the column as pyarrow reads it; it ends early, as its pages are smaller."""
        fetched = [(start, fetch(start, end)) for start, end in self.ranges]

        def part(start: int, end: int) -> bytes:
            return next(c[start - at : end - at] for at, c in fetched if at <= start and end <= at + len(c))

        first = self.pages[0].offset
        parts = [part(self.leaf.start, first)] if first > self.leaf.start else []
        for page, wanted in zip(self.pages, self.wanted, strict=True):
            parts.append(part(page.offset, page.offset + page.size) if wanted else _nulls(page.rows, self.leaf))
        return b"".join(parts)


def sparse(leaf: Leaf, found: list[Page], rows: np.ndarray) -> Sparse:
    """Choose the pages that hold some rows.

    Args:
        rows: int64, ascending, counted from the row group's first.
    """
    wanted = []
    for page in found:
        first, after = np.searchsorted(rows, [page.first_row, page.first_row + page.rows])
        wanted.append(bool(after > first) or page.size <= _SMALL_PAGE)
    return Sparse(leaf, found, wanted)


def merged(ranges: Sequence[tuple[int, int]], near: int) -> list[tuple[int, int]]:
    """Join ranges that are no further apart than `near` bytes; ascending."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start - joined[-1][1] <= near:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _nulls(rows: int, leaf: Leaf) -> bytes:
    """Return a data page of so many rows without a value; of empty values where none can be null."""
    if leaf.deepest:
        # One run of the level below that of a value, in one byte.
        levels = varint(rows << 1) + bytes([leaf.deepest - 1])
        body = len(levels).to_bytes(4, "little") + levels
    else:
        body = bytes(4 * rows)
    stored = body if leaf.codec == "UNCOMPRESSED" else pa.compress(body, codec=leaf.codec.lower(), asbytes=True)
    of_data = write_struct([(1, rows), (2, _PLAIN), (3, _RLE), (4, _RLE)])
    return write_struct([(1, _DATA_PAGE), (2, len(body)), (3, len(stored)), (5, of_data)]) + stored
