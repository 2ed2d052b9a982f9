"""Read a finished run: exemplars as tables, their images as PIL, crops cut out. Needs no torch, no Ray.

run = open_run("run")
run.exemplars(layer="mixed4a", channel=476)[0].image
run.table().to_pandas()
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exemplar_ray.check.findings import Findings, read_findings
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.exemplars.plan import CHANNELS, CLASS_EXEMPLARS, CLASSES, EXEMPLARS, HISTOGRAMS, IMAGES, Plan
from exemplar_ray.exemplars.sample_names import TOP
from exemplar_ray.exemplars.summary import Summary
from exemplar_ray.network.layers import format_channels
from exemplar_ray.results.choice import is_among, may_hold, names_of, one_of, values_of
from exemplar_ray.results.circuit import Circuit, Circuits
from exemplar_ray.results.exemplar import Exemplar
from exemplar_ray.results.notebook_html import channel_html, run_html
from exemplar_ray.results.stored_table import open_table, read_rows, statistics_of, with_plain_images
from exemplar_ray.results.visualization import Visualization, Visualizations
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder

# So many images are read at a time where a table is gone through.
_ROWS_PER_BATCH = 256
_MOST_WRITTEN = 5
_BY_CHANNEL = ("exemplars", "histograms", "classes")


class StoredImages:
    """The images that `exemplars.parquet` leaves to `images.parquet`: those of all samples but `top`."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._index: dict[tuple[str, int], tuple[int, int]] | None = None

    def fill(self, rows: Iterable[dict[str, Any]]) -> None:
        """Put in the images that rows of `exemplars.parquet` lack.

        There are none to put in where a run was published without images.
        """
        lacking = [row for row in rows if row["image"] is None]
        if not lacking or not self._folder.exists(IMAGES):
            return
        with self._folder.open(IMAGES) as file:
            parquet = pq.ParquetFile(file)
            index = self._indexed(parquet)
            by_group: dict[int, list[tuple[int, dict[str, Any]]]] = {}
            for row in lacking:
                group, row_in_group = index[row["shard"], row["row"]]
                by_group.setdefault(group, []).append((row_in_group, row))
            for group, wanted in by_group.items():
                images = parquet.read_row_group(group, columns=["image"])["image"]
                for row_in_group, row in wanted:
                    row["image"] = images[row_in_group].as_py()

    def _indexed(self, parquet: pq.ParquetFile) -> dict[tuple[str, int], tuple[int, int]]:
        """Return {(shard, row): (row group, row in it)}."""
        if self._index is None:
            self._index = {}
            for group in range(parquet.num_row_groups):
                names = parquet.read_row_group(group, columns=["shard", "row"]).to_pydict()
                for row_in_group, key in enumerate(zip(names["shard"], names["row"], strict=True)):
                    self._index[key] = group, row_in_group
        return self._index


