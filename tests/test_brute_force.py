"""Every statistic of three layers at once, both networks, against brute force in numpy, float64.

`make test` compares the trained network over 40 of the real images, `make exactness` (which
sets EXEMPLAR_RAY_ALL_IMAGES) both networks over all 800.
"""

import os
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from brute_force import LAYERS, activations
from conftest import SAMPLE, needs_shared
from test_exactness import NETWORKS

from exemplar_ray import open_run
from exemplar_ray.data.shards import imagenet_schema
from exemplar_ray.exemplars.samples import band, priority
from exemplar_ray.exemplars.tallies.classes import ERROR as CLASS_ERROR
from exemplar_ray.exemplars.tallies.histogram import QUANTILES
from exemplar_ray.exemplars.tallies.histogram import RELATIVE_ERROR as QUANTILE_ERROR

pytestmark = [needs_shared, pytest.mark.usefixtures("ray_cluster")]

ALL = bool(os.environ.get("EXEMPLAR_RAY_ALL_IMAGES"))
IMAGES = 800 if ALL else 40
# Uneven, out of the order of the sample's own shards; a class in several of them.
CUTS = (0, 7, 150, 151, 420, 800) if ALL else (0, 7, 8, 40)
CLASSES = 40 if ALL else 12
TOP_K = 5 if ALL else 2
# Float32 rounding, as a share of the largest number that any statistic of the channel takes, before the ReLU or
# after it: what is left of large numbers that cancel is as rough as they are.
ROUNDING = 2e-5


def assert_within(error, allowed):
    assert (np.asarray(error) <= np.broadcast_to(allowed, np.shape(error))).all()


class Truth:
    """What brute force says, and what the run says, of one network."""

    def __init__(self, name, folder):
        tables = [pq.read_table(shard) for shard in sorted(SAMPLE.glob("*.parquet"))]
        rows = [row for table in tables for row in table.to_pylist()][:IMAGES]
        self.labels = np.arange(IMAGES) * 7 % CLASSES
        self.paths = [row["image"]["path"] for row in rows]
        self.priorities = np.array([priority(3, row["image"]["bytes"]) for row in rows])
        for row, label in zip(rows, self.labels.tolist(), strict=True):
            row["label"] = label
        schema = imagenet_schema([f"class {i}" for i in range(CLASSES)])
        (folder / "data").mkdir(parents=True)
        for i, (start, end) in enumerate(pairwise(CUTS)):
            table = pa.Table.from_pylist(rows[start:end], schema=schema)
            pq.write_table(table, folder / "data" / f"part-{i}.parquet", row_group_size=50)
        self.truth = activations(name, sorted((folder / "data").glob("*.parquet")))
        self.run = self.run_it(name, folder)
        self.plan = self.run.plan

    def run_it(self, name, folder):
        from exemplar_ray.cli import main

        layers = [f"{layer}{suffix}" for layer in LAYERS[name] for suffix in ("", "_pre_relu")]
        flags = [*NETWORKS[name], "--layer", *layers, "--statistic", "mean", "max", "center", "--top-k", str(TOP_K)]
        flags += ["--sample", "bottom", "random", "q99", "q90", "q50", "--class-top-k", "2", "--seed", "3"]
        assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *flags]) == 0
        return open_run(str(folder / "run"))

    def pairs(self):
        """Yield ((layer, statistic), float64 [images, channels], rounding [channels])."""
        largest = {}
        for (layer, _), values in self.truth.items():
            base = layer.removesuffix("_pre_relu")
            largest[base] = np.maximum(largest.get(base, 0), np.abs(values).max(axis=0))
        for key, values in self.truth.items():
            yield key, values, ROUNDING * largest[key[0].removesuffix("_pre_relu")]

    def number_of(self, shards, rows):
        """Images' numbers, from their shards' names and rows."""
        starts = {f"part-{i}.parquet": start for i, start in enumerate(CUTS[:-1])}
        return np.array([starts[shard] + row for shard, row in zip(shards, rows, strict=True)])


@pytest.fixture(scope="module", params=NETWORKS if ALL else ["bvlc"])
def both(request, tmp_path_factory, ray_cluster):
    return Truth(request.param, tmp_path_factory.mktemp(request.param))


def test_every_channels_distribution(both):
    channels = both.run.channels().to_pandas().set_index(["layer", "statistic"])
    worst = 0.0
    for key, values, rounding in both.pairs():
        found = channels.loc[key].sort_values("channel")
        assert found["channel"].tolist() == list(range(values.shape[1]))
        assert (found["images"] == IMAGES).all()
        assert_within(np.abs(found["mean"] - values.mean(axis=0)), rounding)
        assert_within(np.abs(found["min"] - values.min(axis=0)), rounding)
        assert_within(np.abs(found["max"] - values.max(axis=0)), rounding)
        spread = values.std(axis=0)
        assert_within(np.abs(found["variance"] - spread**2), 4 * rounding * (spread + rounding))
        # What is within rounding of 0 may count as active or not.
        least, most = (values > rounding).mean(axis=0), (values > -rounding).mean(axis=0)
        assert ((found["active_fraction"] >= least - 1e-12) & (found["active_fraction"] <= most + 1e-12)).all()
        for q in QUANTILES:
            exact = np.quantile(values, q, axis=0, method="inverted_cdf")
            error = np.abs(found[f"q{round(100 * q):02d}"].to_numpy() - exact)
            assert_within(error, QUANTILE_ERROR * np.abs(exact) + 2 * rounding)
            clear = np.abs(exact) > 100 * rounding
            worst = max(worst, (error[clear] / np.abs(exact[clear])).max(initial=0))
    print(f"quantiles: largest relative error {worst:.5f}, stated {QUANTILE_ERROR:.5f}")


