"""A part: what the scan of one shard leaves behind, and the bytes it is stored as.

A part holds numbers only, the shard's best candidates of every wanted channel. It is kept
apart from `scan` so that the merge can read parts without torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.spec import ResolvedSpec
from exemplar_ray.topk import Scores

# A scan keeps this many candidates a channel beyond K. Gather recomputes all of them, so
# images whose activations the scan's rounding put in the wrong order still come out right.
CANDIDATE_MARGIN = 2

SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("statistic", pa.string()),
        ("channel", pa.int32()),
        ("activation", pa.float32()),
        ("row", pa.int64()),
    ]
)


def series_of(spec: ResolvedSpec) -> list[tuple[str, str]]:
    """Return the (layer, statistic) pairs of a run, in the order of results."""
    return [(layer.name, statistic) for layer in spec.layers for statistic in spec.statistics]


def candidates_kept(spec: ResolvedSpec) -> int:
    """Return how many candidates a channel the scan and the merge keep."""
    return spec.top_k + CANDIDATE_MARGIN


def to_bytes(scores: Scores, series: Sequence[tuple[str, str]]) -> bytes:
    """Serialise one shard's scores as parquet; equal scores give equal bytes."""
    layers, statistics = zip(*series, strict=True)
    which = pa.array(scores.series)
    table = pa.table(
        [
            pa.array(layers).take(which),
            pa.array(statistics).take(which),
            scores.channel,
            scores.activation,
            scores.row,
        ],
        schema=SCHEMA,
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def from_bytes(content: bytes, shard: int, series: Sequence[tuple[str, str]]) -> Scores:
    """Read a part back.

    Args:
        content: what `to_bytes` returned.
        shard: the shard's position in the sorted shard list.
        series: the run's (layer, statistic) pairs.

    Raises:
        ValueError: the bytes are not a part of such a run.
    """
    table = pq.read_table(pa.BufferReader(content))
    if table.schema.remove_metadata() != SCHEMA:
        raise ValueError(f"not a part: its columns are {', '.join(table.schema.names)}")
    number = {pair: i for i, pair in enumerate(series)}
    pairs = zip(table["layer"].to_pylist(), table["statistic"].to_pylist(), strict=True)
    try:
        which = np.fromiter((number[pair] for pair in pairs), dtype=np.int32, count=len(table))
    except KeyError as error:
        raise ValueError(f"a part of another run: it has {error.args[0]}") from error
    return Scores(
        series=which,
        channel=table["channel"].to_numpy(),
        activation=table["activation"].to_numpy(),
        shard=np.full(len(table), shard, dtype=np.int32),
        row=table["row"].to_numpy(),
    )


def digest(content: bytes) -> str:
    """Return the SHA-256 (hex) that a completion record keeps of its part."""
    return hashlib.sha256(content).hexdigest()
