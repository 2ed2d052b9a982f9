"""List columns of any length: Arrow's lists have 32-bit offsets, so longer ones are several chunks. Numpy only."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

MOST_VALUES = 2**31 - 1
"""How many values one chunk can hold."""


def list_column(lengths: np.ndarray, values: np.ndarray, null: np.ndarray | None = None) -> pa.ChunkedArray:
    """Return lists that stand one after another in an array of values.

    Args:
        lengths: int [rows]: of each list.
        values: [sum of lengths], any type that Arrow has.
        null: bool [rows]: where there is no list; None if there is one everywhere.

    Raises:
        ValueError: a single list has more than `MOST_VALUES` values.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if len(lengths) and int(np.max(lengths)) > MOST_VALUES:
        raise ValueError(f"a list has more than {MOST_VALUES} values")
    chunks: list[pa.ListArray] = []
    start = 0
    while start < len(lengths) or not chunks:
        end = int(np.searchsorted(offsets, offsets[start] + MOST_VALUES, side="right")) - 1
        within = (offsets[start : end + 1] - offsets[start]).astype(np.int32)
        mask = None if null is None else pa.array(null[start:end])
        chunk_values = pa.array(values[offsets[start] : offsets[end]])
        chunks.append(pa.ListArray.from_arrays(pa.array(within), chunk_values, mask=mask))
        start = end
    return pa.chunked_array(chunks)


def lengths_and_values(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `list_column` was given, of a column without nulls."""
    chunks = [chunk for chunk in column.chunks if len(chunk)] or [column.combine_chunks()]
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    values = [chunk.flatten().to_numpy() for chunk in chunks]
    return _joined(lengths), _joined(values)


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
