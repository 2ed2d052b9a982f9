"""Tallies: whatever the split, order and grouping, what numpy says of all activations at once."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_network
import torch
from conftest import TINY_CLASSES, TINY_FLAGS, encode, random_picture, write_tiny_data
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_spec import resolved
from test_topk import make_scores

from exemplar_ray import open_run
from exemplar_ray.data.decode import decode_and_crop
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.parts import Part, candidates_kept, to_files
from exemplar_ray.exemplars.samples import SampledImages, sample_rate
from exemplar_ray.exemplars.tallies import TALLIES
from exemplar_ray.exemplars.tallies.classes import ERROR as CLASS_ERROR
from exemplar_ray.exemplars.tallies.classes import Classes
from exemplar_ray.exemplars.tallies.histogram import QUANTILES, RELATIVE_ERROR, Histogram, bin_of, edges_of, middle_of
from exemplar_ray.exemplars.tallies.moments import Moments
from exemplar_ray.exemplars.tallies.spectrum import UNIT, Spectrum
from exemplar_ray.exemplars.topk import BOTTOM, TOP, merge

activations = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-45, -3e38]),
    st.floats(width=32, min_value=-1e6, max_value=1e6),
)


@st.composite
def splits(draw):
    """Activations [images, channels] and how they are split into shards."""
    channels = draw(st.integers(1, 3))
    images = draw(st.integers(0, 40))
    values = draw(st.lists(activations, min_size=images * channels, max_size=images * channels))
    cuts = draw(st.lists(st.integers(0, images), max_size=4).map(sorted))
    return np.array(values, np.float32).reshape(images, channels), cuts


def labels_of(values):
    """Some labels, some of them missing, that depend on nothing but the row's place."""
    return np.arange(len(values)) * 7 % 5 - 1


def tallied(tally, values, labels=None):
    result = tally.empty(values.shape[1])
    result.update(values, labels_of(values) if labels is None else labels)
    return result


def merged_in_any_way(tally, values, cuts, data):
    pool = [tallied(tally, piece) for piece in np.split(values, cuts)] + [tally.empty(values.shape[1])]
    pool = [tally.from_table(one.to_table()) for one in pool]
    while len(pool) > 1:
        pool = data.draw(st.permutations(pool), label="order")
        pool = [pool[0].merge(pool[1]), *pool[2:]]
    return pool[0]


@settings(max_examples=200, deadline=None)
@given(splits(), st.data())
def test_histograms_merge_exactly(split, data):
    values, cuts = split
    merged = merged_in_any_way(Histogram, values, cuts, data)
    assert merged.to_table().equals(tallied(Histogram, values).to_table())
    for channel, column in enumerate(values.T):
        finite = column[np.isfinite(column)]
        expected = dict(zip(*np.unique(bin_of(finite), return_counts=True), strict=True)) if len(finite) else {}
        inside = merged.channel == channel
        assert dict(zip(merged.bin[inside], merged.count[inside], strict=True)) == expected


@settings(max_examples=200, deadline=None)
@given(splits(), st.data())
def test_moments_merge_to_what_numpy_says(split, data):
    values, cuts = split
    columns = merged_in_any_way(Moments, values, cuts, data).columns()
    for channel, column in enumerate(values.T):
        finite = column[np.isfinite(column)].astype(np.float64)
        assert columns["images"][channel] == len(finite)
        if not len(finite):
            assert all(np.isnan(columns[name][channel]) for name in columns if name != "images")
            continue
        scale = np.abs(finite).max()
        assert columns["mean"][channel] == pytest.approx(finite.mean(), rel=1e-9, abs=1e-9 * scale)
        assert columns["variance"][channel] == pytest.approx(finite.var(), rel=1e-9, abs=1e-9 * scale**2)
        assert columns["min"][channel] == finite.min()
        assert columns["max"][channel] == finite.max()
        assert columns["active_fraction"][channel] == (finite > 0).mean()


