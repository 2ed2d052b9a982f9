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

from exemplar_ray.samples import SampledImages
from exemplar_ray.spec import Layer, ResolvedSpec
from exemplar_ray.tallies import TALLIES, Tally
from exemplar_ray.topk import BOTTOM, OF_CLASS, TOP, Scores

_BEFORE_RELU = " before its ReLU"

# A scan keeps this many times K more candidates where near-duplicates may be skipped, at least so many.
_DISTINCT_DEPTH = 5
_LEAST_DISTINCT_DEPTH = 50

# How the names of a part's files end, after the shard's number and a dot.
CANDIDATES = "parquet"
SAMPLED = "sampled.parquet"

_CONTESTS = ["top", "bottom", "class"]

SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("statistic", pa.string()),
        ("contest", pa.string()),
        ("label", pa.int64()),
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


def before_relu(statistic: str) -> str:
    """Name what is above 0 before a layer's ReLU exactly where a statistic is after it."""
    return statistic + _BEFORE_RELU


def candidate_series(spec: ResolvedSpec) -> list[tuple[str, str]]:
    """Return what candidates are ranked by: `series_of`; for screening, then the same before their ReLUs.

    An image that the scan saw leave a channel at 0 may excite it all the same, if it comes near: before the ReLU
    images are told apart that are ties at 0 after it.
    """
    series = series_of(spec)
    return series + [(layer, before_relu(statistic)) for layer, statistic in series] if spec.screened else series


def candidates_kept(spec: ResolvedSpec) -> dict[int, int]:
    """Return how many candidates a channel the scan of a shard keeps, by contest.

    More than K, so that images which the scan's rounding put in the wrong order still come out right.
    """
    kept = {TOP: spec.top_k + spec.margin}
    if spec.distinct:
        kept[TOP] = spec.top_k + max(spec.margin, _DISTINCT_DEPTH * spec.top_k, _LEAST_DISTINCT_DEPTH)
    if spec.wants_bottom:
        kept[BOTTOM] = spec.top_k + spec.margin
    if spec.class_top_k:
        kept[OF_CLASS] = spec.class_top_k
    return kept


@dataclass(frozen=True)
class Part:
    """What is known of some images: one shard's scan, or what several of them merge to."""

    scores: Scores
    """The best candidates of each of `candidate_series`: of a shard, at most `candidates_kept` of each contest."""
    tallies: dict[str, list[Tally]]
    """name -> one tally for each of the run's (layer, statistic) pairs."""
    sampled: SampledImages
    """Images to draw from; none where the run draws no sample."""

    @classmethod
    def empty(cls, spec: ResolvedSpec) -> Part:
        """Return the part of no images."""
        counts = [len(layer.channels) for layer, _ in layers_and_statistics(spec)]
        tallies = {name: [tally.empty(n) for n in counts] for name, tally in TALLIES.items()}
        return cls(Scores.empty(), tallies, SampledImages.empty(counts))


def to_files(part: Part, spec: ResolvedSpec) -> dict[str, bytes]:
    """Serialise a part as parquet files; equal parts give equal bytes.

    Returns:
        {how the file's name ends: its content}: the candidates and a file a tally, each with
        the layer, statistic and channel of every row; and the sampled images, where samples are drawn.
    """
    files = {CANDIDATES: _to_parquet(_candidates_table(part.scores, candidate_series(spec)))}
    for name, tallies in part.tallies.items():
        tables = [
            _with_channel_names(tally.to_table(), layer, statistic)
            for tally, (layer, statistic) in zip(tallies, layers_and_statistics(spec), strict=True)
        ]
        files[f"{name}.parquet"] = _to_parquet(pa.concat_tables(tables))
    if spec.drawn_samples:
        files[SAMPLED] = _to_parquet(_sampled_table(part.sampled, series_of(spec)))
    return files


