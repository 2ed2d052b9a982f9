"""Parquet shards, in the layout of `ILSVRC/imagenet-1k` on the Hugging Face Hub.

That is `image: struct<bytes, path>` (a plain binary column is taken too) and, if the data is labelled, `label: int64`
with the class names in the `huggingface` schema metadata. What else is taken, see `columns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.data.columns import (
    FLOAT,
    NO_LABELS,
    TEXT,
    USUAL,
    Chosen,
    Columns,
    class_names,
    describe,
    find_columns,
    image_bytes,
    image_fields,
    image_paths,
    label_kind,
    label_reader,
)
from exemplar_ray.data.footers import open_file, read_footer, read_surely
from exemplar_ray.data.formats.format import Format, Look
from exemplar_ray.data.pieces import first_groups
from exemplar_ray.data.row_groups import RowGroupFile
from exemplar_ray.data.shard import PARQUET, ImageRow, ReadingCost, Shard, ShardReader, few_wanted, only_wanted
from exemplar_ray.data.shard_cache import place_of
from exemplar_ray.errors import ShardError, UsageError

_LABELS_PER_READ = 1 << 16
PATHS_ONLY = (
    "holds paths of images, not their bytes: they are read where the data set was made only; write it anew with the "
    "bytes inside (datasets: embed_external_files; or exemplar-ray shard FOLDER DIR)"
)


class ParquetFormat(Format):
    """See the module."""

    name = PARQUET

    def look_at(self, shard: Shard, chosen: Chosen) -> Look | None:
        """Read a shard's footer, and nothing else."""
        uri = shard.uri
        footer = read_footer(uri, shard.size)
        if footer is None:
            return None
        schema = footer.metadata.schema.to_arrow_schema()
        columns = find_columns(schema, chosen, uri)
        _refuse_paths_only(uri, footer.metadata, image_fields(schema, columns.image) or [])
        label = columns.label_column
        kind = None if label is None else schema.field(label).type
        groups = [footer.metadata.row_group(group).num_rows for group in range(footer.metadata.num_row_groups)]
        return Look(
            uri=uri,
            rows=footer.metadata.num_rows,
            footer=footer.digest,
            columns=columns,
            label_type=kind,
            class_names=class_names(schema, label),
            pieces=1 + len(first_groups(groups)),
        )

    def texts(self, shard: Shard, columns: Columns, most: int) -> set[str]:
        """Read the column of labels."""
        found: set[str] = set()
        for column in _label_batches(shard, columns):
            found.update(filter(None, column.to_pylist()))
            if len(found) > most:
                break
        return found

    def refuse_odd_labels(self, shard: Shard, look: Look) -> None:
        """Refuse labels that are fractions; nothing is read where they cannot be."""
        if look.label_type is None or label_kind(look.label_type) != FLOAT:
            return
        read = label_reader(look.label_type, None)
        for column in _label_batches(shard, look.columns):
            try:
                read(column)
            except ValueError as error:
                raise UsageError(
                    f"'{look.uri}': column '{look.columns.label}' ({look.label_type}): {error}; choose another column "
                    f"with --label-column NAME, or --label-column {NO_LABELS}"
                ) from error

    def open(self, shard: Shard) -> ParquetReader:
        """Open the file, and read its footer."""
        return ParquetReader(shard)

    def open_piece(self, shard: Shard, piece: int) -> ParquetReader:
        """Open the file, and read its footer."""
        return ParquetReader(shard, piece)

    def groups(self, numbers: Sequence[int]) -> str:
        """Name row groups."""
        return f"row group{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"

    def describe(self, columns: Sequence[Columns | None]) -> list[str]:
        """Say which columns are read."""
        return describe(columns)