@settings(max_examples=200, deadline=None)
@given(splits(), st.data())
def test_classes_merge_to_what_numpy_says(split, data):
    values, cuts = split
    labels = labels_of(values)
    pool = [tallied(Classes, v, y) for v, y in zip(np.split(values, cuts), np.split(labels, cuts), strict=True)]
    pool = [Classes.from_table(one.to_table()) for one in pool]
    while len(pool) > 1:
        pool = data.draw(st.permutations(pool), label="order")
        pool = [pool[0].merge(pool[1]), *pool[2:]]
    [merged] = pool
    assert merged.labels.tolist() == sorted(set(labels.tolist()) - {-1})
    for place, label in enumerate(merged.labels):
        for channel, column in enumerate(values[labels == label].T):
            finite = column[np.isfinite(column)].astype(np.float64)
            assert merged.images[place, channel] == len(finite)
            if not len(finite):
                assert np.isnan(merged.mean[place, channel])
                assert merged.maximum[place, channel] == -np.inf
                continue
            everything = values[labels != -1, channel]
            scale = np.abs(everything[np.isfinite(everything)]).max()
            assert abs(merged.mean[place, channel] - finite.mean()) <= CLASS_ERROR * scale + 1e-38
            assert abs(float(merged.maximum[place, channel]) - finite.max()) <= CLASS_ERROR * scale + 1e-38


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
@example([1.0, 2.0 - 2**-20, -3.9999])
def test_class_means_are_stored_to_the_stated_error_and_once_only(values):
    values = np.array(values, np.float32)
    tally = tallied(Classes, values[:, None], np.arange(len(values)))
    stored = Classes.from_table(tally.to_table())
    error = np.abs(stored.mean[:, 0] - values)
    assert (error <= CLASS_ERROR * np.abs(values.astype(np.float64)).max()).all()
    assert (stored.mean[values == 0] == 0).all()
    again = Classes.from_table(stored.to_table())
    assert again.to_table().equals(stored.to_table())


def test_selectivity_is_0_without_preference_and_1_for_a_single_class():
    labels = np.repeat(np.arange(4), 3)
    same, single, half, negative, dead = np.ones(12), labels == 2, 1 + (labels == 1), labels - 1.0, np.zeros(12)
    tally = tallied(Classes, np.stack([same, single, half, negative, dead], axis=1).astype(np.float32), labels)
    selectivity = tally.columns()["selectivity"]
    np.testing.assert_allclose(selectivity, [0, 1, (2 - 1) / (2 + 1), np.nan, np.nan])
    shares = np.array([1, 2, 1, 1]) / 5
    entropy = tally.columns()["class_entropy"]
    np.testing.assert_allclose(entropy, [2, 0, -(shares * np.log2(shares)).sum(), np.nan, np.nan])
    assert np.isnan(tallied(Classes, np.ones((3, 2), np.float32), np.zeros(3, np.int64)).columns()["selectivity"]).all()


@settings(max_examples=200, deadline=None)
@given(splits())
def test_quantiles_are_within_the_stated_error(split):
    values, _ = split
    histogram = tallied(Histogram, values)
    for q in QUANTILES:
        quantiles = histogram.quantile(q)
        for channel, column in enumerate(values.T):
            finite = column[np.isfinite(column)]
            if not len(finite):
                assert np.isnan(quantiles[channel])
                continue
            exact = float(np.quantile(finite, q, method="inverted_cdf"))
            assert abs(float(quantiles[channel]) - exact) <= RELATIVE_ERROR * abs(exact) + 1.2e-38


@settings(max_examples=200, deadline=None)
@given(splits(), activations.filter(np.isfinite))
def test_images_below_are_counted_but_for_those_in_the_same_bin(split, activation):
    values, _ = split
    activation = np.float32(activation)
    channels = np.arange(values.shape[1])
    found = tallied(Histogram, values).count_below(channels, np.full(len(channels), activation))
    for channel, column in enumerate(values.T):
        finite = column[np.isfinite(column)]
        below = bin_of(finite) < bin_of(activation[None])
        same = bin_of(finite) == bin_of(activation[None])
        assert below.sum() <= found[channel] <= below.sum() + same.sum()
        if bin_of(activation[None]) == 0:
            assert found[channel] == below.sum()


@pytest.mark.parametrize("sign", [1, -1])
def test_images_of_one_bin_are_taken_to_be_evenly_spread(sign):
    values = sign * np.linspace(1.001, 1.03, 1000, dtype=np.float32)[:, None]  # a bin is 1 to 1.03125
    assert len(set(bin_of(values[:, 0]).tolist())) == 1
    for activation in np.float32(sign) * np.array([1.005, 1.01, 1.02], np.float32):
        [found] = tallied(Histogram, values).count_below(np.zeros(1, np.int64), activation[None])
        assert abs(found - (values < activation).sum()) < 40


@settings(max_examples=500, deadline=None)
@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_bins_grow_with_activations_and_their_middle_is_near(a, b):
    low, high = bin_of(np.array(sorted([a, b]), np.float32))
    assert low <= high
    assert bin_of(np.array([-a], np.float32))[0] == -bin_of(np.array([a], np.float32))[0]
    middle = float(middle_of(bin_of(np.array([a], np.float32)))[0])
    assert abs(middle - a) <= RELATIVE_ERROR * abs(a) + 1.2e-38


