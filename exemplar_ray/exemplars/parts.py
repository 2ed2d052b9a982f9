"""A part: what the scan of one shard leaves behind, and the bytes it is stored as.

A part holds numbers only: the shard's best candidates of every wanted channel, and tallies of
all its images. It is kept apart from `scan` so that the merge can read parts without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.exemplars.list_columns import lengths_and_values, list_column
from exemplar_ray.exemplars.samples import SampledImages
from exemplar_ray.exemplars.spec import ExemplarsSpec, Readout
from exemplar_ray.exemplars.tallies import TALLIES, Tally, from_tables, tables_of
from exemplar_ray.exemplars.tallies.classes import Classes
from exemplar_ray.exemplars.tallies.histogram import Histogram
from exemplar_ray.exemplars.tallies.moments import Moments
from exemplar_ray.exemplars.tallies.spectrum import Spectrum
from exemplar_ray.exemplars.topk import BOTTOM, NEAR_ZERO, OF_CLASS, TOP, Scores
from exemplar_ray.runs.run_folder import RunFolder

# A scan keeps this many times K more candidates where near-duplicates may be skipped, at least so many.
_DISTINCT_DEPTH = 5
_LEAST_DISTINCT_DEPTH = 50

# How the names of a part's files end, after the shard's number and a dot.
CANDIDATES = "parquet"
SAMPLED = "sampled.parquet"
SPECTRUM = "spectrum.parquet"

# So much of a table stands in one row group, and is in memory at a time; its lists have far fewer than 2**31 values.
_BYTES_PER_GROUP = 64 << 20

# How the file names rankings. `NEAR_ZERO` has no name of its own there: it is the top of a statistic whose name
# ends so.
_STORED_RANKINGS = {"top": TOP, "bottom": BOTTOM, "class": OF_CLASS}
_STORED_NEAR_ZERO = " before its ReLU"

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


def candidates_kept(spec: ExemplarsSpec) -> dict[int, int]:
    """Return how many candidates a channel the scan of a shard keeps, by ranking.

    More than K, so that images which the scan's rounding put in the wrong order still come out right.
    """
    kept = {TOP: spec.top_k + spec.margin}
    if spec.distinct:
        kept[TOP] = spec.top_k + max(spec.margin, _DISTINCT_DEPTH * spec.top_k, _LEAST_DISTINCT_DEPTH)
    if spec.wants_bottom:
        kept[BOTTOM] = spec.top_k + spec.margin
    if spec.class_top_k:
        kept[OF_CLASS] = spec.class_top_k
    if spec.screened:
        # An image that the scan saw leave a channel at 0 may excite it all the same, if it comes near: before the
        # ReLU images are told apart that are ties at 0 after it.
        kept[NEAR_ZERO] = kept[TOP]
    return kept


@dataclass(frozen=True)
class Part:
    """What is known of some images: one shard's scan, or what several of them merge to."""

    scores: Scores
    """The best candidates of each readout: of a shard, at most `candidates_kept` of each ranking."""
    tallies: dict[str, list[Tally]]
    """name -> one tally for each of the run's readouts."""
    sampled: SampledImages
    """Images to draw from; none where the run draws no sample."""
    spectrum: Spectrum | None = field(default=None, kw_only=True)
    """Of the images; None if it was not taken of all of them: older versions took none."""

    @property
    def moments(self) -> list[Moments]:
        """Return the moments of each readout's channels."""
        return cast("list[Moments]", self.tallies["moments"])

    @property
    def histograms(self) -> list[Histogram]:
        """Return the histograms of each readout's channels."""
        return cast("list[Histogram]", self.tallies["histogram"])

    @property
    def classes(self) -> list[Classes]:
        """Return what the classes come to for each readout's channels."""
        return cast("list[Classes]", self.tallies["classes"])

    @classmethod
    def empty(cls, spec: ExemplarsSpec) -> Part:
        """Return the part of no images."""
        counts = _channel_counts(spec)
        tallies = {name: [tally.empty(n) for n in counts] for name, tally in TALLIES.items()}
        spectrum = Spectrum.empty(spec.network.preprocess.crop)
        return cls(Scores.empty(), tallies, SampledImages.empty(counts), spectrum=spectrum)


def _channel_counts(spec: ExemplarsSpec) -> list[int]:
    return [len(layer.channels) for layer, _ in spec.readouts]


def read_parts(
    folder: RunFolder, positions: Sequence[int], fingerprint: str, spec: ExemplarsSpec
) -> Iterator[tuple[int, Part]]:
    """Read committed parts from a run folder, in order, by position.

    Raises:
        TornPartError: a file is gone, or is not the one that was committed.
    """
    for position, files in folder.read_parts(positions, fingerprint):
        yield position, from_files(files, position, spec)


