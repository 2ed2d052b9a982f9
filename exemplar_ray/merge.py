"""Merge: parts -> winners, a fold in bounded memory. Knows neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Iterable

from exemplar_ray.parts import Part, candidates_kept
from exemplar_ray.spec import ResolvedSpec
from exemplar_ray.topk import Scores, merge

# Candidates are folded this many parts at a time: one sort for many, memory for only so many.
PARTS_PER_FOLD = 32


def fold(parts: Iterable[tuple[int, Part]], spec: ResolvedSpec) -> Part:
    """Fold any number of shards' parts into one.

    Args:
        parts: (shard position, part). A shard that comes again changes nothing. Candidates do not
            depend on the order; sums of the tallies do in their last bits, so give the shards in
            order where the same bytes are wanted.

    Returns:
        The best candidates of each channel, sorted, and the tallies of all images.
    """
    folded = Part.empty(spec)
    scores, tallies = folded.scores, folded.tallies
    waiting: list[Scores] = []
    seen: set[int] = set()
    for shard, part in parts:
        if shard in seen:
            continue
        seen.add(shard)
        waiting.append(part.scores)
        if len(waiting) == PARTS_PER_FOLD:
            scores = merge([scores, *waiting], candidates_kept(spec))
            waiting = []
        for name, several in tallies.items():
            tallies[name] = [one.merge(other) for one, other in zip(several, part.tallies[name], strict=True)]
    return Part(merge([scores, *waiting], candidates_kept(spec)), tallies)
