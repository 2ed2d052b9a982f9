"""A part: what the scan of one shard leaves behind, and the bytes it is stored as.

A part holds numbers only: the shard's best candidates of every wanted channel, and tallies of
all its images. It is kept apart from `scan` so that the merge can read parts without torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.spec import Layer, ResolvedSpec
from exemplar_ray.tallies import TALLIES, Tally
from exemplar_ray.topk import Scores

# A scan keeps this many candidates a channel beyond K. Gather recomputes all of them, so
# images whose activations the scan's rounding put in the wrong order still come out right.
CANDIDATE_MARGIN = 2

# How the name of the file with the candidates ends, after the shard's number and a dot.
CANDIDATES = "parquet"

SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("statistic", pa.string()),
        ("channel", pa.int32()),
        ("activation", pa.float32()),
        ("row", pa.int64()),
    ]
)


def layers_and_statistics(spec: ResolvedSpec) -> list[tuple[Layer, str]]:
    """Return the (layer, statistic) pairs of a run, in the order of results."""
    return [(layer, statistic) for layer in spec.layers for statistic in spec.statistics]


def series_of(spec: ResolvedSpec) -> list[tuple[str, str]]:
    """Return the same pairs with the layers' names."""
    return [(layer.name, statistic) for layer, statistic in layers_and_statistics(spec)]


def candidates_kept(spec: ResolvedSpec) -> int:
    """Return how many candidates a channel the scan and the merge keep."""
    return spec.top_k + CANDIDATE_MARGIN


@dataclass(frozen=True)
class Part:
    """What is known of some images: one shard's scan, or what several of them merge to."""

    scores: Scores
    """Each channel's best candidates, at most `candidates_kept` of them."""
    tallies: dict[str, list[Tally]]
    """name -> one tally for each of the run's (layer, statistic) pairs."""

    @classmethod
    def empty(cls, spec: ResolvedSpec) -> Part:
        """Return the part of no images."""
        counts = [len(layer.channels) for layer, _ in layers_and_statistics(spec)]
        return cls(Scores.empty(), {name: [tally.empty(n) for n in counts] for name, tally in TALLIES.items()})


def to_files(part: Part, spec: ResolvedSpec) -> dict[str, bytes]:
    """Serialise a part as parquet files; equal parts give equal bytes.

    Returns:
        {how the file's name ends: its content}: the candidates and a file a tally, each with
        the layer, statistic and channel of every row.
    """
    files = {CANDIDATES: _to_parquet(_candidates_table(part.scores, series_of(spec)))}
    for name, tallies in part.tallies.items():
        tables = [
            _with_channel_names(tally.to_table(), layer, statistic)
            for tally, (layer, statistic) in zip(tallies, layers_and_statistics(spec), strict=True)
        ]
        files[f"{name}.parquet"] = _to_parquet(pa.concat_tables(tables))
    return files


def from_files(files: Mapping[str, bytes], shard: int, spec: ResolvedSpec) -> Part:
    """Read a part back.

    Args:
        files: what `to_files` returned.
        shard: the shard's position in the sorted shard list.

    Raises:
        ValueError: the files are not a part of such a run.
    """
    scores = _scores(pq.read_table(pa.BufferReader(files[CANDIDATES])), shard, series_of(spec))
    tallies: dict[str, list[Tally]] = {}
    for name, tally in TALLIES.items():
        table = pq.read_table(pa.BufferReader(files[f"{name}.parquet"])).drop_columns(["layer", "statistic", "channel"])
        tallies[name], start = [], 0
        for layer, _ in layers_and_statistics(spec):
            tallies[name].append(tally.from_table(table.slice(start, len(layer.channels))))
            start += len(layer.channels)
    return Part(scores, tallies)


def channel_names(layer: Layer, statistic: str) -> dict[str, pa.Array]:
    """Return the columns that name every wanted channel of a layer, for tables with a row a channel."""
    count = len(layer.channels)
    return {
        "layer": pa.array([layer.name] * count, pa.string()),
        "statistic": pa.array([statistic] * count, pa.string()),
        "channel": pa.array(layer.channels, pa.int32()),
    }


def _with_channel_names(table: pa.Table, layer: Layer, statistic: str) -> pa.Table:
    return pa.table({**channel_names(layer, statistic), **{name: table[name] for name in table.column_names}})


def _to_parquet(table: pa.Table) -> bytes:
    # Long lists of floats compress better with the bytes of equal weight side by side.
    floats = [f"{field.name}.list.element" for field in table.schema if field.type == pa.list_(pa.float32())]
    others = [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in table.schema]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=[column for column in others if column not in floats],
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
    )
    return sink.getvalue().to_pybytes()


def _candidates_table(scores: Scores, series: Sequence[tuple[str, str]]) -> pa.Table:
    layers, statistics = zip(*series, strict=True)
    which = pa.array(scores.series)
    columns = [pa.array(layers).take(which), pa.array(statistics).take(which)]
    return pa.table([*columns, scores.channel, scores.activation, scores.row], schema=SCHEMA)


def _scores(table: pa.Table, shard: int, series: Sequence[tuple[str, str]]) -> Scores:
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
    """Return the SHA-256 (hex) that a completion record keeps of a part's file."""
    return hashlib.sha256(content).hexdigest()
