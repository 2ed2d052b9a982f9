"""Merge: parts -> winners, a fold in bounded memory. Knows neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from exemplar_ray.parts import Part, candidates_kept
from exemplar_ray.samples import SampledImages
from exemplar_ray.spec import ResolvedSpec
from exemplar_ray.topk import BOTTOM, OF_CLASS, TOP, Scores, find, merge, number_groups, rank

# Candidates are folded when so many have come together: one sort for many, memory for only so many.
_CANDIDATES_PER_FOLD = 4_000_000

# The merge keeps so many times the candidates of a shard: together shards know more than each of them.
_DEPTH = 4


def fold(parts: Iterable[tuple[int, Part]], spec: ResolvedSpec) -> Part:
    """Fold any number of shards' parts into one.

    Args:
        parts: (shard position, part). A shard that comes again changes nothing. Candidates do not
            depend on the order; sums of the tallies do in their last bits, so give the shards in
            order where the same bytes are wanted.

    Returns:
        The tallies of all images, the sampled images, and the best candidates of each contest, sorted: of
        every channel, all the images that stand above the last of them.
    """
    of_a_shard = candidates_kept(spec)
    kept = {contest: count if contest == OF_CLASS else _DEPTH * count for contest, count in of_a_shard.items()}
    folded = Part.empty(spec)
    tallies = folded.tallies
    waiting: list[Scores] = [folded.scores]
    # Where a shard kept all it could, images below the last of them are missing.
    lasts = Scores.empty()
    sampled = [folded.sampled]
    seen: set[int] = set()
    for shard, part in parts:
        if shard in seen:
            continue
        seen.add(shard)
        waiting.append(part.scores)
        lasts = merge([lasts, _lasts_of_full(part.scores, of_a_shard)], dict.fromkeys((TOP, BOTTOM), 1))
        if sum(len(scores.row) for scores in waiting) >= _CANDIDATES_PER_FOLD:
            waiting = [merge(waiting, kept)]
        for name, several in tallies.items():
            tallies[name] = [one.merge(other) for one, other in zip(several, part.tallies[name], strict=True)]
        sampled.append(part.sampled)
    scores = _above(lasts, merge(waiting, kept))
    return Part(scores, tallies, SampledImages.together(sampled))


def _lasts_of_full(scores: Scores, kept: dict[int, int]) -> Scores:
    """Return the last candidate of every channel of which a shard kept as many as it could."""
    most = np.zeros(OF_CLASS + 1, np.int64)
    for contest in (TOP, BOTTOM):
        most[contest] = kept.get(contest, 0)
    order, ranks = rank(scores)
    return scores.take(order[ranks == most[scores.contest[order]]])


def _above(lasts: Scores, scores: Scores) -> Scores:
    """Return the candidates down to the first that is the last of a shard, in each channel."""
    if not len(scores.row):
        return scores
    groups, ranks = number_groups(scores), rank(scores)[1]
    deepest = np.full(groups[-1] + 1, np.iinfo(np.int32).max)
    for contest in (TOP, BOTTOM):
        here = np.flatnonzero(scores.contest == contest)
        place = find(scores.take(here), lasts.take(lasts.contest == contest))
        place = here[place[place >= 0]]
        deepest[groups[place]] = ranks[place]
    return scores.take(ranks <= deepest[groups])
