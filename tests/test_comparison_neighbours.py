"""Precision, recall, density, coverage and the clipped forms: what measuring every pair of points gives, exactly."""

import itertools

import numpy as np
import pytest

from exemplar_ray.comparisons import points, search
from exemplar_ray.comparisons.neighbours import _Distinct, nearest_others, nearness, share_of_good
from exemplar_ray.errors import UsageError

NUMBERS = ("precision", "recall", "density", "coverage", "clipped_density", "clipped_coverage")


def normal(seed, points, channels=24):
    return np.random.default_rng(seed).normal(size=(points, channels))


def distances(ones, others):
    """Of every pair, by differences."""
    apart = ones.astype(np.float64)[:, None] - others.astype(np.float64)[None]
    return np.sqrt((apart**2).sum(axis=2))


def all_pairs(real, generated, k):
    """The numbers by their definitions. Precision, recall, density and coverage are as in `prdc.compute_prdc` 0.2
    (MIT licence, Copyright (c) 2020-present NAVER Corp.), but that precision and recall count what lies on the surface,
    as torch-fidelity 0.4.0 does."""
    among, across = distances(real, real), distances(real, generated)
    radii = np.sort(among, axis=1)[:, k]
    generated_radii = np.sort(distances(generated, generated), axis=1)[:, k]
    clipped = np.minimum(radii, np.median(radii))
    np.fill_diagonal(among, np.inf)
    nearest = np.argsort(among, axis=1, kind="stable")[:, :k]
    reached = np.take_along_axis(among, nearest, axis=1) <= clipped[:, None]
    ideal = np.minimum(np.bincount(nearest[reached], minlength=len(real)) / k, 1).mean()
    balls = np.minimum((across <= clipped[:, None]).sum(axis=0) / k, 1).mean()
    return {
        "precision": (across <= radii[:, None]).any(axis=0).mean(),
        "recall": (across <= generated_radii[None]).any(axis=1).mean(),
        "density": (across < radii[:, None]).sum(axis=0).mean() / k,
        "coverage": (across.min(axis=1) < radii).mean(),
        "clipped_density": min(1, balls / ideal),
        "clipped_coverage": share_of_good(
            (np.sort(across, axis=1)[:, :k] < radii[:, None]).mean(), k, len(real), len(generated)
        ),
    }


def numbers(found):
    return {name: getattr(found, name) for name in NUMBERS}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(search, "_BLOCK", 64)


@pytest.fixture(params=[1, 16, 10**9], ids=["pairs", "as it is", "blocks"])
def counted(request, monkeypatch):
    """Points in balls are counted pair by pair, or in blocks where there are many, or always."""
    monkeypatch.setattr(search, "_MANY", request.param)


def clusters(seed, points, spread):
    generator = np.random.default_rng(seed)
    return normal(9, 12)[generator.integers(0, 12, points)] + spread * generator.normal(size=(points, 24))


