"""What gather has recomputed so far: exact scores, maps, and what is known of the images. Numpy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from exemplar_ray.exemplars.gathered import MAPS_SCHEMA, GatheredShard
from exemplar_ray.exemplars.topk import NEAR_ZERO, Scores, concatenate, find


class RecomputedScores:
    """Grows round by round; nothing in it changes.

    `exact` has each recomputed candidate once, `largest_error` is the largest difference between a scanned and a
    recomputed activation, `beyond_rounding` how many an exact scan saw otherwise than rounding explains.
    """

    def __init__(self) -> None:
        self.exact = Scores.empty()
        self.largest_error = 0.0
        self.beyond_rounding = 0
        self._maps: list[pa.Table] = []
        self._images: dict[tuple[int, int], tuple[int | None, bytes]] = {}

    def __len__(self) -> int:
        return len(self.exact.row)

    def add(self, scanned: Scores, gathered: Mapping[int, GatheredShard]) -> Scores:
        """Take in what was gathered; return it, recomputed, in the order of shards.

        Args:
            scanned: the same candidates as the scan saw them, in the order of shards.
            gathered: by shard position.
        """
        # In the order of shards: what comes first must not depend on who was quicker.
        shards = sorted(gathered)
        exact = concatenate(gathered[shard].exact for shard in shards)
        counted = (exact.ranking != NEAR_ZERO) & np.isfinite(exact.activation)
        error = np.abs(scanned.activation[counted] - exact.activation[counted]).max(initial=0.0)
        self.largest_error = max(self.largest_error, float(error))
        self.exact = concatenate([self.exact, exact])
        self._maps += [gathered[shard].maps for shard in shards]
        self.beyond_rounding += sum(gathered[shard].beyond_rounding for shard in shards)
        for shard in shards:
            columns = (gathered[shard].images[name].to_pylist() for name in ("row", "label", "hash"))
            self._images.update({(shard, row): (label, digest) for row, label, digest in zip(*columns, strict=True)})
        return exact

    @property
    def not_finite(self) -> Scores:
        """What came out as NaN or infinity though the scan saw a number: these are not ranked."""
        return self.exact.take(~np.isfinite(self.exact.activation))

    def maps(self, which: np.ndarray) -> pa.Table:
        """Return the maps of some exact scores, as gather gave them, or as they were spooled."""
        return pa.concat_tables(self._maps).take(pa.array(which)) if self._maps else MAPS_SCHEMA.empty_table()

    def find(self, scores: Scores) -> np.ndarray:
        """Return where scores stand among the exact ones, int64; -1 for those that were not recomputed."""
        return find(self.exact, scores)

    def image(self, index: int) -> tuple[int | None, bytes]:
        """Return label and perceptual hash of an exact score's image."""
        return self._images[int(self.exact.shard[index]), int(self.exact.row[index])]
