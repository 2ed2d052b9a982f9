"""Runs, and a run and a store: what can be compared without the activation of every image.

Of two sets of images: the channels' distributions, by histograms in the bins that all runs share, shard by shard, of a
run's parts or of a store. Of two networks: the channels' exemplars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exemplar_ray.compare.networks import compared_runs
from exemplar_ray.compare.options import CompareOptions
from exemplar_ray.compare.points import NO_LABEL, pointed
from exemplar_ray.compare.sets import channels_table, of_all_channels
from exemplar_ray.compare.sides import Readout, Side
from exemplar_ray.compare.spec import SETS, A, Names, Piece
from exemplar_ray.compare.strongest import as_numbers, exemplars_of, exemplars_of_run
from exemplar_ray.compare.tables import CHANNELS, EXEMPLARS, LAYERS, SCHEMAS
from exemplar_ray.comparisons.channels import Histograms, shifts_of_histograms
from exemplar_ray.comparisons.resampling import Resampling, few_shards
from exemplar_ray.exemplars.tallies.histogram import Histogram, edges_of

_PART = "histogram.parquet"


@dataclass(frozen=True, eq=False)
class Binned:
    """A layer's histograms.

    Attributes:
        shards: of each shard; of the whole in one where `lacking` says why.
        lacking: why there are none of shards.
    """

    shards: list[Histograms]
    lacking: str | None = None


def binned_sets(sides: tuple[Side, Side], piece: Piece, options: CompareOptions) -> dict[str, pa.Table]:
    """Compare two sets of images in a layer, of which at least one is a run's."""
    channels = sides[0].layer(piece.layer).channels
    of_a, of_b = (_binned(side, readout) for side, readout in zip(sides, piece.readouts, strict=True))
    found = shifts_of_histograms(of_a.shards, of_b.shards, Resampling(options.seed, options.draws))
    # All in bins of one value, the same one.
    constant = (found.wasserstein_error == 0) & (found.ks == 0)
    warnings = [f"{side.letter}: {of.lacking}" for side, of in zip(sides, (of_a, of_b), strict=True) if of.lacking]
    if few := few_shards(len(of_a.shards), len(of_b.shards)):
        warnings.append(few)
    warnings.append("no Fréchet distance, neighbours and classes: these take a store of activations of both sets")
    named = piece.readouts[0]._asdict()
    layer = {
        **named,
        "channels": len(channels),
        "images_a": sides[0].count,
        "images_b": sides[1].count,
        "shards_a": len(of_a.shards),
        "shards_b": len(of_b.shards),
        **of_all_channels(found, constant),
        "warnings": warnings,
    }
    schemas = SCHEMAS[SETS]
    exemplars = [_exemplars(side, piece.names, options.exemplars) for side in sides]
    return {
        LAYERS: pa.Table.from_pylist([layer], schema=schemas[LAYERS]),
        CHANNELS: channels_table(found, channels, named, constant),
        EXEMPLARS: pa.concat_tables(exemplars),
    }


def binned_networks(sides: tuple[Side, Side], piece: Piece, options: CompareOptions) -> dict[str, pa.Table]:
    """Compare the exemplars of two networks' layer, of which at least one is a run's."""
    k = min([options.exemplars, sides[0].count, *(most for side in sides if (most := side.most_exemplars))])
    channels = sides[0].layer(piece.layer).channels
    exemplars = [_exemplars(side, piece.names, k) for side in sides]
    return compared_runs(exemplars, as_numbers(exemplars, [channels, channels], k), piece, channels, sides[0].count)


def _exemplars(side: Side, names: Names, k: int) -> pa.Table:
    if side.run is not None:
        return exemplars_of_run(side.run, side.letter, names, k)
    assert side.store is not None
    layer = names.layer if side.letter == A else names.other_layer
    points = pointed(side.store, Readout(layer, names.pool))
    return exemplars_of(points, side.letter, side.layer(layer).channels, names, k)


def _binned(side: Side, readout: Readout) -> Binned:
    if side.store is None:
        return _of_run(side, readout)
    points = pointed(side.store, readout)
    found = []
    for shard in range(points.shard_count):
        of_shard = points.points[points.shards == shard]
        tally = Histogram.empty(of_shard.shape[1])
        tally.update(of_shard, np.full(len(of_shard), NO_LABEL))
        found.append(_histograms(tally, side, readout))
    return Binned(found)


def _of_run(side: Side, readout: Readout) -> Binned:
    assert side.run is not None
    whole = Histograms.of(side.run.histograms(layer=readout.layer, statistic=readout.pool))
    plan = side.run.plan
    positions = list(side.folder.state(plan.manifest()).completed)
    found = []
    for _, files in side.folder.read_parts(positions, plan.fingerprint, {_PART}):
        rows = pq.read_table(pa.BufferReader(files[_PART]))
        of_layer = pc.and_(pc.equal(rows["layer"], readout.layer), pc.equal(rows["statistic"], readout.pool))
        found.append(_histograms(Histogram.from_table(rows.filter(of_layer)), side, readout))
    if sum(int(of.images.sum()) for of in found) != int(whole.images.sum()):
        return Binned([whole], "the parts are not those of the result, so that intervals cannot be drawn from them")
    return Binned(found)


def _histograms(tally: Histogram, side: Side, readout: Readout) -> Histograms:
    low, high = (edges.astype(np.float64) for edges in edges_of(tally.bin))
    channels = np.asarray(side.layer(readout.layer).channels, np.int64)
    return Histograms(channels, tally.channel.astype(np.int64), low, high, tally.count)
