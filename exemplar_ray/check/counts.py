"""How often a network is right, with one preprocessing and another, and whether the difference is more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

LEAST_GAIN = 0.02
"""So much better, as a share of the images, another preprocessing must be to be named."""
SIGNIFICANCE = 0.05


class Count(NamedTuple):
    """What came of one preprocessing on some images. Counts of disjoint images add up."""

    images: int = 0
    top1: int = 0
    top5: int = 0
    gained: int = 0
    """Images whose first guess is right, and is wrong with the preprocessing in use."""
    lost: int = 0
    """And the other way round."""

    def plus(self, other: Count) -> Count:
        """Return what both come to together."""
        return Count(*map(sum, zip(self, other, strict=True)))

    @property
    def share(self) -> float:
        """Return the share of images whose first guess is right; 0 where there are no images."""
        return self.top1 / self.images if self.images else 0.0


def mcnemar(gained: int, lost: int) -> float:
    """Return the p-value, two-sided and exact, of McNemar's test: that one is right as often as the other.

    Only images count where just one of the two is right (McNemar, 1947); each is a toss of a coin if there is no
    difference.

    >>> mcnemar(5, 5), round(mcnemar(8, 1), 4), mcnemar(0, 0)
    (1.0, 0.0391, 1.0)
    """
    tosses, fewer = gained + lost, min(gained, lost)
    log = [
        math.lgamma(tosses + 1) - math.lgamma(k + 1) - math.lgamma(tosses - k + 1) - tosses * math.log(2)
        for k in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, log)))


def is_better(count: Count, tried: int) -> bool:
    """Whether a preprocessing is better than the one in use by so much that it must be named.

    Args:
        tried: how many others were tried: of many, one is better by chance (Bonferroni's correction).
    """
    gain = count.gained - count.lost
    if gain <= 0 or gain < LEAST_GAIN * count.images:
        return False
    return mcnemar(count.gained, count.lost) * tried < SIGNIFICANCE


def worth_going_on(counts: Sequence[Count]) -> list[bool]:
    """Say of each preprocessing whether to look at more images with it, after the first ones.

    Not where these all but rule out that it is better by enough than the one in use, which comes first, or than the
    best of all. The one in use always goes on.
    """
    best = max(count.top1 for count in counts)
    return [place == 0 or (_may_gain(count) and _may_be_best(count, best)) for place, count in enumerate(counts)]


def _may_gain(count: Count) -> bool:
    gain, spread = count.gained - count.lost, math.sqrt(count.gained + count.lost)
    return gain + 2 * spread >= LEAST_GAIN * count.images


def _may_be_best(count: Count, best: int) -> bool:
    shares = (count.share, best / count.images if count.images else 0.0)
    spread = math.sqrt(sum(share * (1 - share) for share in shares) * count.images)
    return best - count.top1 <= 3 * spread


def chance(right: int, images: int, classes: int) -> float:
    """Return how likely blind guessing is right so often, or more often.

    >>> round(chance(1, 800, 1000), 2), chance(609, 800, 1000) < 1e-9, chance(0, 10, 2)
    (0.55, True, 1.0)
    """
    share = 1 / classes
    log = [
        math.lgamma(images + 1)
        - math.lgamma(k + 1)
        - math.lgamma(images - k + 1)
        + k * math.log(share)
        + (images - k) * math.log1p(-share)
        for k in range(right)
    ]
    return max(0.0, 1 - math.fsum(map(math.exp, log)))