class Run:
    """A finished run. Make one with `open_run`."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._images = StoredImages(folder)
        self.plan = Plan.read(folder)
        """What was computed, from what."""
        summary = folder.read_json(SUMMARY) or {}
        if summary.get("fingerprint") != self.plan.fingerprint or not folder.exists(EXEMPLARS):
            raise UsageError(f"'{folder.uri}' has no result yet; see exemplar-ray status {folder.uri}")
        self.summary = Summary.from_json(summary)
        """What was searched, and what came of it."""

    @property
    def uri(self) -> str:
        """Where the run folder is, as it was opened."""
        return self._folder.uri

    def channel(self, layer: str, channel: int, statistic: str | None = None) -> Channel:
        """Return what there is of a channel. It shows itself in a notebook.

        Args:
            statistic: the run's first if None.

        Raises:
            UsageError: the run does not have it.
        """
        return Channel(self, layer, channel, statistic)

    @property
    def visualizations(self) -> Visualizations:
        """Its feature visualisations, as they are now."""
        return Visualizations.of_run(self._folder)

    @property
    def circuits(self) -> Circuits:
        """What its channels are made of."""
        return Circuits.of_run(self._folder)

    def _repr_html_(self) -> str:
        return run_html(self.plan, self.summary)

    @property
    def check(self) -> Findings | None:
        """What the last `exemplar-ray check` of it found, or None if it was not checked."""
        return read_findings(self._folder, self.plan.fingerprint)

    @property
    def partial(self) -> str | None:
        """What the result leaves out ("7 of 8 shards"), or None if it is complete."""
        return self.summary.partial

    def table(self, columns: Sequence[str] | None = None, **equal: Any) -> pa.Table:
        """Return exemplars as an Arrow table: `.to_pandas()`, or `polars.from_arrow(...)`.

        Args:
            columns: which columns; None for all but `image`, whose bytes are most of the file.
            equal: values that columns must have, such as layer="mixed4a", channel=476, rank=1; of several
                values, such as channel=[3, 476], any. Lists, ranges, arrays and series will do. None is for rows
                where the column has no value.

        Raises:
            UsageError: there is no such column, a value is not of the column's type, or the run has no such
                channel or rank.
        """
        return self._read(EXEMPLARS, columns, equal, besides=("image",))

    def channels(self, columns: Sequence[str] | None = None, **equal: Any) -> pa.Table:
        """Return what is known of each channel over all images (`channels.parquet`); see `table`."""
        return self._read(CHANNELS, columns, equal)

    def histograms(self, columns: Sequence[str] | None = None, **equal: Any) -> pa.Table:
        """Return the histogram of each channel over all images (`histograms.parquet`); see `table`.

        Raises:
            UsageError: the result was written by a version that kept none.
        """
        if not self.has_histograms:
            raise UsageError(f"this result has no {HISTOGRAMS}; exemplar-ray merge {self._folder.uri} writes it")
        return self._read(HISTOGRAMS, columns, equal)

    @property
    def has_histograms(self) -> bool:
        """Whether the result was written by a version that keeps histograms."""
        return self._folder.exists(HISTOGRAMS)

    def classes(self, columns: Sequence[str] | None = None, **equal: Any) -> pa.Table:
        """Return how much each class excites each channel (`classes.parquet`); see `table`.

        There are no rows where the data set has no labels.
        """
        return self._read(CLASSES, columns, equal)

    def class_exemplars(self, columns: Sequence[str] | None = None, **equal: Any) -> pa.Table:
        """Return the strongest images of each class for each channel (`class_exemplars.parquet`); see `table`.

        Raises:
            UsageError: the run was not asked for them.
        """
        if not self.plan.spec.class_top_k:
            raise UsageError("this run keeps no exemplars of classes; ask for them with --class-top-k")
        return self._read(CLASS_EXEMPLARS, columns, equal)

    def exemplars(self, **equal: Any) -> list[Exemplar]:
        """Return exemplars with their images, by rank within a channel; see `table`."""
        rows = self._read(EXEMPLARS, None, equal).to_pylist()
        self._images.fill(rows)
        return [Exemplar(row) for row in rows]

    def each_channel(
        self, table: str, layer: str, statistic: str, besides: Sequence[str] = ()
    ) -> Iterator[tuple[int, pa.Table]]:
        """Go through one of the run's tables channel by channel, in order. Little of it is in memory at a time.

        Args:
            table: `exemplars`, `histograms` or `classes`.
            besides: columns to leave out.

        Yields:
            (channel, its rows); channels without rows are left out.

        Raises:
            UsageError: there is no such table.
        """
        layer, statistic = one_of("layer", pa.string(), layer), one_of("statistic", pa.string(), statistic)
        left_out = names_of("besides", besides)
        if table not in _BY_CHANNEL or not self._folder.exists(f"{table}.parquet"):
            raise UsageError(f"this run has no table '{table}' of channels; {near_matches(str(table), _BY_CHANNEL)}")
        with self._folder.open(f"{table}.parquet") as file:
            parquet = open_table(file)
            columns = [name for name in parquet.schema_arrow.names if name not in left_out]
            groups = self._groups_with(parquet, {"layer": [layer], "statistic": [statistic]})
            waiting = None
            for batch in _batches(parquet, groups, columns):
                rows = pa.Table.from_batches([batch])
                wanted = pc.and_(pc.equal(rows["layer"], layer), pc.equal(rows["statistic"], statistic))
                # Filtering copies the images, and nearly always all rows are wanted.
                rows = rows if pc.all(wanted).as_py() else rows.filter(wanted)
                if waiting is not None:
                    rows = pa.concat_tables([waiting, rows])
                channels = rows["channel"].to_numpy()
                starts = [0, *(np.flatnonzero(np.diff(channels)) + 1).tolist()]
                for start, end in pairwise(starts):
                    yield int(channels[start]), with_plain_images(rows.slice(start, end - start))
                # The last channel may go on in the next batch.
                waiting = rows.slice(starts[-1])
            if waiting is not None and len(waiting):
                yield waiting["channel"][0].as_py(), with_plain_images(waiting)

    def each_image(self) -> Iterator[dict[str, Any]]:
        """Go through `images.parquet`: {"shard", "row", "image"} of each image that other samples than `top` show."""
        if not self._folder.exists(IMAGES):
            return
        with self._folder.open(IMAGES) as file:
            parquet = pq.ParquetFile(file)
            for batch in _batches(parquet, range(parquet.num_row_groups)):
                yield from batch.to_pylist()

    def _read(
        self, name: str, columns: Sequence[str] | None, equal: dict[str, Any], besides: Sequence[str] = ()
    ) -> pa.Table:
        """Read rows of one of the run's tables; without `columns`, all columns but those in `besides`."""
        with self._folder.open(name) as file:
            parquet = open_table(file)
            schema = parquet.schema_arrow
            wanted = [column for column in schema.names if column not in besides]
            if columns is not None:
                wanted = names_of("columns", columns)
            for column in [*wanted, *equal]:
                if column not in schema.names:
                    raise UsageError(f"{name} has no column '{column}'; {near_matches(column, schema.names)}")
            values = {column: values_of(column, schema.field(column).type, value) for column, value in equal.items()}
            self._refuse_nobodys(name, parquet, values)
            read = list(dict.fromkeys([*wanted, *equal]))
            table = read_rows(parquet, self._groups_with(parquet, values), read)
        for column, asked in values.items():
            table = table.filter(is_among(table[column], asked))
        return with_plain_images(table.select(wanted))

    def _refuse_nobodys(self, name: str, parquet: pq.ParquetFile, values: dict[str, list]) -> None:
        """Refuse values that no row of a table can have, and take a negative label for none.

        Raises:
            UsageError: a value that is not the run's, as the plan and the table's statistics tell.
        """
        spec = self.plan.spec
        if any(label is not None and label < 0 for label in values.get("label", ())):
            values["label"].append(None)
        for column, asked in values.items():
            if None in asked and not any(may_hold(one, asked) for one in statistics_of(parquet, column)):
                raise UsageError(f"no row of {name} is without a {column}; leave {column} out for rows of any {column}")
        layers = [layer for layer in spec.layers if layer.name in values.get("layer", [layer.name])]
        channels = sorted({channel for layer in layers for channel in layer.channels})
        if values.get("channel") and channels and not set(channels) & set(values["channel"]):
            of_layers = f" of {', '.join(layer.name for layer in layers)}" if "layer" in values else ""
            raise UsageError(
                f"this run has no channel {_written(values['channel'])}{of_layers}; it has {format_channels(channels)}"
            )
        ranks = range(1, spec.top_k + 1)
        if name == EXEMPLARS and values.get("rank") and not set(ranks) & set(values["rank"]):
            raise UsageError(f"this run has no rank {_written(values['rank'])}; it has 1-{spec.top_k}")
        for column, known in (("layer", [layer.name for layer in spec.layers]), ("statistic", spec.statistics)):
            for one in values.get(column, ()):
                if one is not None and one not in known:
                    warnings.warn(f"this run has no {column} '{one}'; {near_matches(one, known)}", stacklevel=4)

    def _groups_with(self, parquet: pq.ParquetFile, equal: dict[str, list]) -> list[int]:
        """Return the row groups that can hold the wanted rows, by their statistics."""
        groups = set(range(parquet.num_row_groups))
        for column, values in equal.items():
            groups &= {group for group, one in enumerate(statistics_of(parquet, column)) if may_hold(one, values)}
        return sorted(groups)


