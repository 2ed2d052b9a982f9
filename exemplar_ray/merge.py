"""Merge: parts -> winners, a fold in bounded memory. Knows neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Iterable

from exemplar_ray.parts import Part, candidates_kept
from exemplar_ray.samples import SampledImages
from exemplar_ray.spec import ResolvedSpec
from exemplar_ray.topk import Scores, merge

# Candidates are folded when so many have come together: one sort for many, memory for only so many.
_CANDIDATES_PER_FOLD = 4_000_000


def fold(parts: Iterable[tuple[int, Part]], spec: ResolvedSpec) -> Part:
    """Fold any number of shards' parts into one.

    Args:
        parts: (shard position, part). A shard that comes again changes nothing. Candidates do not
            depend on the order; sums of the tallies do in their last bits, so give the shards in
            order where the same bytes are wanted.

    Returns:
        The best candidates of each contest, sorted, the tallies of all images, and the sampled images.
    """
    kept = candidates_kept(spec)
    folded = Part.empty(spec)
    tallies = folded.tallies
    waiting: list[Scores] = [folded.scores]
    sampled = [folded.sampled]
    seen: set[int] = set()
    for shard, part in parts:
        if shard in seen:
            continue
        seen.add(shard)
        waiting.append(part.scores)
        if sum(len(scores.row) for scores in waiting) >= _CANDIDATES_PER_FOLD:
            waiting = [merge(waiting, kept)]
        for name, several in tallies.items():
            tallies[name] = [one.merge(other) for one, other in zip(several, part.tallies[name], strict=True)]
        sampled.append(part.sampled)
    return Part(merge(waiting, kept), tallies, SampledImages.together(sampled))
