"""Merge: parts -> winners, a fold in bounded memory. Knows neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Iterable

from exemplar_ray.topk import Scores, merge

# Parts are folded this many at a time: one sort for many parts, memory for only so many.
PARTS_PER_FOLD = 32


def fold(parts: Iterable[Scores], keep: int) -> Scores:
    """Fold any number of parts into the best `keep` candidates of each channel.

    Order, grouping and repetition of the parts do not matter.

    Returns:
        Scores sorted by (series, channel, total order).
    """
    winners = Scores.empty()
    waiting: list[Scores] = []
    for part in parts:
        waiting.append(part)
        if len(waiting) == PARTS_PER_FOLD:
            winners = merge([winners, *waiting], keep)
            waiting = []
    return merge([winners, *waiting], keep)