class Channel:
    """A channel of a finished run: `exemplars`, `statistics` and `classes`. Shows itself in a notebook.

    Raises:
        UsageError: the run does not have it.
    """

    def __init__(self, run: Run, layer: str, channel: int, statistic: str | None = None) -> None:
        spec = run.plan.spec
        layers = {searched.name: searched for searched in spec.layers}
        layer, channel = one_of("layer", pa.string(), layer), one_of("channel", pa.int64(), channel)
        if layer not in layers:
            raise UsageError(f"this run has no layer '{layer}'; {near_matches(layer, layers)}")
        if channel not in layers[layer].channels:
            channels = format_channels(layers[layer].channels)
            raise UsageError(f"this run has no channel {channel} of {layer}; it has {channels}")
        statistic = spec.statistics[0] if statistic is None else one_of("statistic", pa.string(), statistic)
        if statistic not in spec.statistics:
            raise UsageError(f"this run has no statistic '{statistic}'; {near_matches(statistic, spec.statistics)}")
        self._run = run
        self.layer, self.channel, self.statistic = layer, channel, statistic
        which: dict[str, Any] = {"layer": layer, "statistic": statistic, "channel": channel}
        self.exemplars: list[Exemplar] = run.exemplars(**which)
        """Of all samples, by rank within each; with their pictures."""
        self.statistics: dict[str, Any] = run.channels(**which).to_pylist()[0]
        """Its row of `channels.parquet`."""
        self.classes: pa.Table = run.classes(**which).sort_by([("mean", "descending")])
        """How much each class excites it, the strongest first; no rows without labels."""
        self.visualizations: list[Visualization] = run.visualizations.of_channel(layer, channel, statistic)
        """What `visualize` made of it; nothing where it was not run, or for another statistic."""
        self.circuit: Circuit | None = run.circuits.of_channel(layer, channel)
        """What it is made of; None where `circuits` was not run."""

    def __repr__(self) -> str:
        strongest = [row for row in self.exemplars if row["sample"] == TOP]
        return f"<{self.layer}:{self.channel}, {self.statistic}: {len(strongest)} exemplars>"

    def _repr_html_(self) -> str:
        return channel_html(
            self._run.plan, self._run.summary, self.statistics, self.exemplars, self.classes, self.visualizations
        )


def _batches(
    parquet: pq.ParquetFile, groups: Iterable[int], columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Read row groups in order, a few rows at a time."""
    for group in groups:
        # pyarrow keeps what it has read of all the row groups that one call asks for.
        yield from parquet.iter_batches(_ROWS_PER_BATCH, [group], columns)


def _written(values: Sequence[Any]) -> str:
    """Write values one after another; of many, the first."""
    shown = ", ".join(str(value) for value in values[:_MOST_WRITTEN])
    return f"{shown}, ..." if len(values) > _MOST_WRITTEN else shown


def open_run(run: str | os.PathLike[str]) -> Run:
    """Open a run folder, local or remote.

    Raises:
        UsageError: there is no run, or it has no result yet.
    """
    if not isinstance(run, (str, os.PathLike)):
        raise UsageError(f"a run folder is a path or a URI, not {run!r}")
    return Run(RunFolder(os.fspath(run)))
