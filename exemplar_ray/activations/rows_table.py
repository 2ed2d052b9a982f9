"""A file of a store: rows of one layer and pool, each with its ids.

Activations are a list of a fixed length, without compression, and each row group's lie in one piece: a reader that
knows where may take them as they are, see `results.store`. Any other reads them as it reads parquet.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IDS = pa.schema(
    [
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("image_path", pa.string()),
        ("label", pa.int64()),
        ("synset_id", pa.string()),
        ("class_name", pa.string()),
    ]
)
"""What every row says of its image."""
ACTIVATION = "activation"
_VALUES = f"{ACTIVATION}.list.element"

_MOST_ROWS_A_GROUP, _MOST_BYTES_A_GROUP = 1024, 32 << 20
_ONE_PAGE = 1 << 30


class ScatteredValuesError(RuntimeError):
    """A row group's activations do not lie in one piece."""


def schema_of(shape: tuple[int, ...], dtype: str) -> pa.Schema:
    """Return a file's schema; how the list is to be read is in its metadata."""
    element = pa.field("element", pa.type_for_alias(dtype), nullable=False)
    values = pa.field(ACTIVATION, pa.list_(element, int(np.prod(shape))), nullable=False)
    return pa.schema([*IDS, values], metadata={"exemplar_ray": json.dumps({"shape": list(shape)})})


class RowsWriter:
    """Writes rows to a local file, a row group at a time; a context manager.

    Args:
        path: of the file.
        shape: of a row's activations.
        dtype: a name from `spec.DTYPES`.
        seen: is shown the activations of every row group, [rows, *shape], in order; they are overwritten then.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str, seen: Callable[[np.ndarray], None]) -> None:
        self._path, self._schema, self._seen = path, schema_of(shape, dtype), seen
        row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._values = np.empty((max(1, min(_MOST_ROWS_A_GROUP, _MOST_BYTES_A_GROUP // row_bytes)), *shape), dtype)
        self._ids: list[dict[str, Any]] = []
        self._checksums: list[int] = []
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression={**dict.fromkeys(IDS.names, "zstd"), _VALUES: "none"},
            use_dictionary=IDS.names,
            write_statistics=IDS.names,
            data_page_size=_ONE_PAGE,
        )

    def __enter__(self) -> RowsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, ids: Sequence[dict[str, Any]], values: np.ndarray) -> None:
        """Take in rows.

        Args:
            ids: of each row, see `IDS`.
            values: [rows, *shape] of the file's type.
        """
        first = 0
        while first < len(ids):
            held = len(self._ids)
            until = min(len(ids), first + len(self._values) - held)
            self._values[held : held + until - first] = values[first:until]
            self._ids += ids[first:until]
            first = until
            if len(self._ids) == len(self._values):
                self._write()

    def close(self) -> None:
        """Write what is left, end the file, and see that its activations are where a reader looks for them.

        Raises:
            ScatteredValuesError: they are not.
        """
        if self._ids:
            self._write()
        self._writer.close()
        with open(self._path, "rb") as file:
            for (offset, size), checksum in zip(values_in(pq.read_metadata(self._path)), self._checksums, strict=True):
                file.seek(offset)
                if zlib.crc32(file.read(size)) != checksum:
                    raise ScatteredValuesError(f"{self._path.name}: activations do not lie in one piece")

    def _write(self) -> None:
        values = self._values[: len(self._ids)]
        table = pa.Table.from_pylist(self._ids, schema=IDS)
        listed = pa.FixedSizeListArray.from_arrays(
            pa.array(values.reshape(-1)), type=self._schema.field(ACTIVATION).type
        )
        self._writer.write_table(pa.table([*table.columns, listed], schema=self._schema), row_group_size=len(values))
        self._checksums.append(zlib.crc32(values.data))
        self._ids = []
        self._seen(values)


def values_in(metadata: pq.FileMetaData) -> list[tuple[int, int]]:
    """Return where the activations of each row group are: (offset, bytes). They end their column's only page."""
    column = next(number for number in range(metadata.num_columns) if metadata.schema.column(number).path == _VALUES)
    width = {"FLOAT": 4}.get(metadata.schema.column(column).physical_type, 2)
    places = []
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(column)
        size = chunk.num_values * width
        places.append((chunk.data_page_offset + chunk.total_compressed_size - size, size))
    return places


def read_values(file: BinaryIO, into: np.ndarray) -> bool:
    """Read a file's activations as they lie there, without a copy between.

    Args:
        into: [rows, *shape] of the file's type.

    Returns:
        False where the file has another number of them.

    Raises:
        ConnectionError: it ends early.
    """
    places = values_in(pq.read_metadata(file))
    if sum(size for _, size in places) != into.nbytes:
        return False
    memory, filled = into.reshape(-1).view(np.uint8), 0
    for offset, size in places:
        _read_at(file, offset, memory[filled : filled + size])
        filled += size
    return True


def read_groups(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Yield each row group of a file: the ids of its rows, and their activations, [rows, *shape]."""
    parquet = pq.ParquetFile(file)
    for group, (offset, _) in enumerate(values_in(parquet.metadata)):
        ids = parquet.read_row_group(group, columns=IDS.names)
        values = np.empty((len(ids), *shape), dtype)
        _read_at(file, offset, values.reshape(-1).view(np.uint8))
        yield ids, values


def _read_at(file: BinaryIO, offset: int, into: np.ndarray) -> None:
    file.seek(offset)
    memory, filled = into.data, 0
    while filled < len(memory):
        read = file.readinto(memory[filled:])  # type: ignore[attr-defined]
        if not read:
            raise ConnectionError("a file of activations ends early")
        filled += read
