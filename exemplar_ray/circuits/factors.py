"""Factors: whether few patterns explain what a channel's many kernels are.

Non-negative factorisation of the positive and the negative parts, side by side (Voss et al., "Visualizing Weights",
Distill 2021), by multiplicative updates (Lee and Seung, "Algorithms for Non-negative Matrix Factorization", 2001).
"""

from __future__ import annotations

from typing import Any

import numpy as np

# So much of the squared weights is to be explained.
_ENOUGH = 0.6
_MOST = 4
_UPDATES = 200
_INPUTS_NAMED = 5


def factors(kernel: np.ndarray) -> list[dict[str, Any]]:
    """Find the fewest patterns, four at most, that explain most of a channel's kernels.

    Args:
        kernel: float [inputs, height, width]

    Returns:
        For each pattern `pattern`, float32 [height * width], with signs; `inputs`, those that have most of it; `share`,
        how much of the squared weights is explained with it and those before it. Empty where so few do not explain
        enough, or kernels are but one number each.
    """
    inputs, places = len(kernel), kernel[0].size
    if places == 1 or not kernel.any():
        return []
    flat = kernel.reshape(inputs, places).astype(np.float64)
    parts = np.concatenate([flat.clip(min=0), (-flat).clip(min=0)], axis=1)
    for count in range(1, min(_MOST, inputs, places) + 1):
        weights, patterns = _factorised(parts, count)
        left = ((parts - weights @ patterns) ** 2).sum() / (parts**2).sum()
        if 1 - left >= _ENOUGH:
            return _described(parts, weights, patterns, places)
    return []


def _factorised(parts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return [rows, count] and [count, columns] whose product is near the parts."""
    left, sizes, right = np.linalg.svd(parts, full_matrices=False)
    tiny = 1e-9 * parts.max()
    root = np.sqrt(sizes[:count])
    weights, patterns = np.abs(left[:, :count]) * root + tiny, np.abs(right[:count]) * root[:, None] + tiny
    for _ in range(_UPDATES):
        patterns *= (weights.T @ parts) / (weights.T @ weights @ patterns + tiny)
        weights *= (parts @ patterns.T) / (weights @ patterns @ patterns.T + tiny)
    return weights, patterns


def _described(parts: np.ndarray, weights: np.ndarray, patterns: np.ndarray, places: int) -> list[dict[str, Any]]:
    size = np.linalg.norm(weights, axis=0) * np.linalg.norm(patterns, axis=1)
    order = np.argsort(-size, kind="stable")
    found, so_far = [], np.zeros_like(parts)
    for at in order:
        so_far = so_far + np.outer(weights[:, at], patterns[at])
        share = 1 - ((parts - so_far) ** 2).sum() / (parts**2).sum()
        pattern = (patterns[at, :places] - patterns[at, places:]) / max(np.linalg.norm(patterns[at]), 1e-30)
        strongest = np.argsort(-weights[:, at], kind="stable")[:_INPUTS_NAMED]
        found.append({"share": float(share), "pattern": pattern, "inputs": strongest})
    return found
