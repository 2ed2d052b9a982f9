"""A parquet file read row group by row group, in few requests, and what its bytes were.

A row group's columns are fetched as one range of bytes where they are near to one another, while the row group before
is worked on. Of a row group that is too large to wait in memory, large columns are read piece by piece instead. Of few
rows only the pages are fetched that hold them, where the file has a page index.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from exemplar_ray.data.footers import TAIL_BYTES, open_file, read_range
from exemplar_ray.data.pages import chunk_of, index_places, leaf_of, merged, pages, sparse
from exemplar_ray.errors import ShardError
from exemplar_ray.prefetch import map_ahead

# What a parquet file is read in: small enough that memory follows the batch, not the shard.
ROWS_PER_READ = 32
# A row group that is no larger waits in memory as a whole; of others only so much at a time.
_MOST_AT_ONCE = 32 << 20
_BYTES_PER_READ = 16 << 20
# Columns that are nearer to one another are fetched together: a request takes longer than so many bytes.
_NEAR = 1 << 20
# A column that is smaller is fetched whole.
_SMALL = 64 << 10
_BAD_CHECKSUM = "CRC checksum verification failed"


class Piece(NamedTuple):
    """Some of a file's bytes, from an offset on; up to `end` there are zeros behind them."""

    start: int
    end: int
    content: bytes


class Loaded(NamedTuple):
    """What was fetched of a row group."""

    pieces: list[Piece]
    digests: dict[tuple[int, int], str]
    """{where a column's bytes are: their XXH3-128 (hex)}, of those that were fetched whole."""