def to_files(part: Part, spec: ExemplarsSpec) -> dict[str, bytes]:
    """Serialise a part as parquet files; equal parts give equal bytes.

    Returns:
        {how the file's name ends: its content}: the candidates and a file a tally, each with
        the layer, statistic and channel of every row; the spectrum, where it was taken; and the sampled images, where
        samples are drawn.
    """
    files = {CANDIDATES: _to_parquet([_candidates_table(part.scores, spec.readouts)])}
    for name, tallies in part.tallies.items():
        files[f"{name}.parquet"] = _to_parquet(_tally_tables(tallies, spec.readouts))
    if part.spectrum is not None:
        files[SPECTRUM] = _to_parquet([part.spectrum.to_table()])
    if spec.drawn_samples:
        files[SAMPLED] = _to_parquet([_sampled_table(part.sampled, spec.readouts)])
    return files


def from_files(files: Mapping[str, bytes], shard: int, spec: ExemplarsSpec) -> Part:
    """Read a part back.

    Args:
        files: what `to_files` returned.
        shard: the shard's position in the sorted shard list.

    Raises:
        ValueError: the files are not a part of such a run.
    """
    scores = _scores(_from_parquet(files[CANDIDATES]), shard, spec.readouts)
    counts = _channel_counts(spec)
    tallies = {name: _tallies(kind, files[f"{name}.parquet"], counts) for name, kind in TALLIES.items()}
    sampled = SampledImages.empty(counts)
    if spec.drawn_samples:
        sampled = _sampled(_from_parquet(files[SAMPLED]), shard, counts)
    spectrum = Spectrum.from_table(_from_parquet(files[SPECTRUM])) if SPECTRUM in files else None
    return Part(scores, tallies, sampled, spectrum=spectrum)


def channel_names(readout: Readout) -> dict[str, pa.Array]:
    """Return the columns that name every wanted channel of a readout, for tables with a row a channel."""
    layer, statistic = readout
    count = len(layer.channels)
    return {
        "layer": pa.array([layer.name] * count, pa.string()),
        "statistic": pa.array([statistic] * count, pa.string()),
        "channel": pa.array(layer.channels, pa.int32()),
    }


def _tally_tables(tallies: Sequence[Tally], readouts: Sequence[Readout]) -> Iterator[pa.Table]:
    """Yield a row a channel of every readout, named, a few channels at a time."""
    for tally, readout in zip(tallies, readouts, strict=True):
        names, start = pa.table(channel_names(readout)), 0
        for table in tables_of(tally):
            named = names.slice(start, len(table))
            columns = {one.column_names[i]: one[i] for one in (named, table) for i in range(one.num_columns)}
            yield pa.table(columns)
            start += len(table)


def _tallies(kind: type[Tally], content: bytes, counts: Sequence[int]) -> list[Tally]:
    """Read the tallies of readouts with so many channels each, a row group at a time."""
    by_readout = groupby(_pieces(_row_groups(content), counts), key=itemgetter(0))
    return [from_tables(kind, (table for _, table in pieces), counts[number]) for number, pieces in by_readout]


def _pieces(tables: Iterable[pa.Table], counts: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
    """Cut tables with a row a channel where readouts end; yield each readout's number and some of its channels."""
    ends = np.cumsum(counts)
    row = 0
    for table in tables:
        start = 0
        while start < len(table):
            number = int(np.searchsorted(ends, row, side="right"))
            count = min(len(table) - start, int(ends[number]) - row)
            yield number, table.slice(start, count).drop_columns(["layer", "statistic", "channel"])
            start, row = start + count, row + count


def _to_parquet(tables: Iterable[pa.Table]) -> bytes:
    sink = pa.BufferOutputStream()
    writer: pq.ParquetWriter | None = None
    for table in _in_groups(tables):
        writer = writer or _writer(sink, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return sink.getvalue().to_pybytes()


def _writer(sink: pa.BufferOutputStream, schema: pa.Schema) -> pq.ParquetWriter:
    # Long lists of measurements compress better where the first bytes of all numbers stand together, then the
    # second bytes, and so on.
    measured = (pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.int16()))
    split = [f"{field.name}.list.element" for field in schema if field.type in measured]
    others = [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in schema]
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=[column for column in others if column not in split],
        column_encoding=dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
    )