def _refuse_paths_only(uri: str, metadata: pq.FileMetaData, fields: list[str]) -> None:
    """Refuse a shard of which the footer says that it has paths of images, and not the images.

    Raises:
        UsageError: it is one.
    """
    if len(fields) < 2 or not metadata.num_rows:
        return
    nulls = dict.fromkeys(fields, 0)
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for i in range(row_group.num_columns):
            chunk = row_group.column(i)
            if chunk.path_in_schema in nulls:
                known = chunk.statistics is not None and chunk.statistics.has_null_count
                if not known:
                    return
                nulls[chunk.path_in_schema] += chunk.statistics.null_count
    data, path = fields
    if nulls[data] == metadata.num_rows > nulls[path]:
        raise UsageError(f"'{uri}' {PATHS_ONLY}")


def _label_batches(shard: Shard, columns: Columns) -> list[pa.Array]:
    """Read a shard's labels.

    Raises:
        UsageError: they cannot be read.
    """
    uri = shard.uri

    def read() -> list[pa.Array]:
        with open_file(uri, shard.size) as source:
            file = pq.ParquetFile(source)
            return [batch.column(0) for batch in file.iter_batches(_LABELS_PER_READ, columns=[columns.label])]

    try:
        return read_surely(uri, read)
    except pa.ArrowException as error:
        if columns.texts:
            raise UsageError(f"'{uri}': column '{columns.label}' cannot be read: {error}") from error
        # The shard fails when it is scanned.
        return []


