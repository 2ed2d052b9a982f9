"""How the check's tasks work: what the driver hands them, and what they hand back. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from exemplar_ray.check.outputs import Reading
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shard import Shard
from exemplar_ray.network.spec import NetworkSpec

FIRST_GUESSES = 5


@dataclass(frozen=True)
class AskedNetwork:
    """A network in the user's words, see the keys of a run."""

    model: str
    weights: str
    preprocess: Mapping[str, Any] | None


@dataclass(frozen=True)
class ToIntroduce:
    """What the task that builds the network is handed."""

    asked: AskedNetwork | NetworkSpec
    shards: Sequence[Shard]
    """Whose first images the network is questioned with."""


@dataclass(frozen=True)
class Introduced:
    """What is found out about a network before images are counted."""

    network: NetworkSpec
    own: Preprocess | None
    """The model's own preprocessing, where it brings one."""
    outputs: int | None
    """How many logits it gives for an image; None if it gives none."""
    no_logits: str | None
    """What it gives instead."""
    answers: tuple[str, ...] = ()
    """What it answered to the questions that are put to a network, in lines: see `network.questions`."""
    gives_images: bool = False
    """Whether it gives images in place of logits."""


@dataclass(frozen=True)
class LookSettings:
    """What a task that looks at images is handed."""

    network: NetworkSpec
    preprocessings: tuple[Preprocess, ...]
    """The one in use first."""
    readings: tuple[Reading, ...]
    batch_size: int
    """Images a forward pass."""
    threads: int
    """How many decode at the same time, and how many the network computes with."""
    use_gpu: bool


@dataclass(frozen=True)
class SeenGuesses:
    """What a network takes one image for."""

    shard: str
    row: int
    path: str | None
    label: int | None
    outputs: tuple[int, ...]
    """The first guesses, the likeliest first."""
    probabilities: tuple[float, ...]
    crop: np.ndarray
    """uint8 [crop, crop, channels]: what the network saw."""


@dataclass(frozen=True)
class Looked:
    """What came of some images. That of disjoint images adds up."""

    images: int = 0
    """That could be decoded."""
    undecodable: int = 0
    unlabelled: int = 0
    foreign: int = 0
    """Images whose label is the class of no output."""
    foreign_label: int | None = None
    """The largest such label."""
    not_finite: int = 0
    """Images for which some output is NaN or infinite, with the preprocessing in use."""
    probabilities: int = 0
    """Images whose outputs are not negative and add up to 1, with the preprocessing in use."""
    counts: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 5), np.int64))
    """int64 [readings, preprocessings, the fields of `counts.Count`]"""
    guesses: tuple[SeenGuesses, ...] = ()

    def plus(self, other: Looked) -> Looked:
        """Return what both come to together."""
        labels = [label for label in (self.foreign_label, other.foreign_label) if label is not None]
        return Looked(
            images=self.images + other.images,
            undecodable=self.undecodable + other.undecodable,
            unlabelled=self.unlabelled + other.unlabelled,
            foreign=self.foreign + other.foreign,
            foreign_label=max(labels, default=None),
            not_finite=self.not_finite + other.not_finite,
            probabilities=self.probabilities + other.probabilities,
            counts=self.counts + other.counts,
            guesses=self.guesses + other.guesses,
        )
