"""Merge: parts -> winners, a fold in bounded memory. Knows neither Ray nor torch.

What some shards' parts fold to can be folded further, with the same result as folding all the parts at once. So many
shards are folded in groups, by tasks anywhere, and what they come to is folded again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from exemplar_ray.exemplars.parts import Part, candidates_kept, read_parts
from exemplar_ray.exemplars.samples import SampledImages, sampled_images
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import (
    BOTTOM,
    NEAR_ZERO,
    OF_CLASS,
    TOP,
    Scores,
    find,
    merge,
    number_groups,
    rank,
    strength,
)
from exemplar_ray.runs.run_folder import RunFolder

# Candidates are folded when so many have come together: one sort for many, memory for only so many.
_CANDIDATES_PER_FOLD = 1_000_000

# The merge keeps so many times the candidates of a shard: together shards know more than each of them.
_DEPTH = 4

# What is ranked for a channel, whatever the images' classes.
_BY_STRENGTH = (TOP, BOTTOM, NEAR_ZERO)

# Fewer are not worth a task.
_LEAST_SHARDS_A_GROUP = 16


@dataclass(frozen=True)
class Folded(Part):
    """What the parts of some shards come to.

    Its candidates are sorted: of every channel, all the images that stand above the last of them.
    """

    shards: np.ndarray
    """int32, ascending: the positions of the shards."""
    lasts: Scores
    """The strongest, in every channel, of the last candidates of shards that kept all they could: below it images
    are missing."""


def groups(positions: Iterable[int], shards: int) -> list[list[int]]:
    """Split ascending shard positions into the groups that are folded by a task each: about as many groups as a group
    has shards, so that neither a task nor the driver, which folds what they come to, has much to do.

    Sums of floats depend on their grouping in their last bits. So a group is of neighbours in the list of all shards:
    whoever folds it, and whatever else is there, it gives the same bytes.

    Args:
        shards: how many the data set has.
    """
    size = max(_LEAST_SHARDS_A_GROUP, math.isqrt(shards))
    result: dict[int, list[int]] = {}
    for position in positions:
        result.setdefault(position // size, []).append(position)
    return list(result.values())


@dataclass(frozen=True)
class FoldTask:
    """Whose parts are folded."""

    spec: ExemplarsSpec
    run_folder: str
    """A URI that means the same in every process."""
    fingerprint: str


def fold_group(task: FoldTask, positions: Sequence[int]) -> Folded:
    """Fold the parts of some shards, read from the run folder.

    Raises:
        TornPartError: a shard's part is not what its completion record says.
    """
    return fold(read_parts(RunFolder(task.run_folder), positions, task.fingerprint, task.spec), task.spec)


def fold(parts: Iterable[tuple[int, Part]], spec: ExemplarsSpec) -> Folded:
    """Fold any number of shards' parts into one.

    Args:
        parts: (shard position, part), see `fold_all`.
    """
    of_a_shard = candidates_kept(spec)
    return fold_all(
        (
            Folded(
                scores=part.scores,
                tallies=part.tallies,
                sampled=part.sampled,
                spectrum=part.spectrum,
                shards=np.array([position], np.int32),
                lasts=_lasts_of_full(part.scores, of_a_shard),
            )
            for position, part in parts
        ),
        spec,
    )


def fold_all(several: Iterable[Folded], spec: ExemplarsSpec) -> Folded:
    """Fold what other folds came to.

    Args:
        several: folds that share no shard. One whose shards are all known already changes nothing. Candidates do
            not depend on order or grouping; sums of the tallies do in their last bits, so give the folds in
            order where the same bytes are wanted.

    Raises:
        ValueError: a fold has some shards that are known already, and some that are not.
    """
    kept = {ranking: n if ranking == OF_CLASS else _DEPTH * n for ranking, n in candidates_kept(spec).items()}
    nothing = Part.empty(spec)
    shards = np.empty(0, np.int32)
    tallies, spectrum = nothing.tallies, nothing.spectrum
    waiting, lasts, sampled = [nothing.scores], [Scores.empty()], [nothing.sampled]
    for folded in several:
        again = np.isin(folded.shards, shards)
        if again.all():
            continue
        if again.any():
            raise ValueError(f"shard {folded.shards[again][0]} is in two folds, of which neither holds the other")
        shards = np.union1d(shards, folded.shards)
        for name, of_readouts in tallies.items():
            tallies[name] = [all_.merge(more) for all_, more in zip(of_readouts, folded.tallies[name], strict=True)]
        spectrum = spectrum.merge(folded.spectrum) if spectrum and folded.spectrum else None
        # In Ray's object store scores and tallies are one piece of memory: without a copy, waiting scores would keep
        # all of it.
        waiting.append(deepcopy(folded.scores))
        lasts.append(deepcopy(folded.lasts))
        sampled.append(deepcopy(folded.sampled))
        if sum(len(scores.row) for scores in waiting) >= _CANDIDATES_PER_FOLD:
            waiting, lasts, sampled = [merge(waiting, kept)], [_strongest(lasts)], [_first_drawn(sampled, spec)]
    last = _strongest(lasts)
    scores, drawn = _above(last, merge(waiting, kept)), _first_drawn(sampled, spec)
    return Folded(scores, tallies, drawn, shards, last, spectrum=spectrum)


def _lasts_of_full(scores: Scores, kept: dict[int, int]) -> Scores:
    """Return the last candidate of every channel of which a shard kept as many as it could."""
    ranked = scores.take(scores.ranking != OF_CLASS)
    if not len(ranked.row):
        return ranked
    # A part is sorted, and there are very many parts: a stable sort goes through it once.
    order = np.lexsort((ranked.channel, ranked.ranking, ranked.readout))
    ranked = ranked.take(order)
    group = number_groups(ranked)
    starts = np.searchsorted(group, np.arange(group[-1] + 1))
    strengths = strength(ranked)
    weakest = strengths == np.minimum.reduceat(strengths, starts)[group]
    # Of those that are as weak, the one with the highest row.
    last = weakest & (ranked.row == np.maximum.reduceat(np.where(weakest, ranked.row, -1), starts)[group])
    most = np.array([kept.get(ranking, -1) for ranking in range(NEAR_ZERO + 1)])[ranked.ranking]
    return ranked.take(last & (np.bincount(group)[group] == most))


def _strongest(lasts: Sequence[Scores]) -> Scores:
    return merge(lasts, dict.fromkeys(_BY_STRENGTH, 1))


def _above(lasts: Scores, scores: Scores) -> Scores:
    """Return the candidates down to the first that is the last of a shard, in each channel."""
    if not len(scores.row):
        return scores
    groups, ranks = number_groups(scores), rank(scores)[1]
    deepest = np.full(groups[-1] + 1, np.iinfo(np.int32).max)
    for ranking in _BY_STRENGTH:
        here = np.flatnonzero(scores.ranking == ranking)
        position = find(scores.take(here), lasts.take(lasts.ranking == ranking))
        position = here[position[position >= 0]]
        deepest[groups[position]] = ranks[position]
    return scores.take(ranks <= deepest[groups])


def _first_drawn(sampled: Sequence[SampledImages], spec: ExemplarsSpec) -> SampledImages:
    """Return the images that samples are drawn from, of several sets that share none."""
    all_, most = SampledImages.join(sampled), sampled_images(spec.top_k)
    return all_ if len(all_.row) <= most else SampledImages.join([all_.lowest(most)])
