"""What a comparison says of two sets of images: Fréchet distances, channels, classes; of two networks over the same."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import linalg, stats
from test_comparison_neighbours import real_and_generated

from exemplar_ray.comparisons import frechet
from exemplar_ray.comparisons.channels import Histograms, shifts, shifts_of_histograms, shifts_with_intervals
from exemplar_ray.comparisons.classes import class_distances, fidelity, mode_coverage
from exemplar_ray.comparisons.neighbours import nearness
from exemplar_ray.comparisons.resampling import Resampling, few_shards
from exemplar_ray.comparisons.same_images import (
    NONE,
    alike,
    exemplars_in_common,
    matches,
    same_rows,
    strongest,
)
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.list_columns import lengths_and_values, list_column
from exemplar_ray.exemplars.tallies.histogram import Histogram, edges_of
from exemplar_ray.moments import Moments


def normal(seed, points, channels=16):
    return np.random.default_rng(seed).normal(size=(points, channels))


def of_shards(points, shards):
    return [Moments.of(few) for few in np.array_split(points, shards)]


def merged(shards):
    found = Moments.none(len(shards[0].mean))
    for shard in shards:
        found = found.merged(shard)
    return found


# --- Fréchet ---


def test_frechet_distance_is_torch_fidelitys():
    """The figure is of torch-fidelity 0.4.0's `fid_features_to_statistics` and `fid_statistics_to_metric`, given these
    arrays in float64; dgm-eval's `compute_efficient_FD_with_reps` at 74c79f7 gives the same."""
    real, generated = real_and_generated()
    found = frechet.distance(Moments.of(real), Moments.of(generated))
    assert found == pytest.approx(202.07908210522191, rel=1e-6)
    assert frechet.distance(Moments.of(generated), Moments.of(real)) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("points", [3, 9, 17, 500])
def test_frechet_distance_is_scipys(points):
    """By the singular values of one set's inner products with the other: also of fewer points than channels, and where
    some are always 0."""
    mix = normal(5, 16)
    ones, others = normal(0, points) @ mix, 2 * normal(1, 3 * points) @ mix + 1
    ones[:, 3] = others[:, 3] = others[:, 4] = 0
    first, second = ((of - of.mean(axis=0)) / np.sqrt(len(of) - 1) for of in (ones, others))
    apart = ones.mean(axis=0) - others.mean(axis=0)
    expected = apart @ apart + (first**2).sum() + (second**2).sum() - 2 * linalg.svdvals(first @ second.T).sum()
    for pair in ((ones, others), (others, ones)):
        assert frechet.distance(*map(Moments.of, pair)) == pytest.approx(expected, rel=1e-10)
    nothing = Moments.of(np.zeros((5, 16)))
    assert frechet.distance(nothing, nothing) == 0
    assert frechet.distance(nothing, Moments.of(others)) == pytest.approx(
        (others.mean(axis=0) ** 2).sum() + (second**2).sum(), rel=1e-12
    )