def from_files(files: Mapping[str, bytes], shard: int, spec: ResolvedSpec) -> Part:
    """Read a part back.

    Args:
        files: what `to_files` returned.
        shard: the shard's position in the sorted shard list.

    Raises:
        ValueError: the files are not a part of such a run.
    """
    scores = _scores(_from_parquet(files[CANDIDATES]), shard, candidate_series(spec))
    counts = [len(layer.channels) for layer, _ in layers_and_statistics(spec)]
    tallies: dict[str, list[Tally]] = {}
    for name, tally in TALLIES.items():
        table = _from_parquet(files[f"{name}.parquet"]).drop_columns(["layer", "statistic", "channel"])
        tallies[name], start = [], 0
        for count in counts:
            tallies[name].append(tally.from_table(table.slice(start, count)))
            start += count
    sampled = SampledImages.empty(counts)
    if spec.drawn_samples:
        sampled = _sampled(_from_parquet(files[SAMPLED]), shard, counts)
    return Part(scores, tallies, sampled)


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
    # Long lists of measurements compress better with the bytes of equal weight side by side.
    measured = (pa.list_(pa.float32()), pa.list_(pa.int16()))
    split = [f"{field.name}.list.element" for field in table.schema if field.type in measured]
    others = [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in table.schema]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=[column for column in others if column not in split],
        column_encoding=dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
    )
    return sink.getvalue().to_pybytes()


def _from_parquet(content: bytes) -> pa.Table:
    # Small files, one after another: a data set's scanner and threads take longer than they save.
    return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)


def _candidates_table(scores: Scores, series: Sequence[tuple[str, str]]) -> pa.Table:
    layers, statistics = zip(*series, strict=True)
    which = pa.array(scores.series)
    columns = [pa.array(layers).take(which), pa.array(statistics).take(which)]
    columns.append(pa.array(_CONTESTS).take(pa.array(scores.contest)))
    return pa.table([*columns, scores.label, scores.channel, scores.activation, scores.row], schema=SCHEMA)


def _scores(table: pa.Table, shard: int, series: Sequence[tuple[str, str]]) -> Scores:
    if table.schema.remove_metadata() != SCHEMA:
        raise ValueError(f"not a part: its columns are {', '.join(table.schema.names)}")
    by_name = {pair: number for number, pair in enumerate(series)}
    encoded = [table[name].combine_chunks().dictionary_encode() for name in ("layer", "statistic", "contest")]
    names = [column.dictionary.to_pylist() for column in encoded]
    layer, statistic, contest = (column.indices.to_numpy() for column in encoded)
    number = np.full((len(names[0]), len(names[1])), -1, np.int32)
    for i, one in enumerate(names[0]):
        for j, other in enumerate(names[1]):
            number[i, j] = by_name.get((one, other), -1)
    which = number[layer, statistic]
    if (which < 0).any():
        i = int(np.argmax(which < 0))
        raise ValueError(f"a part of another run: it has {names[0][layer[i]]}, {names[1][statistic[i]]}")
    return Scores(
        series=which,
        contest=np.array([_CONTESTS.index(name) for name in names[2]], np.int8)[contest],
        label=table["label"].to_numpy(),
        channel=table["channel"].to_numpy(),
        activation=table["activation"].to_numpy(),
        shard=np.full(len(table), shard, dtype=np.int32),
        row=table["row"].to_numpy(),
    )


def _sampled_table(sampled: SampledImages, series: Sequence[tuple[str, str]]) -> pa.Table:
    """Return a row a series and image, its activations as one list."""
    images = len(sampled.row)
    layers, statistics = zip(*series, strict=True)
    of_series = np.repeat(np.arange(len(series)), images)
    lengths = np.repeat([values.shape[1] for values in sampled.activations], images)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    activations = np.concatenate([values.reshape(-1) for values in sampled.activations])
    return pa.table(
        {
            "layer": pa.array(layers).take(pa.array(of_series)),
            "statistic": pa.array(statistics).take(pa.array(of_series)),
            "row": np.tile(sampled.row, len(series)),
            "priority": np.tile(sampled.priority, len(series)),
            "activations": pa.ListArray.from_arrays(offsets, pa.array(activations)),
        }
    )


def _sampled(table: pa.Table, shard: int, counts: Sequence[int]) -> SampledImages:
    images = len(table) // len(counts)
    flat = table["activations"].combine_chunks().flatten().to_numpy()
    ends = np.cumsum([images * count for count in counts])[:-1]
    return SampledImages(
        shard=np.full(images, shard, np.int32),
        row=table["row"].to_numpy()[:images],
        priority=table["priority"].to_numpy()[:images],
        activations=[v.reshape(images, n) for v, n in zip(np.split(flat, ends), counts, strict=True)],
    )


def digest(content: bytes) -> str:
    """Return the SHA-256 (hex) that a completion record keeps of a part's file."""
    return hashlib.sha256(content).hexdigest()
