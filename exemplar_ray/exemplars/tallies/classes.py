"""Which classes excite a channel: count, mean and maximum of each class, from the same pass.

A part stores means and maxima as whole multiples of a step, at most `STEPS` of them, since a shard
of ImageNet has a thousand classes: they are off by at most `ERROR` times the largest of the channel's classes.

Many classes of many channels are too much for a worker's memory. What is larger than `roomy.MOST_IN_MEMORY` is kept in
a file, and gone through a block of channels at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import pyarrow as pa

from exemplar_ray.exemplars.list_columns import lengths_and_values, list_column
from exemplar_ray.exemplars.tallies.roomy import roomy, written
from exemplar_ray.exemplars.topk import has_label

STEPS = 1 << 12
ERROR = 1 / STEPS

# So many numbers, of classes times channels, are worked through at a time.
CELLS_PER_BLOCK = 1 << 22
_CELLS_PER_STEP = 1 << 18


@dataclass
class Classes:
    """Statistics of each class's finite activations."""

    labels: np.ndarray
    """int64 [classes], ascending: the classes that occur. Images without a label are left out."""
    counts: np.ndarray
    """int64 [classes, channels]; [classes, 1] if every channel has as many, as where every activation is finite."""
    total: np.ndarray
    """float64 [classes, channels]: sum of activations."""
    maximum: np.ndarray
    """float32 [classes, channels]; -infinity where there are no images."""

    @classmethod
    def empty(cls, channels: int) -> Self:
        """Return the tally of no images."""
        return cls._of(np.empty(0, np.int64), channels)

    @classmethod
    def _of(cls, labels: np.ndarray, channels: int) -> Self:
        """Return the tally of no images, with room for some classes."""
        shape = (len(labels), channels)
        counts = np.zeros((len(labels), 1), np.int64)
        return cls(labels, counts, roomy(shape, np.float64, 0), roomy(shape, np.float32, -np.inf))

    @property
    def images(self) -> np.ndarray:
        """int64 [classes, channels]: images with a finite activation; to be read only."""
        return np.broadcast_to(self.counts, self.total.shape)

    def update(self, activations: np.ndarray, labels: np.ndarray) -> None:
        """Take in float32 [images, channels] and int64 [images] labels."""
        labelled = has_label(labels)
        activations, labels = activations[labelled], labels[labelled]
        # Images of one class stand together, so that each class is one slice.
        order = np.argsort(labels, kind="stable")
        activations = activations[order]
        classes, starts = np.unique(labels[order], return_index=True)
        if not len(classes):
            return
        finite = np.isfinite(activations)
        counted = np.ones((len(activations), 1), bool) if finite.all() else finite
        added = Classes(
            labels=classes,
            counts=np.add.reduceat(counted.astype(np.int64), starts),
            total=np.add.reduceat(np.where(finite, activations, 0).astype(np.float64), starts),
            maximum=np.maximum.reduceat(np.where(finite, activations, np.float32(-np.inf)), starts),
        )
        if not np.isin(classes, self.labels).all():
            self.__dict__.update(self._with_room_for(classes).__dict__)
        self._add(added)

    def merge(self, other: Self) -> Self:
        """Return the tally of both sets of images."""
        merged = self._with_room_for(other.labels)
        merged._add(other)
        return merged

    def _with_room_for(self, labels: np.ndarray) -> Self:
        """Return a copy that has other labels, too, of no images."""
        copy = self._of(np.union1d(self.labels, labels), self.total.shape[1])
        copy._add(self)
        return copy

    def _add(self, other: Classes) -> None:
        """Take in another tally, whose labels are all known."""
        at = np.searchsorted(self.labels, other.labels)
        if self.counts.shape[1] < other.counts.shape[1]:
            self.counts = _full(self.counts, self.total.shape[1])
        self.counts[at] += other.counts
        # Indexing copies, and a file's pages come in large pieces: a few classes at a time.
        step = max(1, _CELLS_PER_STEP // max(1, self.total.shape[1]))
        for start in range(0, len(at), step):
            here, of_other = at[start : start + step], slice(start, start + step)
            self.total[here] += other.total[of_other]
            self.maximum[here] = np.maximum(self.maximum[here], other.maximum[of_other])
            written(self.total, self.maximum, other.total, other.maximum)

    @property
    def mean(self) -> np.ndarray:
        """float64 [classes, channels]; NaN where a class has no finite activation."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.total / self.images

    def blocks(self) -> Iterator[tuple[slice, Classes]]:
        """Yield the tallies of channels that stand together, at most `CELLS_PER_BLOCK` numbers or two channels each."""
        classes, channels = self.total.shape
        # Sums over a single column are rounded otherwise than over several.
        count = max(1, min(-(-classes * channels // CELLS_PER_BLOCK), channels // 2))
        edges = [channels * i // count for i in range(count + 1)]
        for start, end in pairwise(edges):
            which = slice(start, end)
            counts = self.counts if self.counts.shape[1] == 1 else self.counts[:, which]
            yield which, Classes(self.labels, counts, self.total[:, which], self.maximum[:, which])
            written(self.total, self.maximum)

    def to_table(self) -> pa.Table:
        """Return labels, counts, means and maxima as lists, a row a channel."""
        return pa.concat_tables(self.to_tables())

    def to_tables(self) -> Iterator[pa.Table]:
        """Yield the same a few channels at a time."""
        for _, block in self.blocks():
            yield block._to_table()

    def _to_table(self) -> pa.Table:
        classes, channels = self.total.shape
        images = self.images
        seen = images > 0
        mean, mean_step = _to_steps(np.where(seen, self.mean, 0))
        maximum, maximum_step = _to_steps(np.where(seen, self.maximum, 0))
        lengths = np.full(channels, classes)
        lists = {"labels": np.tile(self.labels, channels)}
        lists |= {
            name: values.T.reshape(-1) for name, values in (("images", images), ("mean", mean), ("maximum", maximum))
        }
        columns = {name: list_column(lengths, values) for name, values in lists.items()}
        return pa.table({**columns, "mean_step": mean_step, "maximum_step": maximum_step})

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Read back what `to_table` returned, to its precision."""
        return cls.from_tables([table], len(table))

    @classmethod
    def from_tables(cls, tables: Iterable[pa.Table], channels: int) -> Self:
        """Read back what `to_tables` yielded of so many channels, a few of them at a time."""
        read: Self | None = None
        start = 0
        for table in tables:
            lengths, labels = lengths_and_values(table["labels"])
            if read is None:
                read = cls._of(labels[: lengths[0]].copy(), channels)
            read._fill(slice(start, start + len(table)), table)
            start += len(table)
        return cls.empty(channels) if read is None else read

    def _fill(self, which: slice, table: pa.Table) -> None:
        """Put in what a table says of some of the channels."""

        def by_class(name: str) -> np.ndarray:
            return lengths_and_values(table[name])[1].reshape(len(table), -1).T

        images = by_class("images")
        if self.counts.shape[1] == 1:
            alike = bool((images == images[:, :1]).all()) and (which.start == 0 or (images == self.counts).all())
            self.counts = images[:, :1].copy() if alike else _full(self.counts, self.total.shape[1])
        if self.counts.shape[1] > 1:
            self.counts[:, which] = images
        mean = by_class("mean") * table["mean_step"].to_numpy()
        self.total[:, which] = mean * images
        # Rounding must not turn the largest numbers into infinity.
        limit = float(np.finfo(np.float32).max)
        maximum = np.clip(by_class("maximum") * table["maximum_step"].to_numpy(), -limit, limit)
        self.maximum[:, which] = np.where(images > 0, maximum, -np.inf)
        written(self.total, self.maximum)

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
        columns = np.full((2, self.total.shape[1]), np.nan)
        for which, block in self.blocks():
            columns[:, which] = _selectivity_and_entropy(block.mean)
        return {"selectivity": columns[0], "class_entropy": columns[1]}


def _selectivity_and_entropy(mean: np.ndarray) -> np.ndarray:
    """Return float64 [2, channels], given the float64 [classes, channels] means; see `Classes.columns`."""
    result = np.full((2, mean.shape[1]), np.nan)
    selectivity, entropy = result
    if len(mean) >= 2:
        highest = mean.max(axis=0)
        rest = (mean.sum(axis=0) - highest) / (len(mean) - 1)
        fit = (mean >= 0).all(axis=0) & (highest > 0)
        selectivity[fit] = (highest[fit] - rest[fit]) / (highest[fit] + rest[fit])
        share = mean[:, fit] / mean[:, fit].sum(axis=0)
        # + 0 turns the -0 of a single class into 0.
        entropy[fit] = -np.sum(share * np.log2(share, out=np.zeros_like(share), where=share > 0), axis=0) + 0.0
    return result


def _full(counts: np.ndarray, channels: int) -> np.ndarray:
    """Return int64 [classes, channels] of counts that were alike for all channels."""
    full = roomy((len(counts), channels), np.int64, 0)
    full += counts
    return full


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
