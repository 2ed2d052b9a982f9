"""What is known of each channel over all images: `channels.parquet`, `classes.parquet`, percentiles."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from exemplar_ray.parts import Part, channel_names, layers_and_statistics
from exemplar_ray.run_folder import Plan
from exemplar_ray.topk import Scores


def channels_table(plan: Plan, merged: Part) -> pa.Table:
    """Return a row a channel, sorted by layer, statistic, channel: the columns of all tallies."""
    tables = []
    for number, (layer, statistic) in enumerate(layers_and_statistics(plan.spec)):
        columns = channel_names(layer, statistic)
        for tallies in merged.tallies.values():
            columns.update({name: pa.array(values) for name, values in tallies[number].columns().items()})
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


def percentiles(plan: Plan, merged: Part, candidates: Scores, which: np.ndarray) -> np.ndarray:
    """Return the share of scored images, 0..100, whose activation is below an exemplar's.

    Exact where the exemplar is above the weakest candidate of its channel, as all images at or
    above it are then known. Where it is not (a tie that goes on beyond the candidates), images in the
    same bin of the histogram do not count as below; a dead channel's exemplars are at 0.

    Args:
        candidates: all candidates of the run, recomputed.
        which: indices of the exemplars among them.

    Returns:
        float64, as long as `which`.
    """
    places = [
        {channel: place for place, channel in enumerate(layer.channels)}
        for layer, _ in layers_and_statistics(plan.spec)
    ]
    by_channel: dict[tuple[int, int], np.ndarray] = {}
    order = np.lexsort((candidates.activation, candidates.channel, candidates.series))
    keys = np.stack([candidates.series[order], candidates.channel[order]], axis=1)
    for indices in np.split(order, np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1) if len(order) else []:
        first = indices[0]
        key = int(candidates.series[first]), int(candidates.channel[first])
        by_channel[key] = candidates.activation[indices]
    result = np.empty(len(which))
    for i, index in enumerate(which):
        series, channel = int(candidates.series[index]), int(candidates.channel[index])
        place = places[series][channel]
        images = int(merged.tallies["moments"][series].images[place])
        known = by_channel[series, channel]
        activation = candidates.activation[index]
        if activation > known[0] or len(known) == images:
            below = images - (len(known) - np.searchsorted(known, activation, side="left"))
        else:
            below = merged.tallies["histogram"][series].count_below(place, activation)
        result[i] = 100.0 * below / images
    return result