@settings(max_examples=500, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_bin_lies_between_its_edges_and_ends_where_the_next_begins(activation):
    [bin_here] = bins = bin_of(np.array([activation], np.float32))
    [low], [high] = edges_of(bins)
    if bin_here == 0:
        assert (low, high) == (0, 0)
        assert abs(activation) < 1.2e-38
        return
    assert low <= activation <= high
    # Of its edges only the one nearer to 0 belongs to a bin; the outermost bins end with the largest number.
    near, far = (low, high) if activation > 0 else (high, low)
    assert bin_of(np.array([near]))[0] == bin_here
    outermost = abs(far) == np.finfo(np.float32).max
    assert bin_of(np.array([far]))[0] == bin_here + (0 if outermost else np.sign(activation))
    assert high - low <= 2.001 * RELATIVE_ERROR * abs(activation)


@pytest.mark.parametrize("name", TALLIES)
def test_the_tally_of_nothing_changes_nothing_and_every_tally_survives_its_table(name):
    tally = TALLIES[name]
    values = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    one = tallied(tally, values)
    assert tally.empty(4).merge(one).to_table().equals(one.to_table())
    assert one.merge(tally.empty(4)).to_table().equals(one.to_table())
    assert tally.from_table(one.to_table()).to_table().equals(one.to_table())
    assert len(one.to_table()) == 4
    assert all(len(column) == 4 for column in one.columns().values())
    labels = labels_of(values)
    half = tallied(tally, values[:20], labels[:20])
    half.update(values[20:], labels[20:])
    for column, expected in one.columns().items():
        np.testing.assert_allclose(half.columns()[column], expected, rtol=1e-6)


def test_a_part_stays_small():
    """508 channels, 4,357 images of 1,000 classes, all active, every sample: a shard of ImageNet at its worst."""
    random = np.random.default_rng(0)
    spread = np.exp(random.normal(0, 1, 508))
    values = (random.gamma(0.6, 0.4, (4357, 508)) * spread).astype(np.float32)
    spec = resolved(samples=("top", "bottom", "random", "q99", "q95", "q90", "q50"), distinct=True)
    part = Part.empty(spec)
    for tallies in part.tallies.values():
        tallies[0].update(values, random.integers(0, 1000, len(values)))
    image, channel = np.indices(values.shape).reshape(2, -1)
    both = [make_scores(channel, values.reshape(-1), 0, image, ranking=ranking) for ranking in (TOP, BOTTOM)]
    rows = np.arange(round(len(values) * sample_rate(1_281_167, spec.top_k)))
    sampled = SampledImages(np.zeros(len(rows), np.int32), rows, random.random(len(rows)), [values[rows]])
    spectrum = Spectrum(4357, np.round(random.gamma(0.6, 4357, (3, 224, 113)) / UNIT) * UNIT)
    part = replace(part, scores=merge(both, candidates_kept(spec)), sampled=sampled, spectrum=spectrum)
    sizes = {name: len(content) for name, content in to_files(part, spec).items()}
    assert sum(sizes.values()) < 2_300_000, sizes


@pytest.fixture
def run_and_activations(tiny_data, tmp_path, cli, ray_cluster):
    """A run over three layers and two statistics, and every activation of it by hand."""
    flags = [*TINY_FLAGS, "--layer", "conv1", "mixed", "classifier", "--statistic", "mean", "max"]
    assert cli("run", "--data", tiny_data, "--out", tmp_path / "run", *flags)[0] == 0
    network = tiny_network.trained().eval()
    acts = {}
    for layer in ("conv1", "mixed", "classifier"):
        network.get_submodule(layer).register_forward_hook(lambda m, i, o, n=layer: acts.update({n: o[0].double()}))
    preprocess = Preprocess(mean=(117, 117, 117), resize=36, crop=32)
    expected, labels = {}, []
    for path in sorted(tiny_data.glob("*.parquet")):
        table = pq.read_table(path)
        for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
            crop = torch.from_numpy(decode_and_crop(image["bytes"], preprocess).copy())
            with torch.inference_mode():
                network(crop.permute(2, 0, 1)[None].float() - 117)
            for layer, output in acts.items():
                mean, most = (output, output) if output.dim() == 1 else (output.mean((1, 2)), output.amax((1, 2)))
                expected.setdefault((layer, "mean"), []).append(mean.numpy())
                expected.setdefault((layer, "max"), []).append(most.numpy())
            labels.append(label)
    values = {key: np.array(several) for key, several in expected.items()}
    return open_run(str(tmp_path / "run")), values, np.array(labels)


def test_channels_say_what_brute_force_says(run_and_activations):
    run, expected, _ = run_and_activations
    rows = run.channels().to_pylist()
    assert [(row["layer"], row["statistic"], row["channel"]) for row in rows] == [
        (layer, statistic, channel)
        for layer, count in (("classifier", 5), ("conv1", 8), ("mixed", 12))
        for statistic in ("max", "mean")
        for channel in range(count)
    ]
    for row in rows:
        values = expected[row["layer"], row["statistic"]][:, row["channel"]]
        assert row["images"] == 80
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-5)
        assert row["variance"] == pytest.approx(values.var(), rel=1e-3)
        assert row["min"] == pytest.approx(values.min(), rel=1e-4, abs=1e-6)
        assert row["max"] == pytest.approx(values.max(), rel=1e-4, abs=1e-6)
        assert row["active_fraction"] == (values > 0).mean()
        for q in QUANTILES:
            exact = np.quantile(values, q, method="inverted_cdf")
            assert row[f"q{round(100 * q):02d}"] == pytest.approx(exact, rel=RELATIVE_ERROR + 1e-4, abs=1e-6)
    assert run.channels(layer="mixed", channel=3, statistic="max").num_rows == 1


