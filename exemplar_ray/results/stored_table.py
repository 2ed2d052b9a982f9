"""A table of a run as parquet stores it: what its statistics tell, and images that stand once in a row group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.exemplars.tables.image_writer import IMAGE

_IMAGE_BYTES = "image.bytes"
# Bytes.
_MOST_OF_A_NUMBER, _MOST_OF_HEADERS = 8, 4096


def open_table(file: Any) -> pq.ParquetFile:
    """Open one of a run's tables.

    Images that stand in a dictionary are not unpacked when rows are read: a row group may show them very many times.
    `with_plain_images` unpacks those of some rows.
    """
    parquet = pq.ParquetFile(file)
    metadata = parquet.metadata
    at = _index(metadata, _IMAGE_BYTES)
    in_dictionary = at is not None and all(
        _is_looked_up(metadata.row_group(group).column(at)) for group in range(metadata.num_row_groups)
    )
    return pq.ParquetFile(file, metadata=metadata, read_dictionary=[_IMAGE_BYTES]) if in_dictionary else parquet


def _is_looked_up(column: pq.ColumnChunkMetaData) -> bool:
    """Whether all of a column's values stand in its dictionary, so that its data are numbers of these."""
    if not column.has_dictionary_page:
        return False
    data = column.total_compressed_size - (column.data_page_offset - column.dictionary_page_offset)
    return data <= _MOST_OF_A_NUMBER * column.num_values + _MOST_OF_HEADERS


def read_rows(parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Read some row groups of a table that `open_table` opened."""
    if "image" not in columns or not groups:
        return parquet.read_row_groups(groups, columns=columns)
    # pyarrow reads but one dictionary inside a struct at a time.
    return pa.concat_tables([parquet.read_row_group(group, columns=columns) for group in groups])


def with_plain_images(table: pa.Table) -> pa.Table:
    """Return the table with its images' bytes as they are, if it has images."""
    at = table.schema.get_field_index("image")
    kind = table.schema.field(at).type if at >= 0 else None
    if kind is None or not pa.types.is_struct(kind) or not pa.types.is_dictionary(kind.field("bytes").type):
        return table
    field = table.schema.field(at).with_type(IMAGE)
    return table.set_column(at, field, table.column(at).cast(IMAGE))


def statistics_of(parquet: pq.ParquetFile, column: str) -> list[Any]:
    """Return parquet's statistics of a column in each row group; None where there are none."""
    metadata = parquet.metadata
    at = _index(metadata, column)
    if at is None:
        return [None] * metadata.num_row_groups
    return [metadata.row_group(group).column(at).statistics for group in range(metadata.num_row_groups)]


def _index(metadata: pq.FileMetaData, path: str) -> int | None:
    """Return which of parquet's columns has a path; None if there is none."""
    schema = metadata.schema
    return next((i for i in range(metadata.num_columns) if schema.column(i).path == path), None)
