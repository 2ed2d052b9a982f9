"""Which classes excite a channel: count, mean and maximum of each class, from the same pass.

A part stores means and maxima as whole multiples of a step, at most `STEPS` of them, since a shard
of ImageNet has a thousand classes: they are off by at most `ERROR` times the largest of the channel's classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from exemplar_ray.exemplars.topk import NO_LABEL

STEPS = 1 << 12
ERROR = 1 / STEPS


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
        labelled = labels != NO_LABEL
        activations, labels = activations[labelled], labels[labelled]
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
        merged = self._with_room_for(other.labels)
        at = np.searchsorted(merged.labels, other.labels)
        merged.images[at] += other.images
        merged.total[at] += other.total
        merged.maximum[at] = np.maximum(merged.maximum[at], other.maximum)
        return merged

    def _with_room_for(self, labels: np.ndarray) -> Self:
        """Return a copy that has other labels, too, of no images."""
        every = np.union1d(self.labels, labels)
        # A merge of many shards soon knows all classes, and there are many; then it is only copied.
        if len(every) == len(self.labels):
            return type(self)(every, self.images.copy(), self.total.copy(), self.maximum.copy())
        shape = (len(every), self.images.shape[1])
        roomy = type(self)(every, np.zeros(shape, np.int64), np.zeros(shape), np.full(shape, -np.inf, np.float32))
        at = np.searchsorted(every, self.labels)
        roomy.images[at], roomy.total[at], roomy.maximum[at] = self.images, self.total, self.maximum
        return roomy

    @property
    def mean(self) -> np.ndarray:
        """float64 [classes, channels]; NaN where a class has no finite activation."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.total / self.images

    def to_table(self) -> pa.Table:
        """Return labels, counts, means and maxima as lists, a row a channel."""
        classes, channels = self.images.shape
        offsets = np.arange(channels + 1, dtype=np.int32) * classes
        seen = self.images > 0
        mean, mean_step = _to_steps(np.where(seen, self.mean, 0))
        maximum, maximum_step = _to_steps(np.where(seen, self.maximum, 0))
        lists = {"labels": np.repeat(self.labels[:, None], channels, axis=1), "images": self.images}
        lists |= {"mean": mean, "maximum": maximum}
        columns = {name: pa.ListArray.from_arrays(offsets, pa.array(v.T.reshape(-1))) for name, v in lists.items()}
        return pa.table({**columns, "mean_step": mean_step, "maximum_step": maximum_step})

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Read back what `to_table` returned, to its precision."""

        def by_class(name: str) -> np.ndarray:
            return table[name].combine_chunks().flatten().to_numpy().reshape(len(table), -1).T

        images = by_class("images").copy()
        mean = by_class("mean") * table["mean_step"].to_numpy()
        # Rounding must not turn the largest numbers into infinity.
        limit = float(np.finfo(np.float32).max)
        maximum = np.clip(by_class("maximum") * table["maximum_step"].to_numpy(), -limit, limit)
        maximum = np.where(images > 0, maximum, -np.inf)
        return cls(by_class("labels")[:, 0].copy(), images, mean * images, maximum.astype(np.float32))

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


def _to_steps(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round finite float [classes, channels] to multiples of a step, a power of two, for each channel.

    Returns:
        int16 [classes, channels], how many steps, at most `STEPS`; float64 [channels], the steps.
    """
    largest = np.abs(values).max(axis=0, initial=0.0)
    step = np.ldexp(ERROR, np.frexp(largest)[1])
    # What rounds up to a power of two is as large as that: rounding again must change nothing.
    step = np.where(np.rint(largest / step) >= STEPS, 2 * step, step)
    return np.rint(values / step).astype(np.int16), step