def test_every_class_of_every_channel(both):
    channels = both.run.channels().to_pandas().set_index(["layer", "statistic"])
    classes = both.run.classes().to_pandas().set_index(["layer", "statistic"])
    present = np.unique(both.labels)
    for key, values, rounding in both.pairs():
        mean = np.stack([values[both.labels == label].mean(axis=0) for label in present])
        maximum = np.stack([values[both.labels == label].max(axis=0) for label in present])
        found = classes.loc[key].sort_values(["label", "channel"])
        shape = len(present), values.shape[1]
        assert (found["label"].to_numpy().reshape(shape) == present[:, None]).all()
        assert (found["class_name"].to_numpy().reshape(shape)[3] == f"class {present[3]}").all()
        counts = np.bincount(both.labels)[present]
        assert (found["images"].to_numpy().reshape(shape) == counts[:, None]).all()
        # Rounded in each shard's part, by a share of what it has.
        allowed = rounding + CLASS_ERROR * np.abs(values).max(axis=0)
        assert_within(np.abs(found["max"].to_numpy().reshape(shape) - maximum), allowed)
        assert_within(np.abs(found["mean"].to_numpy().reshape(shape) - mean), allowed)
        fit = (mean >= 0).all(axis=0) & (mean.max(axis=0) > 100 * rounding)
        highest = mean.max(axis=0)[fit]
        rest = (mean.sum(axis=0)[fit] - highest) / (len(present) - 1)
        of_channel = channels.loc[key].sort_values("channel")
        selectivity = (highest - rest) / (highest + rest)
        np.testing.assert_allclose(of_channel["selectivity"].to_numpy()[fit], selectivity, atol=2e-3)
        share = mean[:, fit] / mean[:, fit].sum(axis=0)
        entropy = -np.where(share > 0, share * np.log2(np.where(share > 0, share, 1)), 0).sum(axis=0)
        np.testing.assert_allclose(of_channel["class_entropy"].to_numpy()[fit], entropy, atol=1e-2)


def test_the_strongest_of_every_class(both):
    best = both.run.class_exemplars().to_pandas()
    best["number"] = both.number_of(best["shard"], best["row"])
    assert (both.labels[best["number"]] == best["label"]).all()
    best = best.set_index(["layer", "statistic"])
    for key, values, rounding in both.pairs():
        found = best.loc[key].sort_values(["label", "rank", "channel"])
        expected = []
        for label in np.unique(both.labels):
            expected.append(-np.sort(-values[both.labels == label], axis=0)[:2])
        expected = np.concatenate(expected)
        shape = expected.shape
        assert_within(np.abs(found["activation"].to_numpy().reshape(shape) - expected), rounding)
        at = found["number"].to_numpy(), found["channel"].to_numpy()
        assert_within(np.abs(values[at].reshape(shape) - expected), 2 * rounding)


def test_every_sample_of_every_channel(both):
    rows = both.run.table().to_pandas()
    rows["number"] = both.number_of(rows["shard"], rows["row"])
    assert (np.array(both.paths)[rows["number"]] == rows["image_path"]).all()
    rows = rows.set_index(["layer", "statistic", "sample"]).sort_index()
    first = np.argsort(both.priorities)
    for (layer, statistic), values, rounding in both.pairs():
        for sample in ("top", "bottom", "random", "q99", "q90", "q50"):
            found = rows.loc[layer, statistic, sample].sort_values(["rank", "channel"])
            number, channel = found["number"].to_numpy(), found["channel"].to_numpy()
            exact = values[number, channel]
            assert_within(np.abs(found["activation"] - exact), rounding[channel])
            shape = -1, values.shape[1]
            if sample in ("top", "bottom"):
                sign = -1 if sample == "top" else 1
                expected = sign * np.sort(sign * values, axis=0)[:TOP_K]
                assert_within(np.abs(exact.reshape(shape) - expected), 2 * rounding)
                below = (values[:, channel] < exact - 2 * rounding[channel]).mean(axis=0)
                not_above = (values[:, channel] <= exact + 2 * rounding[channel]).mean(axis=0)
                assert (found["percentile"] >= 100 * below - 1e-9).all()
                assert (found["percentile"] <= 100 * not_above + 1e-9).all()
            elif sample == "random":
                assert (number.reshape(shape) == first[:TOP_K, None]).all()
            else:
                start, end = band(int(sample[1:]), IMAGES)
                ascending = np.sort(values, axis=0)
                low, high = ascending[start] - 2 * rounding, ascending[end - 1] + 2 * rounding
                assert ((exact >= low[channel]) & (exact <= high[channel])).all()
                assert len(found) == min(TOP_K, end - start) * values.shape[1]
                order = both.priorities[number].reshape(shape)
                assert (np.diff(order, axis=0) > 0).all()


def test_maps_and_peaks(both):
    rows = both.run.table(layer="mixed4a", statistic=["mean", "max", "center"], sample=["top", "q50"]).to_pandas()
    for statistic, of_statistic in rows.groupby("statistic"):
        maps = np.stack(of_statistic["activation_map"]).astype(np.float64)
        pooled = {"mean": maps.mean(axis=1), "max": maps.max(axis=1), "center": maps[:, 7 * 14 + 7]}[statistic]
        np.testing.assert_allclose(pooled, of_statistic["activation"], rtol=2e-3, atol=1e-3 * np.abs(pooled).max())
        at_peak = maps[np.arange(len(maps)), of_statistic["peak_y"] * 14 + of_statistic["peak_x"]]
        np.testing.assert_array_equal(at_peak, maps.max(axis=1))