class RowGroupFile:
    """Reads a parquet file's rows.

    Args:
        name: what to call it in messages.
        uri: where it is.
        size: in bytes, as it was listed.

    Raises:
        OSError: it cannot be read; or, as pyarrow.ArrowInvalid, it is no parquet file.
    """

    def __init__(self, name: str, uri: str, size: int) -> None:
        self._name = name
        source = open_file(uri, size)
        # A local file may have been replaced since it was listed; to ask others is a request.
        size = source.size() if isinstance(source, pa.NativeFile) else size
        self._window = _Window(source, size)
        try:
            # The footer, and, as it stands before it, at least some of the page index.
            self._tail = self._window.fetch(max(0, size - TAIL_BYTES), size)
            with self._window.holding([self._tail]):
                self._file = pq.ParquetFile(
                    self._window, pre_buffer=False, buffer_size=_BYTES_PER_READ, page_checksum_verification=True
                )
        except BaseException:
            self.close()
            raise
        self.metadata: pq.FileMetaData = self._file.metadata
        self.schema: pa.Schema = self._file.schema_arrow
        self.rows_of_groups = [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]
        self.contents: dict[int, str] = {}
        """{row group: XXH3-128 (hex) of what was read of its columns}, of those that were read to the end"""

    def close(self) -> None:
        """Close the file."""
        self._window.close()

    # All rows ----------------------------------------------------------------------------

    def read(self, columns: Sequence[str], groups: range | None = None) -> Iterator[pa.RecordBatch]:
        """Yield all rows of some columns in batches, in order, and note what the bytes were in `contents`.

        Args:
            columns: leaves, by their paths.
            groups: which row groups; None for all.

        Raises:
            ShardError: a page is not the one that was written.
        """
        groups = range(self.metadata.num_row_groups) if groups is None else groups
        for group in self._each_at_hand(columns, groups):
            yield from self._batches(group, columns)

    def digests(self, columns: Sequence[str], groups: range) -> list[str]:
        """Return `contents` of row groups, without decoding anything."""
        return [self.contents[group] for group in list(self._each_at_hand(columns, groups))]

    def _each_at_hand(self, columns: Sequence[str], groups: range) -> Iterator[int]:
        """Yield row groups while what was fetched of them is at hand; then note what their bytes were."""
        loads = map_ahead(lambda group: self._load(group, columns), groups, threads=1, ahead=1)
        for group, loaded in zip(groups, loads, strict=True):
            chunks = self._chunks(group, columns)
            streamed = [chunk for chunk in chunks if chunk not in loaded.digests]
            with self._window.holding(loaded.pieces, streamed) as hashing:
                yield group
                digests = {**loaded.digests, **hashing.digests()}
            self.contents[group] = _joined([digests[chunk] for chunk in chunks])

    def _load(self, group: int, columns: Sequence[str]) -> Loaded:
        """Fetch a row group's columns, but for the large ones of a large row group."""
        chunks = _fetched_whole(self._chunks(group, columns))
        pieces = [self._window.fetch(*place) for place in merged(chunks, _NEAR)]
        return Loaded(pieces, {chunk: _digest(pieces, chunk) for chunk in chunks})

    def _chunks(self, group: int, columns: Sequence[str]) -> list[tuple[int, int]]:
        """Return where the columns' bytes are in a row group, in the file's order."""
        return sorted(chunk_of(self.metadata.row_group(group).column(i)) for i in self._leaves(columns))

    def _leaves(self, columns: Sequence[str]) -> list[int]:
        """Return the numbers of the leaves that columns, or parts of them, have."""
        paths = [self.metadata.schema.column(i).path for i in range(self.metadata.num_columns)]
        return [i for i, path in enumerate(paths) if any(f"{path}.".startswith(f"{name}.") for name in columns)]

    def _batches(self, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._file.iter_batches(
                batch_size=ROWS_PER_READ, row_groups=[group], columns=list(columns), use_threads=False
            )
        except OSError as error:
            if _BAD_CHECKSUM not in str(error):
                raise
            raise ShardError(
                f"{self._name} is damaged: a page of row group {group} has not the checksum that was written with it; "
                "restore the file"
            ) from error

    @cached_property
    def footer(self) -> str:
        """The SHA-256 (hex) of the footer, as `footers.read_footer` takes it."""
        with self._window.holding([self._tail]):
            length = int.from_bytes(self._window.fetch(self._window.size - 8, self._window.size - 4).content, "little")
            content = self._window.fetch(self._window.size - length - 8, self._window.size).content
        return hashlib.sha256(content).hexdigest()

    # Some rows ---------------------------------------------------------------------------

    def select(self, columns: Sequence[str], rows: Iterable[int]) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Yield batches that hold some rows, and which of a batch's these are (int64), reading as little as can be.

        Args:
            columns: leaves, by their paths.
            rows: counted from the file's first; those that it does not have are passed over.

        Raises:
            ShardError: a page is not the one that was written.
        """
        wanted = np.unique(np.fromiter(rows, dtype=np.int64))
        first = 0
        for group in range(self.metadata.num_row_groups):
            after = first + self.metadata.row_group(group).num_rows
            here = wanted[(wanted >= first) & (wanted < after)] - first
            first = after
            if not len(here):
                continue
            with self._window.holding([self._tail]):
                pieces = self._pieces_of(group, columns, here)
            with self._window.holding(pieces):
                start = 0
                for batch in self._batches(group, columns):
                    yield batch, here[(here >= start) & (here < start + len(batch))] - start
                    start += len(batch)
                    if here[-1] < start:
                        break

    # What it takes -----------------------------------------------------------------------

    def requests(self, columns: Sequence[str]) -> int:
        """Return how many requests `read` makes of a storage, the footer's included."""
        return 1 + sum(_requests(self._chunks(group, columns)) for group in range(self.metadata.num_row_groups))

    def cost_of_a_row(self, columns: Sequence[str]) -> tuple[int, int]:
        """Read the first row as `select` does; return how many requests that takes, the footer's included, and how many
        bytes."""
        before = self._window.requests
        with self._window.holding([self._tail]):
            pieces = self._pieces_of(0, columns, np.zeros(1, np.int64))
        return 1 + self._window.requests - before, sum(len(piece.content) for piece in pieces)

    def _pieces_of(self, group: int, columns: Sequence[str], rows: np.ndarray) -> list[Piece]:
        """Fetch what holds some rows of a row group."""
        whole, pieces = [], []
        for column in self._leaves(columns):
            start, end = chunk_of(self.metadata.row_group(group).column(column))
            content = self._sparse(group, column, rows) if end - start > _SMALL else None
            if content is None:
                whole.append((start, end))
            else:
                pieces.append(Piece(start, end, content))
        return [*(self._window.fetch(*place) for place in merged(_fetched_whole(whole), _NEAR)), *pieces]

    def _sparse(self, group: int, column: int, rows: np.ndarray) -> bytes | None:
        """Return a column of which only the pages with some rows are there; None where the file has no page index."""
        place = self._index_places[group][column] if self._index_places else None
        leaf = leaf_of(self.metadata, group, column)
        if place is None or leaf is None:
            return None
        index = self._window.fetch(*place).content
        try:
            found = pages(index, self.metadata.row_group(group).num_rows)
        except ValueError as error:
            raise ShardError(f"{self._name} is damaged: {error}") from error
        chosen = sparse(leaf, found, rows)
        return chosen.content(lambda start, end: self._window.fetch(start, end).content)

    @cached_property
    def _index_places(self) -> list[list[tuple[int, int] | None]]:
        """Where the page indexes are, of each row group and column; nothing where there are none."""
        if not _has_index(self.metadata):
            return []
        end = self._window.size - 8
        length = int.from_bytes(self._window.fetch(end, end + 4).content, "little")
        try:
            return index_places(self._window.fetch(end - length, end).content)
        except ValueError as error:
            raise ShardError(f"{self._name} is damaged: {error}") from error


def _fetched_whole(chunks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the columns that are fetched whole: all, or, of a large row group, the small ones."""
    is_large = sum(end - start for start, end in chunks) > _MOST_AT_ONCE
    return [(start, end) for start, end in chunks if not is_large or end - start <= _NEAR]


def _requests(chunks: Sequence[tuple[int, int]]) -> int:
    """Return how many requests a row group takes that is read to its end, see `RowGroupFile.read`."""
    whole = _fetched_whole(chunks)
    in_pieces = (-(-(end - start) // _BYTES_PER_READ) for start, end in chunks if (start, end) not in whole)
    return len(merged(whole, _NEAR)) + sum(in_pieces)


def _has_index(metadata: pq.FileMetaData) -> bool:
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return any(group.column(i).has_offset_index for group in groups for i in range(group.num_columns))


def _digest(pieces: Sequence[Piece], place: tuple[int, int]) -> str:
    """Return the XXH3-128 (hex) of some of the bytes that were fetched."""
    start, end = place
    for piece in pieces:
        if piece.start <= start and end <= piece.end:
            return xxhash.xxh3_128_hexdigest(memoryview(piece.content)[start - piece.start : end - piece.start])
    raise ValueError(f"the bytes from {start} to {end} were not fetched")


def _joined(digests: Sequence[str]) -> str:
    return xxhash.xxh3_128_hexdigest("".join(digests).encode())


class _Hashing:
    """The XXH3-128 of columns that are read piece by piece, from their first byte to their last."""

    def __init__(self, window: _Window, places: Sequence[tuple[int, int]]) -> None:
        self._window = window
        self._places = {place: (xxhash.xxh3_128(), place[0]) for place in places}

    def note(self, start: int, content: bytes) -> None:
        """Take in bytes that were read; those that come again are passed over."""
        for (first, end), (digest, reached) in self._places.items():
            if first <= start < end and start <= reached < start + len(content):
                digest.update(memoryview(content)[reached - start : end - start])
                self._places[first, end] = digest, min(end, start + len(content))

    def digests(self) -> dict[tuple[int, int], str]:
        """Return the XXH3-128 (hex) of each, after reading what nobody has read of it yet."""
        for place, (_, reached) in list(self._places.items()):
            for start in range(reached, place[1], _BYTES_PER_READ):
                self.note(start, self._window.fetch(start, min(start + _BYTES_PER_READ, place[1])).content)
        return {place: digest.hexdigest() for place, (digest, _) in self._places.items()}


class _Window(io.RawIOBase):
    """What pyarrow reads a file through: what was fetched before comes from memory."""

    def __init__(self, source: Any, size: int) -> None:
        super().__init__()
        self._source = source
        self.size = size
        self.requests = 0
        self._place = 0
        self._pieces: list[Piece] = []
        self._hashing: _Hashing | None = None
        # The next row group is fetched in another thread.
        self._one_at_a_time = threading.Lock()

    @contextmanager
    def holding(self, pieces: list[Piece], streamed: Sequence[tuple[int, int]] = ()) -> Iterator[_Hashing]:
        """Read from these pieces while inside, and hash the places that are not among them as they are read."""
        before = self._pieces, self._hashing
        self._pieces, self._hashing = pieces, _Hashing(self, streamed)
        try:
            yield self._hashing
        finally:
            self._pieces, self._hashing = before

    def fetch(self, start: int, end: int) -> Piece:
        """Return bytes from the pieces at hand, or else in one request.

        Raises:
            ConnectionError: fewer came.
        """
        at_hand = self._at_hand(start, end)
        if at_hand is not None:
            return Piece(start, end, at_hand)
        with self._one_at_a_time:
            self.requests += 1
            return Piece(start, end, read_range(self._source, start, end))

    def _at_hand(self, start: int, end: int) -> bytes | None:
        for piece in self._pieces:
            if piece.start <= start and end <= piece.end:
                found = piece.content[start - piece.start : end - piece.start]
                return found + bytes(end - start - len(found))
        return None

    def read(self, size: int = -1) -> bytes:
        """Read on, as files do."""
        end = self.size if size is None or size < 0 else min(self._place + size, self.size)
        if end <= self._place:
            return b""
        content = self.fetch(self._place, end).content
        if self._hashing is not None:
            self._hashing.note(self._place, content)
        self._place = end
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as in files."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def readable(self) -> bool:
        """Whether it can be read: it can."""
        return True

    def seekable(self) -> bool:
        """Whether there are places to go to: there are."""
        return True

    def close(self) -> None:
        """Close the file."""
        # Not while the next row group is being fetched.
        with self._one_at_a_time:
            self._source.close()
        super().close()
