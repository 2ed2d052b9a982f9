"""From merged parts to exemplars: which candidates to recompute, and what they then turn out to be.

`rerank` goes back and forth: `Selection.wanted` says what has to be recomputed next, `Selection.add` takes it in, until
nothing is wanted any more. One round does for the strongest and the weakest. More are needed where a scan's error
leaves doubt who is in, where near-duplicates are skipped and candidates run short, or where recomputing moves an
image over the edge of a percentile's band. Numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from exemplar_ray.exemplars import sample_names
from exemplar_ray.exemplars.gathered import GatheredShard
from exemplar_ray.exemplars.parts import Part
from exemplar_ray.exemplars.rerank.candidates import Pair, ScannedChannels
from exemplar_ray.exemplars.rerank.certainty import BoundedRanking
from exemplar_ray.exemplars.rerank.distinct import Picked, duplicates_of, pick_all
from exemplar_ray.exemplars.rerank.drawn import SamplePool
from exemplar_ray.exemplars.rerank.extremes import Extremes, Shown
from exemplar_ray.exemplars.rerank.recomputed import RecomputedScores
from exemplar_ray.exemplars.rerank.selected import Selected, ShortOfDistinct
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import OF_CLASS, Scores, concatenate, find

Gather = Callable[[dict[int, Scores]], tuple[dict[int, GatheredShard], dict[str, str]]]
"""From {shard position: its candidates} to {shard position: what was gathered, images' bytes left out}, and {shard's
name: reason} of failures."""


class Selection:
    """The search for the exemplars among merged candidates.

    Args:
        merged: candidates, for every channel all the images that the scan saw above the weakest of them.
        scored: how many images were scored.
    """

    def __init__(self, spec: ExemplarsSpec, merged: Part, scored: int) -> None:
        self._spec = spec
        self._recomputed = RecomputedScores()
        channels = ScannedChannels(spec, merged, scored)
        scores = merged.scores.take(merged.scores.ranking != OF_CLASS)
        self._extremes = Extremes(channels, scores, spec.top_k, self._recomputed)
        self._pool = SamplePool(spec, merged.sampled)

    @property
    def exact(self) -> Scores:
        """What has been recomputed, each candidate once."""
        return self._recomputed.exact

    def wanted(self) -> Scores:
        """Return the candidates to recompute next, each once; none when all that matter are known."""
        drawn = self._pool.draw()
        # Whom recomputing could move over a band's edge is known after the first round.
        edges = Scores.empty() if len(self._recomputed) or self._spec.screened else drawn.at_edges
        while True:
            candidates = concatenate([self._extremes.wanted(), drawn.scores, edges])
            candidates = candidates.take(self._recomputed.find(candidates) < 0)
            if len(candidates.row) or not self._look_deeper():
                if self._spec.screened or self._spec.distinct:
                    candidates = concatenate([candidates, self._extremes.companions(candidates)])
                # Of those that stand there several times, the last.
                return candidates.take(np.unique(find(candidates, candidates)))

    def _look_deeper(self) -> bool:
        """Look at more candidates of channels that are not settled or lack distinct ones; false if there are none."""
        return self._extremes.look_deeper(
            lambda bounded: [picked.group for picked in self._pick_all(bounded) if not picked.enough]
        )

    def _pick_all(self, bounded: BoundedRanking) -> Iterator[Picked]:
        return pick_all(self._spec, self._extremes, bounded, self._recomputed)

    def add(self, scanned: Scores, gathered: Mapping[int, GatheredShard]) -> None:
        """Take in recomputed candidates.

        Args:
            scanned: candidates that `wanted` gave, in the order of shards.
            gathered: the same, recomputed, by shard position.
        """
        exact = self._recomputed.add(scanned, gathered)
        not_finite = exact.take(~np.isfinite(exact.activation))
        if len(not_finite.row):
            self._extremes.leave_out(not_finite)
            self._pool.correct(not_finite)
        # What screening saw of an image decides what is drawn: all images were seen alike.
        if not self._spec.screened:
            self._pool.correct(exact)

    def unsettled(self) -> list[Pair]:
        """Return the (readout, channel) pairs whose strongest or weakest are in doubt, each once."""
        return sorted({(doubt.readout, doubt.channel) for doubt in self._extremes.unsettled()})

    def replace(self, scores: Scores, finite: dict[Pair, int]) -> None:
        """Go on with other candidates for some channels; see `Extremes.replace`."""
        self._extremes.replace(scores, finite)

    def result(self) -> Selected:
        """Return the exemplars, once nothing is wanted any more."""
        shown, short = self._extremes.shown(), []
        for group, exact, enough in self._pick_all(self._extremes.bounded()):
            shown.append(Shown(sample_names.DISTINCT, exact, np.arange(1, len(exact) + 1)))
            if not enough:
                short.append(ShortOfDistinct(*self._extremes.candidates.pair(group), len(exact)))
        drawn = self._pool.draw()
        which = np.concatenate([*(part.exact for part in shown), self._recomputed.find(drawn.scores)])
        ranks = np.concatenate([*(part.ranks for part in shown), drawn.ranks]).astype(np.int32)
        names = [part.sample for part in shown for _ in part.exact] + drawn.samples
        sample = np.array([sample_names.place_in_results(name) for name in names])
        duplicate_of = duplicates_of(self._recomputed, which, sample, ranks)
        scores = self.exact.take(which)
        order = np.lexsort((sample, ranks, scores.channel, scores.readout))
        return Selected(
            scores=scores.take(order),
            samples=[names[i] for i in order],
            ranks=ranks[order],
            duplicate_of=[duplicate_of[i] for i in order],
            maps=self._recomputed.maps(which[order]),
            largest_error=self._recomputed.largest_error,
            unsettled=self._extremes.unsettled(),
            certainty=self._extremes.certainty(),
            tails=self._extremes.tails(),
            short=short,
            beyond_rounding=self._recomputed.beyond_rounding,
            not_finite=self._recomputed.not_finite,
        )


def rerank(selection: Selection, gather: Gather) -> dict[str, str]:
    """Gather what a selection wants, until it wants no more; return {shard's name: reason} of failures."""
    while len((wanted := selection.wanted()).row):
        by_shard = {int(shard): wanted.take(wanted.shard == shard) for shard in np.unique(wanted.shard)}
        gathered, failed = gather(by_shard)
        if failed:
            return failed
        selection.add(concatenate(by_shard[shard] for shard in sorted(by_shard)), gathered)
    return {}
