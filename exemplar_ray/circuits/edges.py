"""Edges: what of a channel's kernels is kept, the strongest inputs first. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

# An input is nearly nothing whose norm is below this part of the strongest one's.
NEARLY_ZERO = 0.01
# A kernel is mostly of one sign where so much of its absolute weight is.
MOSTLY = 0.6

_EDGE = [
    ("weights", pa.list_(pa.float32())),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("l2", pa.float32()),
    ("sum", pa.float32()),
    ("positive_share", pa.float32()),
    ("sign", pa.string()),
    ("rank", pa.int32()),
    ("share", pa.float32()),
]
EDGES = pa.schema(
    [
        ("layer", pa.string()),
        ("channel", pa.int32()),
        ("from_layer", pa.string()),
        ("from_channel", pa.int32()),
        ("kind", pa.string()),
        *_EDGE,
    ]
)
USES = pa.schema(
    [("layer", pa.string()), ("channel", pa.int32()), ("next_layer", pa.string()), ("next_channel", pa.int32()), *_EDGE]
)


class Strengths(NamedTuple):
    """How strong each input of a channel is."""

    l2: np.ndarray
    """float64 [inputs]: the norm of its kernel."""
    rank: np.ndarray
    """int64 [inputs]: 1 for the largest norm; of equal ones the first channel comes first."""
    share: np.ndarray
    """float64 [inputs]: of the squared norm of all of them."""

    @property
    def nearly_zero(self) -> np.ndarray:
        """Return which inputs are nearly nothing: bool [inputs]."""
        return self.l2 <= NEARLY_ZERO * self.l2.max(initial=0)


def strengths(kernel: np.ndarray) -> Strengths:
    """Compare the inputs of one channel, [inputs, height, width]."""
    l2 = np.sqrt((kernel.astype(np.float64) ** 2).sum(axis=(1, 2)))
    rank = np.empty(len(l2), np.int64)
    rank[np.argsort(-l2, kind="stable")] = np.arange(1, len(l2) + 1)
    whole = (l2**2).sum()
    return Strengths(l2, rank, l2**2 / whole if whole else np.zeros_like(l2))


def edges(
    names: dict[str, Any], kernel: np.ndarray, top: int, channels: Sequence[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one channel, the strongest input first; those that are nearly nothing are left out.

    Args:
        names: what the rows have in common: `layer`, `channel`, `from_layer`, `kind`.
        kernel: float32 [inputs, height, width]
        top: how many at most; 0 for all.
        channels: of the layer before, for each input; None where they are all of them.
    """
    kernel = trimmed(kernel)
    strength = strengths(kernel)
    nearly_zero, order = strength.nearly_zero, np.argsort(strength.rank)
    for at in order[: top or None]:
        if nearly_zero[at]:
            return
        yield {
            **names,
            "from_channel": int(at if channels is None else channels[at]),
            **edge(kernel[at], strength, int(at)),
        }


def edge(weights: np.ndarray, strength: Strengths, at: int) -> dict[str, Any]:
    """Describe one kernel, [height, width], the one at a place among its channel's inputs."""
    absolute = float(np.abs(weights).sum(dtype=np.float64))
    positive = float(weights[weights > 0].sum(dtype=np.float64)) / absolute if absolute else 0.5
    return {
        "weights": weights.ravel(),
        "height": weights.shape[0],
        "width": weights.shape[1],
        "l2": strength.l2[at],
        "sum": float(weights.sum(dtype=np.float64)),
        "positive_share": positive,
        "sign": "excitatory" if positive >= MOSTLY else "inhibitory" if positive <= 1 - MOSTLY else "mixed",
        "rank": int(strength.rank[at]),
        "share": strength.share[at],
    }


def trimmed(kernel: np.ndarray) -> np.ndarray:
    """Take away, from kernels of one unit [channels, height, width], rings around the middle that are all zero."""
    while min(kernel.shape[1:]) > 2:
        ring = np.ones(kernel.shape[1:], bool)
        ring[1:-1, 1:-1] = False
        if kernel[:, ring].any():
            return kernel
        kernel = kernel[:, 1:-1, 1:-1]
    return kernel
