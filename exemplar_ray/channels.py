"""What is known of each channel over all images: distribution, classes, percentiles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from exemplar_ray.parts import Part, channel_names, layers_and_statistics, series_of
from exemplar_ray.run_folder import Plan
from exemplar_ray.selection import Tail
from exemplar_ray.spec import ResolvedSpec
from exemplar_ray.tallies.histogram import edges_of
from exemplar_ray.topk import BOTTOM, OF_CLASS, TOP, Scores, rank


def channels_table(plan: Plan, merged: Part, certainty: list[dict[str, np.ndarray]]) -> pa.Table:
    """Return a row a channel, sorted by layer, statistic, channel: the columns of all tallies, and of `certainty`.

    Args:
        certainty: see `selection.Selected`.
    """
    tables = []
    for number, (layer, statistic) in enumerate(layers_and_statistics(plan.spec)):
        columns = channel_names(layer, statistic)
        for tallies in merged.tallies.values():
            columns.update({name: pa.array(values) for name, values in tallies[number].columns().items()})
        columns.update({name: pa.array(values) for name, values in certainty[number].items()})
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def classes_table(plan: Plan, merged: Part) -> pa.Table:
    """Return a row a channel and class, sorted by layer, statistic, channel, label; none without labels."""
    tables = []
    pairs = layers_and_statistics(plan.spec)
    for (layer, statistic), tally in zip(pairs, merged.tallies["classes"], strict=True):
        classes, channels = tally.images.shape
        of_channel = np.repeat(np.arange(channels), classes)
        class_names = [plan.class_labels.class_name(int(label)) for label in tally.labels]
        columns = {
            **{name: values.take(of_channel) for name, values in channel_names(layer, statistic).items()},
            "label": np.tile(tally.labels, channels),
            "class_name": pa.array(class_names * channels, pa.string()),
            "images": tally.images.T.reshape(-1),
            "mean": tally.mean.T.reshape(-1),
            "max": tally.maximum.T.reshape(-1),
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def histograms_table(plan: Plan, merged: Part) -> pa.Table:
    """Return a row a channel, sorted by layer, statistic, channel: `low`, `high` and `images` are lists, an entry a
    bin with images in it, ascending."""
    tables = []
    pairs = layers_and_statistics(plan.spec)
    for (layer, statistic), tally in zip(pairs, merged.tallies["histogram"], strict=True):
        table = tally.to_table()
        bins, images = (table[name].combine_chunks() for name in ("bins", "counts"))
        edges = dict(zip(("low", "high"), edges_of(bins.flatten().to_numpy()), strict=True))
        lists = {name: pa.ListArray.from_arrays(bins.offsets, pa.array(values)) for name, values in edges.items()}
        tables.append(pa.table({**channel_names(layer, statistic), **lists, "images": images}))
    return pa.concat_tables(tables)


def class_exemplars_table(plan: Plan, merged: Part) -> pa.Table:
    """Return the strongest images of each class, sorted by layer, statistic, channel, label, rank."""
    best = merged.scores.take(merged.scores.contest == OF_CLASS)
    order, ranks = rank(best)
    best = best.take(order)
    layers, statistics = zip(*series_of(plan.spec), strict=True)
    series, shard = pa.array(best.series), pa.array(best.shard)
    labels, which = np.unique(best.label, return_inverse=True)
    class_names = pa.array([plan.class_labels.class_name(int(label)) for label in labels], pa.string())
    return pa.table(
        {
            "layer": pa.array(layers, pa.string()).take(series),
            "statistic": pa.array(statistics, pa.string()).take(series),
            "channel": best.channel,
            "label": best.label,
            "class_name": class_names.take(pa.array(which.reshape(-1))),
            "rank": ranks,
            "activation": best.activation,
            "shard": pa.array([shard.name for shard in plan.shards], pa.string()).take(shard),
            "row": best.row,
        }
    )


def percentiles(
    spec: ResolvedSpec, merged: Part, tails: Mapping[tuple[int, int, int], Tail], exemplars: Scores
) -> np.ndarray:
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
    for series, (layer, _) in enumerate(layers_and_statistics(spec)):
        of_series = np.flatnonzero(exemplars.series == series)
        places = np.searchsorted(layer.channels, exemplars.channel[of_series])
        images[of_series] = merged.tallies["moments"][series].images[places]
        below[of_series] = merged.tallies["histogram"][series].count_below(places, exemplars.activation[of_series])
    unknown = Tail(np.empty(0, np.float32), np.inf)
    for i, (series, channel, activation) in enumerate(
        zip(exemplars.series.tolist(), exemplars.channel.tolist(), exemplars.activation.tolist(), strict=True)
    ):
        strongest, weakest = (tails.get((series, contest, channel), unknown) for contest in (TOP, BOTTOM))
        if activation > strongest.beyond:
            not_below = len(strongest.strengths) - np.searchsorted(strongest.strengths, activation, side="left")
            below[i] = images[i] - not_below
        # Among the weakest, those level with the last may be missing: they are not below it.
        elif -activation >= weakest.beyond:
            below[i] = len(weakest.strengths) - np.searchsorted(weakest.strengths, -activation, side="right")
    return 100.0 * below / images
