"""Which candidates each task of gather recomputes. Numpy only.

A task has candidates of one shard, few enough that no worker is left with much when the others are done. Images that
the scan could not tell apart, copies of one another most likely, go to the task of the first of them: it recomputes an
image once, whatever shards have copies. Of one that was recomputed earlier it is handed what was left of that. Which
tasks there are does not depend on the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from exemplar_ray.data.shard import Shard
from exemplar_ray.exemplars.gathered import (
    BYTES_OF_A_UNIT,
    MOST_REMEMBERED_BYTES,
    bytes_of_answer,
    units_of_maps,
)
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import NEAR_ZERO, Scores, concatenate, image_numbers

# A task has about so much in memory, images and maps together.
_BYTES_PER_TASK = 512 << 20
# About a second's work of a core: beside it, opening the shard takes little.
_ORIGINALS_PER_TASK = 32

# Numbers of few digits, as a screened scan's may be, are alike by chance, but not so many of an image's. A float16 as
# float32 has none of these bits set, and a bfloat16 neither.
_MANY_DIGITS = 0x1FFF
_TIES_OF_FEW_DIGITS = 2


class Task(NamedTuple):
    """What a task recomputes."""

    candidates: dict[int, np.ndarray]
    """{shard position: the indices of its candidates among the shard's, ascending}"""
    images: np.ndarray
    """int64: the numbers of their images, see `topk.image_numbers`."""
    originals: np.ndarray
    """int64: the numbers of those that they seem to be copies of, themselves included, each once."""


def split(
    spec: ExemplarsSpec, shards: Mapping[int, Shard], wanted: Mapping[int, Scores], before: Scores | None = None
) -> list[Task]:
    """Split candidates for tasks that take about as long as one another, and whose images and maps fit into a task's
    memory.

    Args:
        shards: by position.
        wanted: candidates by their shard's position, as scanned; at least one.
        before: those that were recomputed earlier.

    Returns:
        Tasks. All of an image's candidates are in one.
    """
    everything = concatenate(wanted[position] for position in sorted(wanted))
    images, image = np.unique(image_numbers(everything), return_inverse=True)
    image = image.reshape(-1)
    original = _originals(everything, images, before)
    maps = np.bincount(image, units_of_maps(spec, everything), minlength=len(images))
    # Never 0, also where a file's size is not known.
    an_image = {p: shard.size // max(shard.expected_rows, 1) + 1 for p, shard in shards.items()}
    sizes = maps * BYTES_OF_A_UNIT + np.array([an_image[p] for p in (images >> 32).tolist()])
    home = original >> 32
    # Copies one behind the other: a task's end does not come between them, but for the largest of tasks.
    order = np.lexsort((images, original, home))
    task = np.empty(len(images), np.int64)
    is_first = np.diff(original[order], prepend=-1) != 0
    task[order] = _numbered(home[order], (sizes[order], _BYTES_PER_TASK), (is_first, _most_originals(spec)))
    within = np.concatenate([np.arange(len(wanted[position].row)) for position in sorted(wanted)])
    candidates: list[dict[int, np.ndarray]] = [{} for _ in range(int(task.max()) + 1)]
    key = task[image] * (int(everything.shard.max()) + 1) + everything.shard
    by_task = np.argsort(key, kind="stable")
    ends = np.flatnonzero(np.diff(key[by_task])) + 1
    for members in np.split(by_task, ends):
        candidates[task[image[members[0]]]][int(everything.shard[members[0]])] = within[members]
    ends = np.cumsum(np.bincount(task))[:-1]
    by_task = np.argsort(task, kind="stable")
    of_task = np.split(by_task, ends)
    return [
        Task(of_shards, images[which], np.unique(original[which]))
        for of_shards, which in zip(candidates, of_task, strict=True)
    ]


def _originals(wanted: Scores, images: np.ndarray, before: Scores | None) -> np.ndarray:
    """Return the number of the image that each seems to be a copy of; of itself where there is none."""
    scores = wanted if before is None else concatenate([wanted, before])
    known, image = np.unique(image_numbers(scores), return_inverse=True)
    original = likely_originals(scores, known, image.reshape(-1))
    return known[original[np.searchsorted(known, images)]]


def likely_originals(candidates: Scores, images: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Find images that the scan could not tell apart.

    A copy has the activations of what it is a copy of, in every channel. And where it is a candidate, that is one, too:
    of equal activations the first shard's first row is the stronger.

    Args:
        images: int64, ascending: a number for every image, in the order of shards and rows.
        image: int64 [candidates]: which of the images each is of.

    Returns:
        int64 [images]: the index of the first image that each seems to be a copy of; its own where there is none.
    """
    bits = (candidates.activation + np.float32(0)).view(np.int32)
    columns = (candidates.readout, candidates.ranking == NEAR_ZERO, candidates.channel, bits)
    order = np.lexsort((image, *columns[::-1]))
    starts = np.ones(len(order), bool)
    starts[1:] = np.logical_or.reduce([column[order][1:] != column[order][:-1] for column in columns])
    first = np.empty(len(order), np.int64)
    first[order] = image[order][np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    # Zeros are alike without being copies.
    tells = candidates.activation != 0
    pairs, pair = np.unique(np.stack([image[tells], first[tells]], axis=1), axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    ties, of_many_digits = np.bincount(pair), np.bincount(pair, (bits[tells] & _MANY_DIGITS) != 0)
    of_image = np.bincount(image[tells], minlength=len(images))
    original = np.arange(len(images))
    copies = (2 * ties > of_image[pairs[:, 0]]) & ((of_many_digits > 0) | (ties >= _TIES_OF_FEW_DIGITS))
    original[pairs[copies, 0]] = pairs[copies, 1]
    return original


def _most_originals(spec: ExemplarsSpec) -> int:
    """Return how many originals a task has at most: what it hears of each is remembered until its last copy."""
    return max(min(_ORIGINALS_PER_TASK, MOST_REMEMBERED_BYTES // bytes_of_answer(spec)), 1)


def _numbered(home: np.ndarray, *limits: tuple[np.ndarray, int]) -> np.ndarray:
    """Number the tasks of images, sorted by home: one for each home, or several that are about equally large.

    Args:
        limits: how large each image is, whole numbers, of a home's first image from 1, and how much a task has of that;
            there may be several measures.
    """
    starts = np.ones(len(home), bool)
    starts[1:] = home[1:] != home[:-1]
    number = np.cumsum(starts) - 1
    for sizes, most in limits:
        behind = np.cumsum(sizes)
        of_home = np.bincount(number, sizes)
        within = behind - (np.cumsum(of_home) - of_home)[number]
        piece = (within - 1) * np.ceil(of_home / most)[number] // of_home[number]
        starts[1:] |= piece[1:] != piece[:-1]
    return np.cumsum(starts) - 1
