"""Spearman's rank correlation, of many rows at once."""

from __future__ import annotations

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the place of each value in its row, from 0, ascending; equal ones share the mean of theirs.

    Args:
        values: float [rows, values].
    """
    placed = np.empty(values.shape)
    for row, of_row in zip(placed, values, strict=True):
        _, which, counts = np.unique(of_row, return_inverse=True, return_counts=True)
        row[:] = (np.cumsum(counts) - (counts + 1) / 2)[which]
    return placed


def rank_correlations(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each row with each other one: float64 [ones, others]; 0 of what is all the same.

    Args:
        ones: float [ones, values].
        others: float [others, values].
    """
    return _standardised(ranks(ones)) @ _standardised(ranks(others)).T


def _standardised(placed: np.ndarray) -> np.ndarray:
    apart = placed - placed.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(apart, axis=1, keepdims=True)
    return np.divide(apart, lengths, out=np.zeros_like(apart), where=lengths > 0)