def test_histograms_count_what_brute_force_counts(run_and_activations):
    run, expected, _ = run_and_activations
    rows = run.histograms().to_pylist()
    assert [[row[name] for name in ("layer", "statistic", "channel")] for row in rows] == [
        [row[name] for name in ("layer", "statistic", "channel")] for row in run.channels().to_pylist()
    ]
    for row in rows:
        values = np.sort(expected[row["layer"], row["statistic"]][:, row["channel"]])
        low, high, images = (np.array(row[name]) for name in ("low", "high", "images"))
        assert (images > 0).all()
        assert images.sum() == 80
        assert (high[:-1] <= low[1:]).all()
        # In order, every image lies in the bin that the counts say, but for rounding.
        of_image = np.repeat(np.arange(len(images)), images)
        slack = 1e-4 * np.abs(values) + 1e-6
        assert (low[of_image] - slack <= values).all()
        assert (values <= high[of_image] + slack).all()


def test_a_result_without_histograms_says_how_to_have_them(run_and_activations, tmp_path):
    (tmp_path / "run" / "histograms.parquet").unlink()
    with pytest.raises(UsageError, match="has no histograms.parquet; exemplar-ray merge .*/run writes it"):
        run_and_activations[0].histograms()


def test_classes_say_what_brute_force_says(run_and_activations):
    run, expected, labels = run_and_activations
    rows = run.classes().to_pylist()
    assert len(rows) == 2 * (5 + 8 + 12) * 3
    for row in rows:
        values = expected[row["layer"], row["statistic"]][labels == row["label"], row["channel"]]
        assert row["class_name"] == TINY_CLASSES[row["label"]]
        assert row["images"] == len(values) > 20
        scale = np.abs(values).max()
        assert row["mean"] == pytest.approx(values.mean(), abs=2 * CLASS_ERROR * scale)
        assert row["max"] == pytest.approx(values.max(), abs=2 * CLASS_ERROR * scale)
    keys = [(row["layer"], row["statistic"], row["channel"], row["label"]) for row in rows]
    assert keys == sorted(keys)
    for row in run.channels(layer="mixed").to_pylist():
        means = run.classes(layer="mixed", statistic=row["statistic"], channel=row["channel"])["mean"].to_numpy()
        rest = (means.sum() - means.max()) / 2
        assert row["selectivity"] == pytest.approx((means.max() - rest) / (means.max() + rest))


def test_percentiles_are_the_share_of_images_below(run_and_activations):
    run, expected, _ = run_and_activations
    for row in run.table().to_pylist():
        values = expected[row["layer"], row["statistic"]][:, row["channel"]]
        below = (values < row["activation"] - 1e-5 * abs(row["activation"])).mean()
        assert row["percentile"] == pytest.approx(100 * below)


def test_data_without_labels_has_no_classes_and_no_selectivity(tmp_path, cli, ray_cluster):
    images = [LabelledImage(encode(random_picture(i)), f"{i}.png", None) for i in range(12)]
    write_images(images, str(tmp_path / "data"), None, 5)
    assert cli("run", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY_FLAGS)[0] == 0
    run = open_run(str(tmp_path / "run"))
    assert run.classes().num_rows == 0
    assert np.isnan(run.channels()["selectivity"].to_numpy()).all()
    assert run.channels()["images"].to_pylist() == [12] * 12


def test_a_dead_channels_exemplars_are_at_percentile_0(tmp_path, cli, ray_cluster):
    write_tiny_data(tmp_path / "data", shards=2)
    (tmp_path / "dead.py").write_text(
        "import torch\n"
        "class Dead(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__(); self.layer = torch.nn.Identity()\n"
        "    def forward(self, x):\n"
        "        return self.layer(torch.relu(-x.abs() - 1))\n"
    )
    flags = [*TINY_FLAGS, "--model", f"{tmp_path / 'dead.py'}:Dead", "--layer", "layer"]
    assert cli("run", "--data", tmp_path / "data", "--out", tmp_path / "run", *flags)[0] == 0
    run = open_run(str(tmp_path / "run"))
    assert run.table()["percentile"].to_pylist() == [0.0] * 9
    assert run.channels()["active_fraction"].to_pylist() == [0.0] * 3
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["unsettled"] == []
