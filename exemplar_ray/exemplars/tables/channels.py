"""What is known of each channel over all images: distribution, classes, percentiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.data.imagenet_names import name_of_synset
from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.exemplars.list_columns import lengths_and_values, list_column
from exemplar_ray.exemplars.parts import Part, channel_names
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.exemplars.rerank.selected import Certainty, Tail, TailKey
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.tallies.histogram import edges_of
from exemplar_ray.exemplars.topk import BOTTOM, OF_CLASS, TOP, Scores, has_label, rank

# pyarrow's own.
_ROWS_PER_GROUP = 1 << 20

_CLASSES_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("statistic", pa.string()),
        ("channel", pa.int32()),
        ("label", pa.int64()),
        ("class_name", pa.string()),
        ("images", pa.int64()),
        ("mean", pa.float64()),
        ("max", pa.float32()),
        ("synset_name", pa.string()),
    ]
)


def channels_table(plan: Plan, merged: Part, certainty: Sequence[Certainty]) -> pa.Table:
    """Return a row a channel, sorted by layer, statistic, channel: the columns of all tallies, and of `certainty`.

    Args:
        certainty: see `selected.Selected`.
    """
    tables = []
    for number, readout in enumerate(plan.spec.readouts):
        columns = channel_names(readout)
        for tallies in merged.tallies.values():
            columns.update({name: pa.array(values) for name, values in tallies[number].columns().items()})
        columns.update({name: pa.array(values) for name, values in certainty[number].columns().items()})
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def write_classes(path: str, plan: Plan, merged: Part) -> None:
    """Write a row a channel and class, sorted by layer, statistic, channel, label; none without labels.

    There may be very many: a row group is in memory at a time.

    Args:
        path: a local file.
    """
    with pq.ParquetWriter(path, _CLASSES_SCHEMA, compression="zstd") as writer:
        waiting = [_CLASSES_SCHEMA.empty_table()]
        for table in classes_tables(plan, merged):
            waiting.append(table)
            if sum(map(len, waiting)) >= _ROWS_PER_GROUP:
                rows = pa.concat_tables(waiting)
                whole = len(rows) - len(rows) % _ROWS_PER_GROUP
                writer.write_table(rows.slice(0, whole), _ROWS_PER_GROUP)
                waiting = [rows.slice(whole)]
        writer.write_table(pa.concat_tables(waiting), _ROWS_PER_GROUP)


def classes_tables(plan: Plan, merged: Part) -> Iterator[pa.Table]:
    """Yield what `write_classes` writes, a few channels at a time."""
    for readout, tally in zip(plan.spec.readouts, merged.classes, strict=True):
        # A negative label is none; parts of older versions may have some.
        known = np.flatnonzero(has_label(tally.labels))
        labels = tally.labels[known]
        class_names, synset_names = _names_of(plan.class_labels, labels)
        for which, block in tally.blocks():
            channels = which.stop - which.start
            of_channel = np.repeat(np.arange(which.start, which.stop), len(labels))
            columns = {
                **{name: values.take(pa.array(of_channel)) for name, values in channel_names(readout).items()},
                "label": np.tile(labels, channels),
                "class_name": class_names.take(pa.array(np.tile(np.arange(len(labels)), channels))),
                **{
                    name: values[known].T.reshape(-1)
                    for name, values in (("images", block.images), ("mean", block.mean), ("max", block.maximum))
                },
                "synset_name": synset_names.take(pa.array(np.tile(np.arange(len(labels)), channels))),
            }
            yield pa.table(columns, schema=_CLASSES_SCHEMA)


def histograms_table(plan: Plan, merged: Part) -> pa.Table:
    """Return a row a channel, sorted by layer, statistic, channel: `low`, `high` and `images` are lists, an entry a
    bin with images in it, ascending."""
    tables = []
    for readout, tally in zip(plan.spec.readouts, merged.histograms, strict=True):
        table = tally.to_table()
        lengths, bins = lengths_and_values(table["bins"])
        edges = zip(("low", "high"), edges_of(bins), strict=True)
        lists = {name: list_column(lengths, values) for name, values in edges}
        tables.append(pa.table({**channel_names(readout), **lists, "images": table["counts"]}))
    return pa.concat_tables(tables)


def class_exemplars_table(plan: Plan, merged: Part) -> pa.Table:
    """Return the strongest images of each class, sorted by layer, statistic, channel, label, rank."""
    # A negative label is none; parts of older versions may have some.
    best = merged.scores.take((merged.scores.ranking == OF_CLASS) & has_label(merged.scores.label))
    order, ranks = rank(best)
    best = best.take(order)
    layers, statistics = zip(*(readout.key for readout in plan.spec.readouts), strict=True)
    readout, shard = pa.array(best.readout), pa.array(best.shard)
    labels, which = np.unique(best.label, return_inverse=True)
    class_names, synset_names = _names_of(plan.class_labels, labels)
    return pa.table(
        {
            "layer": pa.array(layers, pa.string()).take(readout),
            "statistic": pa.array(statistics, pa.string()).take(readout),
            "channel": best.channel,
            "label": best.label,
            "class_name": class_names.take(pa.array(which.reshape(-1))),
            "rank": ranks,
            "activation": best.activation,
            "shard": pa.array([shard.name for shard in plan.shards], pa.string()).take(shard),
            "row": best.row,
            "synset_name": synset_names.take(pa.array(which.reshape(-1))),
        }
    )


def _names_of(labels: ClassLabels, of: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """Return what some classes are called, by the data, and, where it knows their synsets, by people."""
    numbers = of.tolist()
    called = [name_of_synset(labels.synset_id(label, None)) for label in numbers]
    return pa.array(map(labels.class_name, numbers), pa.string()), pa.array(called, pa.string())


def percentiles(spec: ExemplarsSpec, merged: Part, tails: Mapping[TailKey, Tail], exemplars: Scores) -> np.ndarray:
    """Return the share of scored images, 0..100, whose activation is below an exemplar's.

    Exact for an exemplar among its channel's known strongest or weakest: all images beyond it are then known.
    For others it comes from the histogram, in whose bins images are taken to be evenly spread: off by at most
    the share of the images in one bin, and exact again for a dead channel, whose exemplars are at 0.

    Args:
        tails: what is known of every channel's strongest and weakest.
        exemplars: of whom to tell.

    Returns:
        float64 [exemplars].
    """
    below = np.empty(len(exemplars.row))
    images = np.empty(len(exemplars.row), np.int64)
    for number, (layer, _) in enumerate(spec.readouts):
        of_readout = np.flatnonzero(exemplars.readout == number)
        channels = np.searchsorted(layer.channels, exemplars.channel[of_readout])
        images[of_readout] = merged.moments[number].images[channels]
        histogram = merged.histograms[number]
        below[of_readout] = histogram.count_below(channels, exemplars.activation[of_readout])
    unknown = Tail(np.empty(0, np.float32), np.inf)
    for i, (readout, channel, activation) in enumerate(
        zip(exemplars.readout.tolist(), exemplars.channel.tolist(), exemplars.activation.tolist(), strict=True)
    ):
        strongest, weakest = (tails.get(TailKey(readout, ranking, channel), unknown) for ranking in (TOP, BOTTOM))
        if activation > strongest.complete_above:
            not_below = len(strongest.strengths) - np.searchsorted(strongest.strengths, activation, side="left")
            below[i] = images[i] - not_below
        # Ties of the last of the weakest may be missing there: they are not below it.
        elif -activation >= weakest.complete_above:
            below[i] = len(weakest.strengths) - np.searchsorted(weakest.strengths, -activation, side="right")
    return 100.0 * below / images
