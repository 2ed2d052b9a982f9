"""A part of the images: some classes, so many of each, so many in all; the same ones however a data set is split.

Which of several are taken is decided by a hash of the seed and an image's path, the lowest first. Where images have no
paths, or two have the same, it is a hash of the seed and the image's place in the data set.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from exemplar_ray.data.footers import read_surely
from exemplar_ray.data.formats.registry import open_shard
from exemplar_ray.data.imagenet_names import name_of_synset
from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.shard import Shard
from exemplar_ray.errors import ShardError, UsageError, near_matches, one_line

_THREADS = 16
_NO_LABEL = -1
_MOST_NAMED = 5


class Wanted(NamedTuple):
    """Which images the user asks for."""

    images: int | None
    """So many in all; None for any number."""
    per_class: int | None
    """So many of each class; None for any number."""
    classes: tuple[str, ...]
    """By number, synset id or name; () for all."""
    seed: int

    @property
    def is_all(self) -> bool:
        """Whether that is all images."""
        return self.images is None and self.per_class is None and not self.classes


@dataclass(frozen=True)
class Subset:
    """What was chosen of a data set."""

    images: int | None
    per_class: int | None
    classes: tuple[int, ...]
    """Labels; () for all."""
    seed: int
    chosen: int
    """How many images these are."""
    of: int
    """How many the data set has."""
    sha256: str
    """Hex, of which rows of which shards."""

    @property
    def words(self) -> str:
        """Say what was chosen.

        >>> Subset(1000, None, (), 3, 1000, 1200, "").words
        '1,000 of 1,200 images: 1,000 at random (seed 3)'
        >>> Subset(None, 50, (0, 1), 0, 97, 1200, "").words
        '97 of 1,200 images: 2 classes, at most 50 of each at random (seed 0)'
        """
        parts = [f"{len(self.classes):,} class{'es' if len(self.classes) > 1 else ''}"] if self.classes else []
        parts += [f"at most {self.per_class:,} of each{'' if self.classes else ' class'}"] if self.per_class else []
        parts += [f"{self.images:,}"] if self.images else []
        drawn = f" at random (seed {self.seed})" if self.images or self.per_class else ""
        return f"{self.chosen:,} of {self.of:,} images: {', '.join(parts)}{drawn}"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Subset:
        """Read back what `dataclasses.asdict` gave."""
        return cls(**{**values, "classes": tuple(values["classes"])})

    def identity(self) -> dict[str, Any]:
        """Return what decides a result, under the user's key names, and which images that came to."""
        asked = {"images": self.images, "per_class": self.per_class, "classes": list(self.classes) or None}
        return {**{key: value for key, value in asked.items() if value is not None}, "chosen_images": self.sha256}


