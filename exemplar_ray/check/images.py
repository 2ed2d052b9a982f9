"""Which images are looked at: some of every part of the data, the same ones each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from exemplar_ray.data.shard import Shard

_SEED = 0


@dataclass(frozen=True)
class Chosen:
    """Rows of one shard."""

    shard: Shard
    rows: tuple[int, ...]
    """Ascending."""
    shown: frozenset[int]
    """Those of which the first guesses are shown."""


def spread(total: int, wanted: int) -> list[int]:
    """Return `wanted` of the numbers 0..total-1, ascending: one, drawn, of each of so many stretches of equal length.

    Drawn, because rows may repeat: of every third image of a data set that goes through its three classes in turn,
    all are of one class.

    >>> spread(3, 5), len(spread(1000, 10)), [number // 100 for number in spread(1000, 10)]
    ([0, 1, 2], 10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    if not wanted:
        return []
    wanted = min(wanted, total)
    drawn = np.random.default_rng(_SEED).random(wanted)
    starts = [number * total // wanted for number in range(wanted)]
    ends = [*starts[1:], total]
    return [start + int(share * (end - start)) for start, end, share in zip(starts, ends, drawn, strict=True)]


def choose(shards: Sequence[Shard], images: int, first: int, shown: int) -> tuple[list[Chosen], list[Chosen]]:
    """Choose images, spread over all shards that can be read.

    Args:
        images: how many in all.
        first: how many of these to look at before the others.
        shown: of how many to show the first guesses; they are among those looked at first.

    Returns:
        Those looked at first, and the others.
    """
    readable = [shard for shard in shards if shard.images]
    ends = list(accumulate(shard.images for shard in readable))
    numbers = spread(ends[-1], images) if ends else []
    early = [numbers[place] for place in spread(len(numbers), first)]
    seen = {early[place] for place in spread(len(early), shown)}
    late = sorted({*numbers} - {*early})
    return _by_shard(readable, ends, early, seen), _by_shard(readable, ends, late, set())


def _by_shard(shards: Sequence[Shard], ends: Sequence[int], numbers: Sequence[int], seen: set[int]) -> list[Chosen]:
    """Say of numbers that count through all shards which rows of which shards they are."""
    rows: dict[int, list[int]] = {}
    shown: dict[int, set[int]] = {}
    there = {}
    for number, place in zip(numbers, np.searchsorted(ends, numbers, side="right").tolist(), strict=True):
        if place not in there:
            there[place] = shards[place].chosen_rows
        row = int(there[place][number - (ends[place] - shards[place].images)])
        rows.setdefault(place, []).append(row)
        if number in seen:
            shown.setdefault(place, set()).add(row)
    return [Chosen(shards[place], tuple(here), frozenset(shown.get(place, ()))) for place, here in rows.items()]
