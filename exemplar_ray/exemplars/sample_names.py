"""What samples are called, and in what order they stand. Imports no numpy: the command line answers sooner."""

from __future__ import annotations

import re
from collections.abc import Sequence

from exemplar_ray.errors import UsageError, near_matches

TOP = "top"
DISTINCT = "distinct"
BOTTOM = "bottom"
RANDOM = "random"
_PERCENTILE = re.compile(r"q([1-9]\d?)")


def parse_samples(names: Sequence[str]) -> tuple[str, ...]:
    """Check names of samples and put them in the order of results; `top` is always among them.

    >>> parse_samples(["q50", "random", "q99"])
    ('top', 'random', 'q99', 'q50')

    Raises:
        UsageError: there is no such sample.
    """
    for name in names:
        if name not in (TOP, BOTTOM, RANDOM) and not _PERCENTILE.fullmatch(name):
            samples = [TOP, BOTTOM, RANDOM, "q99", "q95", "q90", "q50"]
            raise UsageError(f"unknown sample '{name}'; {near_matches(name, samples)} (q1 to q99 are percentiles)")
    return tuple(sorted({TOP, *names}, key=place_in_results))


def place_in_results(sample: str) -> int:
    """Return a number that sorts samples: top, distinct, bottom, random, then percentiles from above."""
    fixed = (TOP, DISTINCT, BOTTOM, RANDOM)
    return fixed.index(sample) if sample in fixed else len(fixed) + 100 - percentile_of(sample)


def percentile_of(sample: str) -> int:
    """Return 99 for `q99`."""
    return int(sample.removeprefix("q"))


def is_drawn(sample: str) -> bool:
    """Whether a sample is drawn by priority."""
    return sample == RANDOM or _PERCENTILE.fullmatch(sample) is not None