def choose(
    shards: Sequence[Shard], labels: ClassLabels, wanted: Wanted
) -> tuple[list[Shard], Subset | None, list[str]]:
    """Choose images; their paths and labels are read for that, and not the images.

    Args:
        shards: the data set, looked at.
        labels: what its classes are called.

    Returns:
        The shards, each with the rows that are chosen; what was chosen, None for all; and what is to be said of it.

    Raises:
        UsageError: a shard cannot be read, there are no labels to choose by, or no such class.
    """
    if wanted.is_all:
        return list(shards), None, []
    unknown = next((shard for shard in shards if shard.footer is None), None)
    if unknown is not None:
        raise UsageError(
            f"'{unknown.uri}' cannot be read, so that which images to choose is not known; mend it, or leave it out"
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        listed = list(pool.map(_listed, shards))
    label = np.concatenate([one.labels for one in listed])
    by_labels = wanted.classes or wanted.per_class is not None
    if by_labels and not (label != _NO_LABEL).any():
        raise UsageError("per_class and classes choose by labels, and these images have none")
    paths = chain.from_iterable(one.paths for one in listed)
    a_path_of_each = {number: path for number, path in zip(label.tolist(), paths, strict=True) if number != _NO_LABEL}
    classes = classes_of(wanted.classes, labels, a_path_of_each)
    order, notes = _in_order(listed, wanted.seed)
    if by_labels:
        order = order[label[order] != _NO_LABEL]
    if classes:
        order = order[np.isin(label[order], classes)]
    if wanted.per_class is not None:
        order, few = _so_many_of_each(order, label, wanted.per_class)
        if few:
            notes.append(f"{few:,} classes have fewer than {wanted.per_class:,} images, which are all taken")
    if wanted.images is not None:
        if wanted.images > len(order):
            notes.append(f"{wanted.images:,} images are asked for; there are {len(order):,}, which are all taken")
        order = order[: wanted.images]
    ends = np.cumsum([len(one.labels) for one in listed])
    chosen = [
        _with_chosen(shard, one, order[(order >= end - len(one.labels)) & (order < end)] - (end - len(one.labels)))
        for shard, end, one in zip(shards, ends.tolist(), listed, strict=True)
    ]
    digest = hashlib.sha256("\n".join(f"{shard.name} {shard.chosen}" for shard in chosen).encode()).hexdigest()
    subset = Subset(wanted.images, wanted.per_class, classes, wanted.seed, len(order), len(label), digest)
    return chosen, subset, [subset.words, *notes]


def _with_chosen(shard: Shard, listed: _Listed, rows: np.ndarray) -> Shard:
    total = len(listed.labels)
    return replace(shard, rows=total, about=None, places=listed.places, chosen=packed(rows, total))


class _Listed(NamedTuple):
    """A shard's rows, without the images."""

    paths: list[str | None]
    labels: np.ndarray
    """int64; `_NO_LABEL` where there is none."""
    places: Sequence[int] | None
    """See `ShardReader.places`."""


def _listed(shard: Shard) -> _Listed:
    def read() -> _Listed:
        with open_shard(replace(shard, chosen=None)) as reader:
            paths: list[str | None] = []
            labels: list[int] = []
            for of_batch, batch_labels in reader.paths_and_labels():
                paths += of_batch
                labels += [_NO_LABEL if label is None else label for label in batch_labels]
            return _Listed(paths, np.array(labels, np.int64), reader.places)

    try:
        return read_surely(shard.uri, read)
    except (ShardError, pa.ArrowException) as error:
        raise UsageError(f"'{shard.uri}': its paths and labels cannot be read: {one_line(error)}") from error


def _in_order(listed: Sequence[_Listed], seed: int) -> tuple[np.ndarray, list[str]]:
    """Return the numbers of all images, the first to be taken first, and what is to be said of how that was found."""
    paths = [path for one in listed for path in one.paths]
    by_path = np.array([_priority(seed, path.encode()) for path in paths if path], np.uint64)
    if len(np.unique(by_path)) == len(paths):
        return np.argsort(by_path, kind="stable"), []
    by_place = np.array([_priority(seed, number.to_bytes(8, "little")) for number in range(len(paths))], np.uint64)
    why = "not all images have paths of their own" if by_path.size else "images have no paths"
    return np.argsort(by_place, kind="stable"), [f"{why}, so they are drawn by their places in the data"]


def _priority(seed: int, key: bytes) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed}\n".encode() + key)


def _so_many_of_each(order: np.ndarray, label: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Return the first `most` of each class, in order, and how many classes have fewer."""
    by_class = np.argsort(label[order], kind="stable")
    _, starts, counts = np.unique(label[order][by_class], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(starts, counts)
    return order[np.sort(by_class[place < most])], int((counts < most).sum())


def packed(rows: np.ndarray, total: int) -> str:
    """Write rows of a shard down: a bit a row, deflated, in base64.

    >>> Shard("a", "a", 1, rows=9, chosen=packed(np.array([1, 5]), 9)).chosen_rows
    array([1, 5])
    """
    bits = np.zeros(total, bool)
    bits[rows] = True
    return base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()


# Classes ----------------------------------------------------------------------------------


def classes_of(wanted: Sequence[str], labels: ClassLabels, paths: Mapping[int, str | None]) -> tuple[int, ...]:
    """Return the labels of classes that the user names by number, synset id or name, ascending.

    Args:
        paths: of an image of each class that there is: ImageNet's have the synset id in them.

    Raises:
        UsageError: there is no such class, or it may be one of several.
    """
    if not wanted:
        return ()
    known = sorted({*paths, *range(len(labels.names or ())), *map(int, labels.table)})
    said = {label: (labels.synset_id(label, paths.get(label)), labels.class_name(label)) for label in known}
    called: dict[str, set[int]] = {}
    for label, (synset_id, name) in said.items():
        names = [name or "", *(name or "").split(","), name_of_synset(synset_id) or ""]
        for text in {str(label), synset_id or "", *names} - {""}:
            called.setdefault(text.strip().lower(), set()).add(label)
    return tuple(sorted({_class_of(one, called, said) for one in wanted}))


def _class_of(text: str, called: Mapping[str, set[int]], said: Mapping[int, tuple[str | None, str | None]]) -> int:
    found = sorted(called.get(text.strip().lower(), ()))
    if not found:
        raise UsageError(f"classes: there is no class '{text}'; {near_matches(text.lower(), called)}")
    if len(found) > 1:
        several = (f"{label} ({', '.join(dict.fromkeys(filter(None, said[label])))})" for label in found[:_MOST_NAMED])
        raise UsageError(f"classes: '{text}' may be {' or '.join(several)}; give its number or its synset id")
    return found[0]
