"""Which classes excite a channel: count, mean and maximum of each class, from the same pass.

A part stores means and maxima to `SIGNIFICANT_BITS` bits, since a shard of ImageNet has a
thousand classes: they are off by at most 1 / 2**12 of their value. Counts are whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from exemplar_ray.topk import NO_LABEL

SIGNIFICANT_BITS = 12
RELATIVE_ERROR = 2.0**-SIGNIFICANT_BITS


@dataclass
class Classes:
    """Statistics of each class's finite activations; every array but `labels` is [classes, channels]."""

    labels: np.ndarray
    """int64 [classes], ascending. Images without a label are left out."""
    images: np.ndarray
    """int64"""
    total: np.ndarray
    """float64: sum of activations."""
    maximum: np.ndarray
    """float32; -infinity where there are no images."""

    @classmethod
    def empty(cls, channels: int) -> Self:
        """Return the tally of no images."""
        shape = (0, channels)
        return cls(np.empty(0, np.int64), np.empty(shape, np.int64), np.empty(shape), np.empty(shape, np.float32))

    def update(self, activations: np.ndarray, labels: np.ndarray) -> None:
        """Take in float32 [images, channels] and int64 [images] labels."""
        known = labels != NO_LABEL
        activations, labels = activations[known], labels[known]
        # Images of one class stand together, so that each class is one slice.
        order = np.argsort(labels, kind="stable")
        activations = activations[order]
        classes, starts = np.unique(labels[order], return_index=True)
        if not len(classes):
            return
        finite = np.isfinite(activations)
        added = Classes(
            labels=classes,
            images=np.add.reduceat(finite.astype(np.int64), starts),
            total=np.add.reduceat(np.where(finite, activations, 0).astype(np.float64), starts),
            maximum=np.maximum.reduceat(np.where(finite, activations, np.float32(-np.inf)), starts),
        )
        self.__dict__.update(self.merge(added).__dict__)

    def merge(self, other: Self) -> Self:
        """Return the tally of both sets of images."""
        labels = np.union1d(self.labels, other.labels)
        shape = (len(labels), self.images.shape[1])
        merged = type(self)(labels, np.zeros(shape, np.int64), np.zeros(shape), np.full(shape, -np.inf, np.float32))
        for one in (self, other):
            at = np.searchsorted(labels, one.labels)
            merged.images[at] += one.images
            merged.total[at] += one.total
            merged.maximum[at] = np.maximum(merged.maximum[at], one.maximum)
        return merged

    @property
    def mean(self) -> np.ndarray:
        """float64 [classes, channels]; NaN where a class has no finite activation."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.total / self.images

    def to_table(self) -> pa.Table:
        """Return labels, counts, means and maxima as lists, a row a channel."""
        classes, channels = self.images.shape
        offsets = np.arange(channels + 1, dtype=np.int32) * classes
        columns = {
            "labels": np.tile(self.labels, channels),
            "images": self.images.T.reshape(-1),
            "mean": rounded(self.mean.T.reshape(-1)),
            "maximum": rounded(self.maximum.T.reshape(-1)),
        }
        return pa.table({name: pa.ListArray.from_arrays(offsets, pa.array(v)) for name, v in columns.items()})

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Read back what `to_table` returned, to its precision."""
        channels = len(table)
        flat = {name: table[name].combine_chunks().flatten().to_numpy() for name in table.column_names}
        images, mean, maximum = (flat[name].reshape(channels, -1).T.copy() for name in ("images", "mean", "maximum"))
        labels = flat["labels"][: len(images)].copy()
        total = np.where(images > 0, mean.astype(np.float64), 0) * images
        return cls(labels, images, total, maximum)

    def columns(self) -> dict[str, np.ndarray]:
        """Return `selectivity` and `class_entropy`, of the channel's class means.

        Selectivity is (m - r) / (m + r), m the largest class mean and r the mean of the other
        classes' means (Morcos, Barrett, Rabinowitz and Botvinick, "On the importance of single
        directions for generalization", 2018, equation 1). It is made for activations that are not
        negative: 0 for a channel that does not care, 1 for one that answers to a single class.

        The entropy is Shannon's, in bits, of the class means as shares of their sum: 0 for a channel that
        answers to a single class, log2(classes) for one that does not care.

        Both are NaN with fewer than two classes, for a channel that is never active, and where a
        class's mean is negative.
        """
        mean = self.mean
        selectivity, entropy = np.full((2, mean.shape[1]), np.nan)
        if len(mean) >= 2:
            highest = mean.max(axis=0)
            rest = (mean.sum(axis=0) - highest) / (len(mean) - 1)
            fit = (mean >= 0).all(axis=0) & (highest > 0)
            selectivity[fit] = (highest[fit] - rest[fit]) / (highest[fit] + rest[fit])
            share = mean[:, fit] / mean[:, fit].sum(axis=0)
            # + 0 turns the -0 of a single class into 0.
            entropy[fit] = -np.sum(share * np.log2(share, out=np.zeros_like(share), where=share > 0), axis=0) + 0.0
        return {"selectivity": selectivity, "class_entropy": entropy}


def rounded(values: np.ndarray) -> np.ndarray:
    """Round to `SIGNIFICANT_BITS` significant bits, as float32; ties away from 0. What is not finite stays."""
    values = np.asarray(values, np.float32)
    dropped = 24 - SIGNIFICANT_BITS
    bits = values.view(np.int32)
    shortened = ((bits + (1 << (dropped - 1))) >> dropped) << dropped
    # Rounding must not turn the largest numbers into infinity.
    with np.errstate(over="ignore"):
        result = shortened.view(np.float32)
    return np.where(np.isfinite(values) & np.isfinite(result), result, values)
