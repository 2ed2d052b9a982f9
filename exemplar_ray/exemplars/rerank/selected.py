"""What the search for exemplars ends with. Numpy only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from exemplar_ray.exemplars.topk import Scores


class TailKey(NamedTuple):
    """Whose distribution, and which end of it."""

    readout: int
    ranking: int
    """`TOP` or `BOTTOM`."""
    channel: int


class Tail(NamedTuple):
    """One end of a channel's distribution, as far as it is known without a gap."""

    strengths: np.ndarray
    """float32, ascending: of the strongest images, or of the weakest, negated."""
    complete_above: float
    """Every stronger image stands among them: -infinity if they are all."""


@dataclass(frozen=True)
class Certainty:
    """How sure the top K of a readout's channels is; arrays are [channels]."""

    settled: np.ndarray
    """bool: whether it is beyond doubt."""
    scan_error: np.ndarray
    """float64: the largest difference seen between a scanned and a recomputed activation."""
    margin: np.ndarray
    """float64: how far the K-th exemplar is above what the scan saw of the strongest image that was
    not recomputed, infinite if all were."""

    def columns(self) -> dict[str, np.ndarray]:
        """Return its columns of `channels.parquet`."""
        return asdict(self)


class Unsettled(NamedTuple):
    """A sample whose last exemplar is not clear of the images that were dropped."""

    readout: int
    channel: int
    sample: str


class ShortOfDistinct(NamedTuple):
    """A channel with fewer distinct exemplars than asked for, where the data set may hold more: the candidates that
    the scan kept ran out."""

    readout: int
    channel: int
    exemplars: int


@dataclass(frozen=True)
class Selected:
    """The exemplars of a run, in the order of results: by readout, channel, rank, sample."""

    scores: Scores
    """Recomputed."""
    samples: list[str]
    ranks: np.ndarray
    """int32, from 1 within a sample."""
    duplicate_of: list[int | None]
    """Rank of the near-duplicate above, in the same channel and sample."""
    maps: pa.Table
    """`gathered.SPOOLED_MAPS_SCHEMA`, a row an exemplar."""
    largest_error: float
    """Largest difference between a scanned and a recomputed activation."""
    unsettled: list[Unsettled]
    certainty: list[Certainty]
    """For each readout."""
    tails: dict[TailKey, Tail]
    short: list[ShortOfDistinct]
    beyond_rounding: int = 0
    """How many activations an exact scan saw otherwise than rounding explains in most networks; see `mix_up`."""
    not_finite: Scores = field(default_factory=Scores.empty)
    """Which activations came out as NaN or infinity when they were recomputed."""