def copies(seed, points):
    """Many points several times, some more than k times; -0 beside 0."""
    few = np.random.default_rng(8).integers(-2, 3, (points // 4, 24)).astype(np.float64)
    chosen = few[np.random.default_rng(seed).integers(0, len(few), points)]
    chosen[:9] = few[0]
    return np.where(chosen == 0, np.random.default_rng(seed).choice([-0.0, 0.0], chosen.shape), chosen)


SETS = {
    "normal": lambda: (normal(0, 301), normal(1, 263) + 0.2),
    "far from 0": lambda: (normal(0, 301) * 1e-3 + 1e4, normal(1, 263) * 1e-3 + 1e4),
    "clusters": lambda: (clusters(0, 301, 0.1), clusters(1, 263, 0.1)),
    "tight clusters": lambda: (clusters(0, 301, 1e-4), clusters(1, 263, 1e-4)),
    "copies": lambda: (copies(0, 301), copies(1, 263)),
    "the same": lambda: (normal(0, 301), normal(0, 301)),
    "the same, an even number": lambda: (normal(0, 300), normal(0, 300)),
    "one within all": lambda: (normal(0, 301), 0.01 * normal(1, 263)),
    "an outlier": lambda: (np.vstack([normal(0, 300), np.full(24, 1e6)]), normal(1, 263)),
    "small numbers": lambda: (normal(0, 301) * 1e-25, normal(1, 263) * 1e-25),
    "large numbers": lambda: (normal(0, 301) * 1e25, normal(1, 263) * 1e25),
    "some copies": lambda: (normal(0, 301)[np.r_[:301, :90, :90]], normal(1, 263)[np.r_[:263, :90]]),
    "whole numbers": lambda: (np.round(normal(0, 301, 3)), np.round(normal(1, 263, 3))),
}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", SETS)
def test_numbers_are_those_of_all_pairs(name, kind, k, small_blocks, counted):
    real, generated = (points.astype(kind) for points in SETS[name]())
    found = nearness(real, generated, k)
    assert numbers(found) == pytest.approx(all_pairs(real, generated, k), rel=1e-12, abs=0)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", SETS)
def test_every_points_neighbours_are_those_of_all_pairs(name, kind, small_blocks):
    real, generated = (points.astype(kind) for points in SETS[name]())
    found = nearness(real, generated, 4)
    among, across = distances(real, real), distances(real, generated)
    np.fill_diagonal(among, np.inf)
    expected = ((found.among_real, among), (found.real_to_generated, across), (found.generated_to_real, across.T))
    for neighbours, pairs in expected:
        order = np.argsort(pairs, axis=1, kind="stable")[:, :4]
        np.testing.assert_allclose(neighbours.distance, np.take_along_axis(pairs, order, axis=1), rtol=1e-14)
        assert (neighbours.index == order).all()
    radii = np.sort(among, axis=1)[:, 3]
    assert (found.in_real == (across <= radii[:, None]).any(axis=0)).all()
    assert (found.real_balls == (across < radii[:, None]).sum(axis=0)).all()
    assert (found.covered == (across < radii[:, None]).any(axis=1)).all()
    alone = nearest_others(real, 4)
    assert (alone.index == found.among_real.index).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_screening_in_either_precision_leaves_nothing_out(kind, small_blocks, monkeypatch):
    """Whether float32 is chosen or not is a matter of time, not of what comes out."""
    for name in ("tight clusters", "far from 0", "normal"):
        real, generated = SETS[name]()
        expected = all_pairs(real, generated, 5)
        monkeypatch.setattr(search, "_float32_will_do", lambda sample, k, wanted=kind: wanted is np.float32)
        assert numbers(nearness(real, generated, 5)) == pytest.approx(expected, rel=1e-12)


def test_float32_is_left_where_it_would_leave_too_much_in_doubt():
    def kinds(real, generated):
        return {points.ready.dtype.name for points in search.prepared([real, generated], 5)}

    assert kinds(*SETS["normal"]()) == {"float32"}
    assert kinds(normal(0, 301) + 1000, normal(1, 263) + 1000) == {"float32"}
    assert kinds(*SETS["tight clusters"]()) == {"float64"}


def test_copies_are_one_point():
    """So that any number of them is no more work."""
    some = np.array([[1, 0.0], [2, 0], [1, -0.0], [1, 0]])
    found = _Distinct.of(some, some.dtype)
    assert found.values.tolist() == [[1, 0], [2, 0]]
    assert (found.first.tolist(), found.copies.tolist(), found.inverse.tolist()) == ([0, 1], [3, 1], [0, 1, 0, 0])


def test_the_share_of_good_points():
    """It turns what good points would cover on average back into their share, and is 0 of fewer than k of them."""
    assert share_of_good(0, 5, 100, 50) == 0
    assert share_of_good(1e-9, 5, 100, 50) == 5 / 51
    assert share_of_good(1, 5, 100, 50) == 1
    generator = np.random.default_rng(0)
    for good in (100, 200, 400):
        covered = []
        for _ in range(300):
            # One channel: what lies in a real point's ball is beta-binomial whatever the distribution.
            real, generated = generator.random((2, 400, 1))
            radii = np.sort(distances(real, real), axis=1)[:, 5]
            nearest = np.sort(distances(real[:20], generated[:good]), axis=1)[:, :5]
            covered.append((nearest < radii[:20, None]).mean())
        assert share_of_good(np.mean(covered), 5, 400, 400) == pytest.approx(good / 400, rel=0.04)


def test_blocks_do_not_matter(monkeypatch):
    real, generated = (points.astype(np.float32) for points in SETS["clusters"]())
    found = []
    for block in (16, 100, 5000):
        monkeypatch.setattr(search, "_BLOCK", block)
        found.append(nearness(real, generated, 5))
    for one, other in itertools.pairwise(found):
        assert numbers(one) == numbers(other)
        for name in ("among_real", "among_generated", "real_to_generated", "generated_to_real"):
            assert (getattr(one, name).index == getattr(other, name).index).all()
            assert (getattr(one, name).distance == getattr(other, name).distance).all()


def real_and_generated():
    """What the figures of others are of."""
    generator = np.random.default_rng(2026)
    mix = generator.normal(size=(64, 64)) / 8
    real = generator.normal(size=(2000, 64)) @ mix
    real[:600] += 3
    near, far = 0.9 * generator.normal(size=(500, 64)), 2.5 * generator.normal(size=(1000, 64))
    return real, np.concatenate([near, far]) @ mix + 0.1


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (3, (0.292, 0.695, 0.7104444444444444, 0.56, 0.5664756867930072, 0.5956029313790806)),
        (5, (0.31133333333333335, 0.7, 0.7045333333333333, 0.6465, 0.5559366323697533, 0.6082611592271818)),
    ],
)
def test_numbers_are_those_of_others(k, expected):
    """Figures of `prdc` 0.2's `compute_prdc` (the first four), of torch-fidelity 0.4.0's `prc_features_to_metric` (the
    first two, in float32: 0.2919999957, 0.6949999928; 0.3113333285, 0.6999999881), and of `ClippedDensityCoverage` by
    the clipped forms' authors at 9920dae (the last two), all given these arrays in float64."""
    real, generated = real_and_generated()
    assert list(numbers(nearness(real, generated, k)).values()) == pytest.approx(expected, rel=1e-6)
    assert list(numbers(nearness(real, generated, k)).values()) == pytest.approx(expected, rel=1e-13)