class ParquetReader(ShardReader):
    """Reads a parquet file row group by row group, or by its pages.

    Args:
        piece: `images` reads this piece's rows only; None for all.
    """

    def __init__(self, shard: Shard, piece: int | None = None) -> None:
        self._shard = shard
        self._file = RowGroupFile(shard.name, place_of(shard.uri, shard.size, shard.stamp), shard.size)
        try:
            rows = self._file.metadata.num_rows
            if shard.rows is not None and rows != shard.rows:
                raise ShardError(f"{shard.name} changed: {rows} rows, the shard list says {shard.rows}")
            self._find_columns(self._file.schema)
            self._groups = self._groups_of(piece)
        except BaseException:
            self._file.close()
            raise

    def _find_columns(self, schema: pa.Schema) -> None:
        """Find out what to read.

        Raises:
            ShardError: there are no images where they should be, or labels are none.
        """
        shard = self._shard
        try:
            # One that has been looked at says what is unusual about it.
            looked_at = USUAL if shard.rows is not None else None
            columns = shard.columns or looked_at or find_columns(schema, Chosen(), shard.name)
        except UsageError as error:
            raise ShardError(str(error)) from error
        fields = image_fields(schema, columns.image)
        if fields is None:
            raise ShardError(f"{shard.name} changed: it has no images in column '{columns.image}'")
        self._image, self._image_columns = columns.image, fields
        # A shard that was no parquet file when it was listed is seen here first.
        self._label = columns.label_column if columns.label_column in schema.names else None
        if self._label is None:
            return
        kind = schema.field(self._label).type
        if label_kind(kind) is None or (label_kind(kind) == TEXT and columns.names is None):
            raise ShardError(f"{shard.name}: column '{self._label}' is {kind}; the shard list does not say so")
        self._read_labels = label_reader(kind, columns.names)

    def _groups_of(self, piece: int | None) -> range:
        """Return the row groups of a piece, or all of them.

        Raises:
            ShardError: the shard was listed with another number of pieces.
        """
        groups = self._file.metadata.num_row_groups
        if piece is None:
            return range(groups)
        edges = [0, *first_groups(self._file.rows_of_groups), groups]
        if len(edges) - 1 != self._shard.pieces:
            raise ShardError(
                f"{self._shard.name} changed: its row groups are others than those that were listed; run the same "
                "command again"
            )
        return range(edges[piece], edges[piece + 1])

    @property
    def _row_range(self) -> range:
        """The rows of the row groups that are read."""
        edges = [0, *accumulate(self._file.rows_of_groups)]
        return range(edges[self._groups.start], edges[self._groups.stop])

    @property
    def rows(self) -> int:
        """Return how many rows are wanted; all that the footer says, if there is no choice."""
        read = self._row_range
        if self._shard.chosen is None:
            return len(read)
        first, end = np.searchsorted(self._shard.chosen_rows, (read.start, read.stop))
        return int(end - first)

    @property
    def cuts(self) -> Sequence[int]:
        """Return the rows that pieces begin with, but for the first piece's."""
        if few_wanted(self._shard) is not None or len(self._groups) < self._file.metadata.num_row_groups:
            return ()
        rows = self._file.rows_of_groups
        return [sum(rows[:group]) for group in first_groups(rows)]

    @property
    def footer(self) -> str:
        """Return the SHA-256 (hex) of the footer."""
        return self._file.footer

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def images(self) -> Iterator[ImageRow]:
        """Yield every row that is wanted, in order; `path` may be None."""
        few = few_wanted(self._shard)
        return only_wanted(self._all_images(), self._shard) if few is None else self.select(few)

    def _all_images(self) -> Iterator[ImageRow]:
        first = row = self._row_range.start
        has_images = False
        for batch in self._file.read(self._columns(self._image_columns[:1]), self._groups):
            images = image_bytes(batch[self._image])
            has_images = has_images or any(images)
            for data, label in zip(images, self._labels(batch), strict=True):
                yield ImageRow(row, data, None, label)
                row += 1
        if row > first and not has_images and any(image.path for image in self.select([first])):
            raise ShardError(f"{self._shard.name} {PATHS_ONLY}")

    def paths_and_labels(self) -> Iterator[tuple[list[str | None], list[int | None]]]:
        """Yield the paths and labels of all rows, in order, batch by batch, without reading images."""
        columns = self._columns(self._image_columns[1:])
        if not columns:
            rows = self._file.metadata.num_rows
            yield list[str | None]([None] * rows), list[int | None]([None] * rows)
            return
        for batch in self._file.read(columns):
            paths: list[str | None] = [None] * len(batch)
            if len(self._image_columns) > 1:
                paths = image_paths(batch[self._image])
            yield paths, self._labels(batch)

    @property
    def contents(self) -> list[str] | None:
        """Return what the bytes were that `images` read: an XXH3-128 (hex) of each row group; None if it has
        not read them all, as where few rows are wanted."""
        contents = self._file.contents
        return [contents[group] for group in self._groups] if len(contents) == len(self._groups) else None

    def contents_now(self) -> list[str]:
        """Read the bytes that `images` reads, and return what `contents` would be."""
        return self._file.digests(self._columns(self._image_columns[:1]), self._groups)

    def cost(self) -> ReadingCost:
        """Find out what reading the file takes; its first row is read for that."""
        of_a_row = self._file.cost_of_a_row(self._columns(self._image_columns))
        return ReadingCost(self._file.requests(self._columns(self._image_columns[:1])), *of_a_row)

    def select(self, rows: Iterable[int]) -> Iterator[ImageRow]:
        """Yield the given rows in order, reading only what holds them: pages, where the file has a page index, else
        row groups."""
        wanted = np.unique(np.fromiter(rows, dtype=np.int64))
        at = 0
        for batch, places in self._file.select(self._columns(self._image_columns), wanted):
            picked = _take(batch, places)
            rows_here = wanted[at : at + len(places)].tolist()
            at += len(places)
            images = picked[self._image]
            yield from map(ImageRow, rows_here, image_bytes(images), image_paths(images), self._labels(picked))

    def _columns(self, of_images: list[str]) -> list[str]:
        return [*of_images, *([] if self._label is None else [self._label])]

    def _labels(self, batch: pa.RecordBatch) -> list[int | None]:
        if self._label is None:
            return [None] * len(batch)
        try:
            return self._read_labels(batch[self._label])
        except ValueError as error:
            raise ShardError(f"{self._shard.name}: column '{self._label}': {error}") from error


def _take(batch: pa.RecordBatch, places: np.ndarray) -> pa.RecordBatch:
    """Return rows of a batch; pyarrow has no `take` of views, such as `binary_view`."""
    try:
        return batch.take(pa.array(places))
    except pa.ArrowNotImplementedError:
        columns = [pa.array([column[i].as_py() for i in places.tolist()], column.type) for column in batch.columns]
        return pa.RecordBatch.from_arrays(columns, batch.schema.names)
