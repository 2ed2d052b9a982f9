"""Twins: channels that are made of the same inputs in the same way, but for a turn or a reflection."""

from __future__ import annotations

from typing import Any

import numpy as np

# Channels whose kernels are less alike are no twins.
_LEAST_COSINE = 0.5
_MOST = 3

_QUARTERS = ("as it is", "a quarter turned", "half turned", "three quarters turned")


def twins(kernels: np.ndarray, channel: int) -> list[dict[str, Any]]:
    """Find the channels of a layer that are most like one, if it is turned or mirrored.

    Args:
        kernels: float32 [channels, inputs, height, width] of the layer.
        channel: whose twins are wanted.

    Returns:
        `channel`, `turned` in words, `cosine` of the two kernels, the most alike first.
    """
    flat = kernels.reshape(len(kernels), -1)
    sizes = np.sqrt((flat.astype(np.float64) ** 2).sum(axis=1))
    if not sizes[channel]:
        return []
    best = np.full(len(kernels), -np.inf)
    how = np.zeros(len(kernels), np.int64)
    for number, turned in _turned(kernels[channel]).items():
        cosine = np.divide(flat @ turned.ravel(), sizes * sizes[channel], out=np.zeros(len(flat)), where=sizes > 0)
        # Of equal ones the simplest: a kernel of one number is the same however it is turned.
        better = cosine > best + 1e-6
        best, how = np.where(better, cosine, best), np.where(better, number, how)
    best[channel] = -np.inf
    order = np.argsort(-best, kind="stable")[:_MOST]
    return [
        {"channel": int(at), "turned": _words(int(how[at])), "cosine": float(best[at])}
        for at in order
        if best[at] >= _LEAST_COSINE
    ]


def _turned(kernel: np.ndarray) -> dict[int, np.ndarray]:
    """Return a kernel, [inputs, height, width], in each way that keeps its shape."""
    turns = range(4) if kernel.shape[1] == kernel.shape[2] else (0, 2)
    return {
        4 * mirrored + turn: np.rot90(kernel[:, :, ::-1] if mirrored else kernel, turn, axes=(1, 2))
        for mirrored in (False, True)
        for turn in turns
    }


def _words(number: int) -> str:
    mirrored, turn = divmod(number, 4)
    return f"mirrored, {_QUARTERS[turn]}" if mirrored and turn else "mirrored" if mirrored else _QUARTERS[turn]