def test_a_set_to_itself():
    """Every number is 1, whichever way the points are ordered, and the nearest of each is itself."""
    real = normal(0, 301).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(real))
    found = nearness(real, real[order], 5)
    assert numbers(found) == dict.fromkeys(NUMBERS, 1)
    assert (order[found.real_to_generated.index[:, 0]] == np.arange(len(real))).all()
    assert not found.real_to_generated.distance[:, 0].any()
    assert found.without_room == 0
    crowded = np.vstack([real, np.repeat(real[:1], 6, axis=0)])
    assert nearness(crowded, crowded, 5).without_room == 7


def test_refusals(monkeypatch):
    monkeypatch.setattr(points, "_VALUES_AT_ONCE", 72)
    real = normal(0, 20)
    holed = real.copy()
    holed[7, 3] = np.nan
    for generated, k, message in (
        (normal(1, 20, 23), 5, "one set has 24 channels, the other 23"),
        (real[:5], 5, "5 generated points have no 5 nearest others each: k must be from 1 to 4"),
        (real, 0, "have no 0 nearest others"),
        (holed, 5, "the generated points have NaN or infinity in row 7"),
        (real[:0], 5, "the generated points are 0 points of 24 channels"),
        (real.astype(int), 5, "the generated points are not points"),
        (real[0], 5, "the generated points are not points"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            nearness(real, generated, k)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="5 points have no 5 nearest others"):
        nearest_others(real[:5], 5)