def _in_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Put tables together, and cut them, for row groups of `_BYTES_PER_GROUP` each."""
    waiting: list[pa.Table] = []
    for table in tables:
        rows = max(1, len(table) * _BYTES_PER_GROUP // max(1, table.nbytes))
        for start in range(0, len(table), rows) if len(table) > rows else [0]:
            piece = table.slice(start, rows)
            if waiting and sum(one.nbytes for one in waiting) + piece.nbytes > _BYTES_PER_GROUP:
                yield pa.concat_tables(waiting)
                waiting = []
            waiting.append(piece)
    yield pa.concat_tables(waiting)


def _row_groups(content: bytes) -> Iterator[pa.Table]:
    parquet = pq.ParquetFile(pa.BufferReader(content))
    for group in range(parquet.num_row_groups):
        # Small files, one after another: a data set's scanner and threads take longer than they save.
        yield parquet.read_row_group(group, use_threads=False)


def _from_parquet(content: bytes) -> pa.Table:
    groups = list(_row_groups(content))
    return pa.concat_tables(groups) if groups else pq.ParquetFile(pa.BufferReader(content)).read()


def _stored_names(readouts: Sequence[Readout]) -> list[tuple[str, str]]:
    """Return what the file calls the readouts, then what it calls them in `NEAR_ZERO`."""
    keys = [readout.key for readout in readouts]
    return keys + [(layer, statistic + _STORED_NEAR_ZERO) for layer, statistic in keys]


def _candidates_table(scores: Scores, readouts: Sequence[Readout]) -> pa.Table:
    layers, statistics = zip(*_stored_names(readouts), strict=True)
    near_zero = scores.ranking == NEAR_ZERO
    which = pa.array(scores.readout + np.where(near_zero, len(readouts), 0).astype(np.int32))
    rankings = pa.array(list(_STORED_RANKINGS)).take(pa.array(np.where(near_zero, TOP, scores.ranking)))
    columns = [pa.array(layers).take(which), pa.array(statistics).take(which), rankings]
    return pa.table([*columns, scores.label, scores.channel, scores.activation, scores.row], schema=SCHEMA)


def _scores(table: pa.Table, shard: int, readouts: Sequence[Readout]) -> Scores:
    if table.schema.remove_metadata() != SCHEMA:
        raise ValueError(f"not a part: its columns are {', '.join(table.schema.names)}")
    encoded = [table[name].combine_chunks().dictionary_encode() for name in ("layer", "statistic", "contest")]
    layers, statistics, rankings = (column.dictionary.to_pylist() for column in encoded)
    layer, statistic, ranking = (column.indices.to_numpy() for column in encoded)
    by_name = {name: number for number, name in enumerate(_stored_names(readouts))}
    numbers = [[by_name.get((one, other), -1) for other in statistics] for one in layers]
    which = np.array(numbers, np.int32).reshape(len(layers), len(statistics))[layer, statistic]
    if (which < 0).any():
        i = int(np.argmax(which < 0))
        raise ValueError(f"a part of another run: it has {layers[layer[i]]}, {statistics[statistic[i]]}")
    near_zero = which >= len(readouts)
    stored = np.array([_STORED_RANKINGS[name] for name in rankings], np.int8)[ranking]
    return Scores(
        readout=np.where(near_zero, which - len(readouts), which).astype(np.int32),
        ranking=np.where(near_zero, NEAR_ZERO, stored).astype(np.int8),
        label=table["label"].to_numpy(),
        channel=table["channel"].to_numpy(),
        activation=table["activation"].to_numpy(),
        shard=np.full(len(table), shard, dtype=np.int32),
        row=table["row"].to_numpy(),
    )


def _sampled_table(sampled: SampledImages, readouts: Sequence[Readout]) -> pa.Table:
    """Return a row a readout and image, its activations as one list."""
    images = len(sampled.row)
    layers, statistics = zip(*(readout.key for readout in readouts), strict=True)
    of_readout = np.repeat(np.arange(len(readouts)), images)
    lengths = np.repeat([values.shape[1] for values in sampled.activations], images)
    activations = np.concatenate([values.reshape(-1) for values in sampled.activations])
    return pa.table(
        {
            "layer": pa.array(layers).take(pa.array(of_readout)),
            "statistic": pa.array(statistics).take(pa.array(of_readout)),
            "row": np.tile(sampled.row, len(readouts)),
            "priority": np.tile(sampled.priority, len(readouts)),
            "activations": list_column(lengths, activations),
        }
    )


def _sampled(table: pa.Table, shard: int, counts: Sequence[int]) -> SampledImages:
    images = len(table) // len(counts)
    _, flat = lengths_and_values(table["activations"])
    ends = np.cumsum([images * count for count in counts])[:-1]
    return SampledImages(
        shard=np.full(images, shard, np.int32),
        row=table["row"].to_numpy()[:images],
        priority=table["priority"].to_numpy()[:images],
        activations=[v.reshape(images, n) for v, n in zip(np.split(flat, ends), counts, strict=True)],
    )
