"""Moments as a table: of one part, and of the whole store. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.moments import Moments

SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("pool", pa.string()),
        ("count", pa.int64()),
        ("mean", pa.list_(pa.float64())),
        ("scatter", pa.list_(pa.float64())),
    ]
)
"""`scatter` is a symmetric matrix: what stands on its diagonal and to the right of it, row by row."""

# A covariance of more channels takes more room than the activations of a shard.
_MOST_CHANNELS = 4096

OfLayers = Mapping[tuple[str, str], Moments]
"""{(layer, pool): its moments}"""


def has_moments(shape: tuple[int, ...]) -> bool:
    """Whether moments are kept of activations of a shape: of pooled ones, unless their channels are very many."""
    return len(shape) == 1 and shape[0] <= _MOST_CHANNELS


def to_parquet(moments: OfLayers) -> bytes:
    """Write moments as a parquet file, whose bytes are the same for the same numbers."""
    columns = {
        "layer": [layer for layer, _ in moments],
        "pool": [pool for _, pool in moments],
        "count": [of.count for of in moments.values()],
        "mean": [of.mean for of in moments.values()],
        "scatter": [of.scatter[np.triu_indices(len(of.mean))] for of in moments.values()],
    }
    file = io.BytesIO()
    # No two numbers are the same: looking for what repeats would take longer than all the rest.
    pq.write_table(pa.table(columns, schema=SCHEMA), file, compression="none", use_dictionary=["layer", "pool"])
    return file.getvalue()


def from_parquet(content: bytes) -> dict[tuple[str, str], Moments]:
    """Read back what `to_parquet` wrote."""
    found = {}
    for row in pq.read_table(pa.BufferReader(content)).to_batches():
        for number in range(len(row)):
            mean = row["mean"][number].values.to_numpy()
            above = np.triu_indices(len(mean))
            scatter = np.empty((len(mean), len(mean)))
            scatter[above] = scatter.T[above] = row["scatter"][number].values.to_numpy()
            key = row["layer"][number].as_py(), row["pool"][number].as_py()
            found[key] = Moments(row["count"][number].as_py(), mean, scatter)
    return found


def merged(ones: OfLayers, others: OfLayers) -> dict[tuple[str, str], Moments]:
    """Merge the moments of two sets of images, layer by layer."""
    return {key: ones[key].merged(of) if key in ones else of for key, of in others.items()}
