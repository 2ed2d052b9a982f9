"""Moments merge: as numpy computes them of all points at once, however these are divided."""

import numpy as np
import pytest

from exemplar_ray.moments import Moments


@pytest.mark.parametrize("shards", [1, 8, 300])
def test_covariance_of_merged_shards_is_numpys(shards):
    generator = np.random.default_rng(0)
    # Far from 0, where sums of squares would cancel.
    points = generator.normal(1e4, 1, (9000, 20)) @ generator.normal(size=(20, 20))
    merged = Moments.none(20)
    for few in np.array_split(points, shards):
        merged = merged.merged(Moments.of(few))
    expected = np.cov(points, rowvar=False)
    assert merged.count == 9000
    assert np.abs(merged.mean / points.mean(axis=0) - 1).max() < 1e-12
    assert np.abs(merged.covariance - expected).max() < 1e-10 * np.abs(expected).max()


def test_of_nothing_and_of_one():
    assert Moments.of(np.zeros((0, 3))).count == 0
    one = Moments.none(2).merged(Moments.of(np.array([[1.0, 2.0]])))
    assert one.mean.tolist() == [1, 2]
    assert np.isnan(one.covariance).all()
    both = one.merged(Moments.of(np.array([[3.0, 2.0]])))
    assert both.covariance.tolist() == [[2, 0], [0, 0]]


def test_float16_points_are_added_in_float64():
    points = np.full((3000, 2), 60000, np.float16)
    assert Moments.of(points).mean.tolist() == [float(np.float16(60000))] * 2