def test_frechet_distance_of_normal_distributions_is_the_formulas():
    """Independent channels: the means' differences squared and the standard deviations' differences squared."""
    mean, scale = np.arange(6) / 3, np.arange(1, 7)
    one = Moments(1001, np.zeros(6), np.eye(6) * 1000)
    other = Moments(11, mean, np.diag(scale**2) * 10.0)
    assert frechet.distance(one, other) == pytest.approx((mean**2).sum() + ((scale - 1) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("points", [3, 100, 4000])
def test_a_set_is_at_distance_0_from_itself(points):
    """Exactly, in whatever order its shards come, and of fewer points than channels."""
    of = normal(0, points, 60) @ normal(1, 60, 60) * 1e3 + 1e4
    whole = Moments.of(of)
    assert frechet.distance(whole, whole) == 0
    assert frechet.distance(whole, merged(of_shards(of, 3)[::-1])) == 0
    assert frechet.distance(whole, Moments.of(of[np.random.default_rng(0).permutation(points)])) == 0
    wider = of.mean(axis=0) + 1.0001 * (of - of.mean(axis=0))
    assert frechet.distance(whole, Moments.of(wider)) == pytest.approx(1e-8 * np.trace(whole.covariance), rel=1e-3)
    moved = of + 1e-6
    assert frechet.distance(whole, Moments.of(moved)) == pytest.approx(60e-12, rel=1e-3)


def test_frechet_distance_grows_with_what_is_done():
    of = normal(0, 2000)
    found = [frechet.distance(Moments.of(of), Moments.of(of + s * normal(2, 2000))) for s in (0, 0.01, 0.1, 0.5, 1)]
    assert found == sorted(found)
    assert found[0] == 0
    assert found[1] > 0


def test_infinitely_many_points():
    """The bias of few points goes, and seeds give the same again."""
    true = Moments(10**9, np.zeros(64), np.eye(64) * (10**9 - 1))
    points = normal(3, 6000, 64)
    found = frechet.at_infinity(true, points, seed=1)
    assert len(found.sizes) == 15
    assert found.sizes[[0, -1]].tolist() == [600, 6000]
    assert found.distances[-1] == pytest.approx(frechet.distance(true, Moments.of(points)), rel=1e-12)
    assert abs(found.distance) < found.distances[-1] / 5
    line = stats.linregress(1 / found.sizes, found.distances)
    assert found.distance == pytest.approx(line.intercept, rel=1e-9)
    assert found.residual < found.distances[-1] / 5
    again, otherwise = (frechet.at_infinity(true, points, seed=seed) for seed in (1, 2))
    assert again.distance == found.distance != otherwise.distance
    few = frechet.at_infinity(true, points[:300], seed=1)
    assert few.sizes[0] == 128
    with pytest.raises(UsageError, match="255 points in 64 channels are too few to extrapolate from; 256 would do"):
        frechet.at_infinity(true, points[:255], seed=1)


def test_interval_of_the_frechet_distance():
    """It holds the value, is as wide as the distance differs between data sets, and seeds give the same again."""
    how = Resampling(seed=4, draws=200)
    ones, others = normal(0, 4000, 5), normal(1, 4000, 5) + 0.3
    value = frechet.distance(Moments.of(ones), Moments.of(others))
    low, high = frechet.interval(of_shards(ones, 40), of_shards(others, 40), how)
    assert low < value < high
    differs = [
        frechet.distance(Moments.of(normal(2 * i, 4000, 5)), Moments.of(normal(2 * i + 1, 4000, 5) + 0.3))
        for i in range(100)
    ]
    assert (high - low) / (4 * np.std(differs)) == pytest.approx(1, abs=0.35)
    assert frechet.interval(of_shards(ones, 40), of_shards(others, 40), how) == (low, high)
    assert frechet.interval(of_shards(ones, 1), of_shards(others, 40), how) is None
    same = frechet.interval(of_shards(ones, 40), of_shards(ones, 40), how)
    assert same[0] == 0
    assert "1 shard in one set" in few_shards(1, 40)
    assert "9 shards in one set" in few_shards(40, 9)
    assert few_shards(40, 10) is None


def test_the_interval_is_no_wider_for_the_bias_of_few_points():
    """In many channels the distance of what is alike is all bias, and hardly differs from one data set to the next."""
    how = Resampling(seed=4, draws=100)
    data = [(normal(2 * i, 2000, 64), normal(2 * i + 1, 2000, 64)) for i in range(40)]
    low, high = frechet.interval(*(of_shards(of, 40) for of in data[0]), how)
    differs = [frechet.distance(*map(Moments.of, pair)) for pair in data]
    assert np.mean(differs) > 20 * np.std(differs)
    assert 0.7 < (high - low) / (4 * np.std(differs)) < 1.6


def test_shards_are_taken_as_often_as_they_are_drawn():
    points = normal(0, 30) + np.arange(30)[:, None]
    shards = np.array_split(points, 4)
    found = frechet.weighted([Moments.of(of) for of in shards], np.array([2, 0, 1, 3]))
    expected = Moments.of(np.concatenate([shards[i] for i in (0, 0, 2, 3, 3, 3)]))
    assert found.count == expected.count
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.scatter, expected.scatter, rtol=1e-12)


def test_frechet_refusals():
    ones = Moments.of(normal(0, 30))
    assert frechet.too_few(16, 30, 16)
    assert frechet.too_few(17, 30, 16) is None
    with pytest.raises(UsageError, match="one set has 16 channels, the other 15: compare the same layer"):
        frechet.distance(ones, Moments.of(normal(0, 30, 15)))
    with pytest.raises(UsageError, match="needs two points in each set; one has 1"):
        frechet.distance(ones, Moments.of(normal(0, 1)))
    with pytest.raises(UsageError, match="the points have NaN or infinity in row 2"):
        frechet.at_infinity(ones, np.where(np.arange(40)[:, None] == 2, np.inf, normal(0, 40)), seed=0)


# --- channels ---


def activations(seed, images):
    """Of channels as they are: some always 0, some below 0, rectified, of other scales, with ties."""
    points = normal(seed, images, 8).astype(np.float32)
    points[:, 0] = 0
    points[:, 1] = np.maximum(points[:, 1] + 0.1 * seed, 0)
    points[:, 2] *= 1e4
    points[:, 3] = np.round(2 * points[:, 3] + seed)
    points[:, 4] = -np.abs(points[:, 4]) - seed
    points[:, 5] *= 1e-4 * (1 + seed)
    points[:, 6] += 3 * seed
    return points


def histograms(points, channels=None):
    """As a run writes them, in the columns of histograms.parquet."""
    tally = Histogram.empty(points.shape[1])
    tally.update(points, np.full(len(points), -1))
    table = tally.to_table()
    lengths, bins = lengths_and_values(table["bins"])
    low, high = edges_of(bins)
    channels = np.arange(points.shape[1], dtype=np.int32) if channels is None else channels
    lists = {"low": list_column(lengths, low), "high": list_column(lengths, high), "images": table["counts"]}
    return pa.table({"channel": channels, **lists})


def test_shifts_are_scipys():
    ones, others = activations(0, 700), activations(1, 450)
    found = shifts(ones, others)
    for channel in range(ones.shape[1]):
        first, second = ones[:, channel], others[:, channel]
        expected = stats.wasserstein_distance(first, second)
        assert found.wasserstein[channel] == pytest.approx(expected, rel=1e-12, abs=1e-300)
        assert found.ks[channel] == pytest.approx(stats.ks_2samp(first, second).statistic, rel=1e-12)
    assert not found.wasserstein_error.any()
    assert not found.ks_error.any()
    assert found.wasserstein[0] == found.ks[0] == 0
    same = shifts(ones, ones[::-1])
    assert not same.wasserstein.any()
    assert not same.ks.any()


def test_shifts_of_histograms_are_scipys_within_the_stated_error():
    ones, others = activations(0, 700), activations(1, 450)
    exact = shifts(ones, others)
    found = shifts_of_histograms([Histograms.of(histograms(ones))], [Histograms.of(histograms(others))])
    assert (np.abs(found.wasserstein - exact.wasserstein) <= found.wasserstein_error + 1e-30).all()
    magnitudes = np.abs(ones).mean(axis=0) + np.abs(others).mean(axis=0)
    assert (found.wasserstein_error <= magnitudes / 64 * (1 + 1e-6)).all()
    assert (found.ks <= exact.ks + 1e-15).all()
    assert (exact.ks <= found.ks + found.ks_error + 1e-15).all()
    assert (found.ks_error[1:] < 0.2).all()
    # A channel that is always 0 lies in a bin of one value.
    assert found.wasserstein[0] == found.wasserstein_error[0] == found.ks[0] == found.ks_error[0] == 0
    assert np.isnan(found.ks_interval).all()
    same = shifts_of_histograms([Histograms.of(histograms(ones))], [Histograms.of(histograms(ones))])
    assert not same.wasserstein.any()
    assert not same.ks.any()


def test_the_error_of_ks_is_met_by_the_worst_of_cases():
    """All images of one set at one end of a bin, all of the other at the other end."""
    low, high = np.float32(1), np.nextafter(np.float32(1 + 1 / 32), np.float32(0))
    found = shifts_of_histograms(
        [Histograms.of(histograms(np.full((5, 1), low)))], [Histograms.of(histograms(np.full((7, 1), high)))]
    )
    assert (found.ks[0], found.ks_error[0]) == (0, 1)
    assert (found.wasserstein[0], found.wasserstein_error[0]) == (0, pytest.approx(1 / 32))


def test_what_lies_in_other_bins_is_seen_whole():
    one, two = (Histograms.of(histograms(np.full((4, 1), value, np.float32))) for value in (1, 2))
    found = shifts_of_histograms([one], [two])
    assert (found.ks[0], found.ks_error[0]) == (1, 0)
    # From the middle of 1 to 1 + 1/32 to the middle of 2 to 2 + 1/16.
    assert found.wasserstein[0] == 1 + 1 / 64


def test_histograms_of_shards_are_those_of_the_whole():
    """However they are divided, and in whatever order channels stand; intervals hold the values."""
    ones, others = activations(0, 700), activations(1, 450)
    turned = histograms(ones[:, ::-1], np.arange(8, dtype=np.int32)[::-1])
    whole = shifts_of_histograms([Histograms.of(turned)], [Histograms.of(histograms(others))])
    shards = [[Histograms.of(histograms(few)) for few in np.array_split(of, 12)] for of in (ones, others)]
    found = shifts_of_histograms(*shards, Resampling(seed=0))
    for name in ("wasserstein", "wasserstein_error", "ks", "ks_error"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-12)
    for value, (low, high) in ((found.wasserstein, found.wasserstein_interval), (found.ks, found.ks_interval)):
        assert (low <= value).all()
        assert (value <= high).all()
        assert (low < high)[1:].all()
    with pytest.raises(UsageError, match="histograms of 8 channels cannot be compared with those of 7 others"):
        shifts_of_histograms([Histograms.of(turned)], [Histograms.of(histograms(others[:, 1:]))])
    with pytest.raises(UsageError, match="a channel occurs twice in the histograms"):
        Histograms.of(pa.concat_tables([turned, turned]))


def test_channels_without_images_have_no_distance():
    ones = activations(0, 20)
    none = ones.copy()
    none[:, 5] = np.nan
    found = shifts_of_histograms([Histograms.of(histograms(none))], [Histograms.of(histograms(ones))])
    assert np.isnan(found.wasserstein).tolist() == [False] * 5 + [True] + [False] * 2


def test_intervals_of_shifts():
    """As wide from the activations as from the histograms, and as wide as data sets differ."""
    generator = np.random.default_rng(0)
    ones, others = generator.normal(3, 1, (2, 4000, 2))
    others = others + 0.2
    numbers = np.repeat(np.arange(40), 100)
    how = Resampling(seed=3, draws=400)
    found = shifts_with_intervals(ones, others, (numbers, numbers[::-1]), how)
    exact = shifts(ones, others)
    assert (found.wasserstein == exact.wasserstein).all()
    binned = shifts_of_histograms(
        *([Histograms.of(histograms(few.astype(np.float32))) for few in np.split(of, 40)] for of in (ones, others)), how
    )
    many = [shifts(generator.normal(3, 1, (4000, 2)), generator.normal(3.2, 1, (4000, 2))) for _ in range(100)]
    for name in ("wasserstein", "ks"):
        low, high = getattr(found, f"{name}_interval")
        value = getattr(found, name)
        assert ((low < value) & (value < high)).all()
        spread = np.std([getattr(one, name) for one in many], axis=0)
        np.testing.assert_allclose((high - low) / (4 * spread), 1, atol=0.35)
        low, high = getattr(binned, f"{name}_interval")
        np.testing.assert_allclose((high - low) / (4 * spread), 1, atol=0.35)
    assert np.isnan(shifts_with_intervals(ones, others, (numbers * 0, numbers), how).ks_interval).all()
    with pytest.raises(UsageError, match="4000 and 4000 points have 3999 and 4000 shards: each needs one"):
        shifts_with_intervals(ones, others, (numbers[1:], numbers), how)
    with pytest.raises(UsageError, match="one set has 2 channels, the other 1"):
        shifts(ones, others[:, :1])


# --- classes ---


def test_classes_lie_where_they_should():
    """Three classes far apart; one of the generated ones lies among another class, one is not made at all."""
    centres = 50 * normal(0, 4, 6)
    labels = np.repeat([0, 1, 2, 3], 30)
    real = centres[labels] + normal(1, 120, 6)
    made = np.repeat([0, 1, 2], [20, 25, 15])
    generated = centres[[0, 1, 1]][made] + normal(2, 60, 6)
    # Nearly all of class 0 lie where they should.
    generated[0] = centres[1]
    found = nearness(real, generated, 5)

    fidelities = fidelity(made, found.generated_to_real.index, labels)
    assert fidelities.labels.tolist() == [0, 1, 2]
    assert fidelities.points.tolist() == [20, 25, 15]
    assert fidelities.right_of_class.tolist() == fidelities.share_of_class.tolist() == [0.95, 1, 0]
    assert fidelities.whole == pytest.approx(44 / 60)
    assert set(fidelities.voted[45:]) == {1}

    modes = mode_coverage(found.covered, labels)
    assert modes.points.tolist() == [30] * 4
    assert (modes.covered > 0).tolist() == [True, True, False, False]
    assert modes.of_classes == 0.5
    assert modes.of_points == found.coverage

    moments = [
        {int(label): Moments.of(of[by == label]) for label in np.unique(by)}
        for of, by in ((real, labels), (generated, made))
    ]
    distances = class_distances(*moments)
    assert [(one.label, one.ones, one.others) for one in distances] == [(0, 30, 20), (1, 30, 25), (2, 30, 15)]
    for one in distances:
        expected = real[labels == one.label].mean(axis=0) - generated[made == one.label].mean(axis=0)
        assert one.centroid == pytest.approx(np.linalg.norm(expected))
        assert one.frechet == frechet.distance(moments[0][one.label], moments[1][one.label])
        assert one.too_few is None
    assert distances[2].centroid > 50 > distances[1].centroid
    few = class_distances(moments[0], {2: Moments.of(generated[:1]), 3: Moments.of(generated[:2])})
    assert np.isnan(few[0].frechet)
    assert not np.isnan(few[1].frechet)
    assert few[1].too_few.startswith("2 points in 6 channels")


def test_votes():
    """Most of the neighbours; of equally many, the class that comes nearest."""
    of_others = np.array([7, 8, 8, 9, 7])
    found = fidelity(np.array([8, 7, 9, 3]), np.array([[0, 1, 2], [0, 1, 3], [3, 0, 1], [0, 4, 1]]), of_others)
    assert found.voted.tolist() == [8, 7, 9, 7]
    np.testing.assert_allclose(found.share, [2 / 3, 1 / 3, 1 / 3, 0])
    assert found.whole == 0.75
    for labels, others, message in (
        ([8, 7, 9], of_others, "3 labels for 4 points"),
        ([8, 7, -1, 3], of_others, "1 points have no label"),
        ([8, 7, 9, 3], of_others[:2], "every point of the other set needs a label"),
    ):
        with pytest.raises(UsageError, match=message):
            fidelity(np.array(labels), np.array([[0, 1], [0, 1], [3, 0], [0, 4]]), others)
    with pytest.raises(UsageError, match="no class is in both sets, of 1 and 1"):
        class_distances({1: Moments.none(2)}, {2: Moments.none(2)})


# --- the same images ---


def test_rows_are_joined_by_their_ids():
    shards, rows = np.repeat(["b", "a", "c"], 4), np.tile([3, 0, 2, 1], 3)
    ones = pa.table({"shard": shards, "row": rows})
    order = np.random.default_rng(0).permutation(12)
    others = ones.take(order)
    found = same_rows(ones, others)
    assert others.take(found).equals(ones)
    assert (
        same_rows(ones, others.set_column(0, "shard", others["shard"].dictionary_encode())).tolist() == found.tolist()
    )
    for changed, message in (
        (ones.slice(1), "1 images are in the first set only, such as shard b, row 3: compare networks over the same"),
        (
            pa.concat_tables([ones, pa.table({"shard": ["d"], "row": [0]})]),
            "1 images are in the second set only, such as",
        ),
        (pa.concat_tables([ones.slice(0, 11), ones.slice(0, 1)]), "shard b, row 3 occurs 2 times"),
        (ones.rename_columns(["shard", "place"]), "named by shard, row in one set and by shard, place in the other"),
    ):
        with pytest.raises(UsageError, match=message):
            same_rows(ones, changed)


def by_inner_products(ones, others):
    """CKA by the images' inner products, with 1 - 1/n outside, and with HSIC as estimated by Song et al., eq. 5."""
    n = len(ones)
    centre = np.eye(n) - 1 / n

    def plain(first, second):
        return np.trace(first @ centre @ second @ centre)

    def unbiased(first, second):
        first, second = first - np.diag(np.diag(first)), second - np.diag(np.diag(second))
        one = np.ones(n)
        return (
            np.trace(first @ second)
            + (one @ first @ one) * (one @ second @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ first @ second @ one)
        )

    first, second = ones @ ones.T, others @ others.T
    return [hsic(first, second) / np.sqrt(hsic(first, first) * hsic(second, second)) for hsic in (plain, unbiased)]


@pytest.mark.parametrize("images", [12, 60, 400])
def test_cka_is_that_of_inner_products(images):
    """Whichever way is less work, of more and of fewer images than channels, far from 0."""
    ones = normal(0, images, 30)
    others = ones[:, :20] @ normal(1, 20, 25) + normal(2, images, 25) + 7
    found = alike(ones, others)
    assert [found.cka, found.debiased] == pytest.approx(by_inner_products(ones, others), rel=1e-9)


def test_cka_of_what_is_and_is_not_alike():
    ones = normal(0, 200, 30).astype(np.float32)
    turn, _ = np.linalg.qr(normal(1, 30, 30))
    same = alike(ones, 5 * ones @ turn + 3)
    assert (same.cka, same.debiased) == pytest.approx((1, 1), rel=1e-6)
    wide = alike(normal(2, 50, 3000), normal(3, 50, 3000))
    assert wide.cka > 0.9
    assert abs(wide.debiased) < 0.1
    with pytest.raises(UsageError, match="the second activations are the same for all images"):
        alike(ones, np.full((200, 3), [0.1, 0.7, 1 / 3]))
    with pytest.raises(UsageError, match="one set has 200 images, the other 199"):
        alike(ones, ones[1:])
    with pytest.raises(UsageError, match="CKA needs four images; there are 3"):
        alike(ones[:3], ones[:3])


def test_matches_of_channels():
    """By rank: a channel is found again after a function that only grows, and a dead one is nobody's match."""
    ones = normal(0, 300, 4)
    ones[:, 2] = 0
    others = np.stack(
        [
            np.exp(ones[:, 3]),
            ones[:, 0] ** 3,
            np.full(300, 7.0),
            ones[:, 1] + 0.1 * normal(1, 300, 1)[:, 0],
            ones[:, 0] + normal(2, 300, 1)[:, 0],
        ],
        axis=1,
    )
    found = matches(ones, others)
    assert found.channel.tolist() == [1, 3, NONE, 0]
    assert found.mutual.tolist() == [True, True, False, True]
    expected = [stats.spearmanr(ones[:, i], others[:, j]).statistic for i, j in ((0, 1), (1, 3), (3, 0))]
    assert found.correlation[[0, 1, 3]] == pytest.approx(expected, rel=1e-12)
    assert np.isnan(found.correlation[2])
    assert matches(others, ones).channel.tolist() == [3, 0, NONE, 1, 0]
    assert matches(others, ones).mutual.tolist() == [True, True, False, True, False]
    assert (matches(ones, np.zeros((300, 2))).channel == NONE).all()
    against = matches(ones[:, :1], np.stack([np.zeros(300), -ones[:, 0]], axis=1))
    assert (against.channel.tolist(), against.correlation.tolist()) == ([1], [pytest.approx(-1)])
    with pytest.raises(UsageError, match="one image ranks nothing"):
        matches(ones[:1], others[:1])


def test_exemplars_in_common():
    points = np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 6.0], [3.0, 1.0]])
    assert strongest(points, 3).tolist() == [[1, 3, 2], [2, 0, 1]]
    with pytest.raises(UsageError, match="there are 4 images, and 5 exemplars were asked for"):
        strongest(points, 5)
    ones = np.array([[1, 3, 2], [4, NONE, NONE], [NONE, NONE, NONE], [5, 6, 7]])
    others = np.array([[2, 1, 9], [4, 8, NONE], [NONE, NONE, NONE], [5, 6, 7]])
    found = exemplars_in_common(ones, others)
    assert found[[0, 1, 3]].tolist() == [2 / 3, 1 / 2, 1]
    assert np.isnan(found[2])
    with pytest.raises(UsageError, match="exemplars of 4 channels cannot be laid beside those of 3"):
        exemplars_in_common(ones, others[:3])
