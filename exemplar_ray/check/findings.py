"""What a check found: what `check.json` holds, and the same in lines of text. Needs no torch, no Ray."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from exemplar_ray.check.counts import LEAST_GAIN, Count, chance, is_better
from exemplar_ray.check.looking import FIRST_GUESSES
from exemplar_ray.check.usual import IN_USE
from exemplar_ray.data.imagenet_names import spelled_out
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.storage.folder import Folder

CHECK = "check.json"

# Fewer right guesses than blind guessing gives say nothing of a few images.
_ENOUGH_IMAGES = 50


@dataclass(frozen=True)
class Tried:
    """What came of one preprocessing."""

    name: str
    preprocess: Preprocess
    count: Count


@dataclass(frozen=True)
class Guess:
    """What the network takes an image for, as one of several guesses."""

    name: str
    probability: float


@dataclass(frozen=True)
class Guesses:
    """The first guesses for an image."""

    shard: str
    row: int
    path: str | None
    class_name: str | None
    """What it is, by the data."""
    guesses: tuple[Guess, ...]

    def __str__(self) -> str:
        where = f"{self.shard} row {self.row}"
        guesses = ", ".join(f"{short(guess.name)} {guess.probability:.2f}" for guess in self.guesses)
        return f"{where}, {short(self.class_name) if self.class_name else 'no label'}: {guesses}"


@dataclass(frozen=True)
class Findings:
    """What came of a check."""

    checked: str
    """When, UTC, ISO 8601."""
    version: str
    """Of exemplar_ray."""
    fingerprint: str | None
    """Of the run that was checked, None where it was none."""
    model_title: str
    weights_title: str
    weights_sha256: str
    trained: bool
    preprocess: Preprocess
    answers: tuple[str, ...]
    """What the network answered to the questions put to it, in lines."""
    outputs: int | None
    reading: str | None
    """Which output is taken for which class, in words."""
    no_accuracy: str | None
    """Why nothing is counted."""
    images: int
    images_in_data: int
    shards: int
    shards_in_data: int
    undecodable: int
    unlabelled: int
    uncounted: int
    """Images of classes that no output is of."""
    not_finite: int
    probabilities: bool
    """Whether the outputs are probabilities already."""
    tried: tuple[Tried, ...]
    """The preprocessing in use first; nothing where nothing is counted."""
    guesses: tuple[Guesses, ...]
    failed: dict[str, str] = field(default_factory=dict)
    """{shard that could not be looked at: reason}"""

    @property
    def in_use(self) -> Tried | None:
        """What came of the preprocessing in use."""
        return self.tried[0] if self.tried else None

    @property
    def better(self) -> tuple[Tried, ...]:
        """Return the preprocessings that are better than the one in use, the best first."""
        others = self.tried[1:]
        better = [one for one in others if is_better(one.count, len(others))]
        return tuple(sorted(better, key=lambda one: -one.count.share))

    def lines(self) -> list[str]:
        """Say what was counted, what is wrong, and what the network takes some images for."""
        found = [f"FOUND: {line}" for line in self.found()]
        return [self.looked_at(), *self.counted(), *found, *self._guessed(), *self._incomplete()]

    def found(self) -> list[str]:
        """Say what is not as it should be; nothing if all is well."""
        found = []
        if self.not_finite:
            found.append(f"for {self.not_finite:,} images some output is NaN or infinite")
        if self.better:
            found.append(self._other_is_better())
        elif self._is_chance():
            found.append(
                "this network is no better than blind guessing, however images are prepared; are its outputs in the "
                "order of the data's labels? --outputs FILE says which output is which class"
            )
        return found

    def in_short(self) -> str:
        """Say it all in a line."""
        if self.in_use is None:
            return f"no accuracy: {self.no_accuracy}"
        other = f"; BETTER: {self.better[0].name}: {percent(self.better[0].count)}" if self.better else ""
        return _accuracy(self.in_use.count, self.outputs) + other

    def looked_at(self) -> str:
        apart = [
            f"{count:,} {what}"
            for count, what in (
                (self.undecodable, "cannot be decoded"),
                (self.unlabelled, "without a label"),
                (self.uncounted, "of classes that no output is of, not counted"),
            )
            if count
        ]
        shards = f"from {self.shards:,} of {self.shards_in_data:,} shards"
        return "; ".join([f"looked at {self.images:,} of {self.images_in_data:,} images, {shards}", *apart])

    def counted(self) -> list[str]:
        if self.in_use is None:
            return [f"no accuracy: {self.no_accuracy}"]
        lines = [self.reading] if self.reading else []
        lines.append(_accuracy(self.in_use.count, self.outputs))
        if not self.trained:
            return [*lines, f"an untrained network guesses blindly: {100 / (self.outputs or 1):.2g} % is expected"]
        others = [one for one in self.tried if one.name != IN_USE]
        if others:
            lines.append("first guesses that are right with other usual preprocessings:")
            lines += [f"  {one.name}: {percent(one.count)}" for one in sorted(others, key=lambda o: -o.count.share)]
        if any(one.count.images < self.in_use.count.images for one in others):
            lines.append("  (those with fewer images were not tried on more: these rule out that they are the best)")
        if others and not self.better:
            lines.append(
                f"none is better by {100 * LEAST_GAIN:.0f} points and more than chance (McNemar's test, p < 0.05 for "
                f"all {len(others)} together)"
            )
        return lines

    def _other_is_better(self) -> str:
        best, *others = self.better
        assert self.in_use is not None
        near = [one for one in others if best.count.share - one.count.share < LEAST_GAIN]
        as_good = "".join(f"; as good on these images: {one.name} ({one.count.top1:,})" for one in near)
        return (
            f"with {best.name} it gets {percent(best.count)}, with the preprocessing in use "
            f"{percent(self.in_use.count)}: --preprocess {shlex.quote(best.preprocess.as_flag())}{as_good}"
        )

    def _is_chance(self) -> bool:
        if self.in_use is None or not self.trained or self.in_use.count.images < _ENOUGH_IMAGES:
            return False
        likely = [chance(one.count.top1, one.count.images, self.outputs or 2) for one in self.tried]
        return min(likely) * len(likely) > 0.05

    def _guessed(self) -> list[str]:
        if not self.guesses:
            return []
        how = "the network's own probabilities" if self.probabilities else "softmax of the outputs"
        return [f"first guesses ({how}):", *(f"  {guesses}" for guesses in self.guesses)]

    def _incomplete(self) -> list[str]:
        if not self.failed:
            return []
        count = f"INCOMPLETE: {len(self.failed)} of {self.shards_in_data} shards could not be looked at:"
        return [count, *(f"  {name}: {reason}" for name, reason in self.failed.items())]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        values = asdict(self)
        values["preprocess"] = self.preprocess.to_json()
        values["tried"] = [
            {"name": one.name, "preprocess": one.preprocess.to_json(), **one.count._asdict()} for one in self.tried
        ]
        return {**values, "better": [one.name for one in self.better], "found": self.found()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Findings:
        """Read back what `to_json` wrote."""
        own = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        tried = tuple(
            Tried(one["name"], Preprocess(**one["preprocess"]), Count(*(one[name] for name in Count._fields)))
            for one in values["tried"]
        )
        guesses = tuple(
            Guesses(**{**one, "guesses": tuple(Guess(**guess) for guess in one["guesses"])})
            for one in values["guesses"]
        )
        return cls(
            **{
                **own,
                "preprocess": Preprocess(**values["preprocess"]),
                "answers": tuple(values["answers"]),
                "tried": tried,
                "guesses": guesses,
            }
        )


def percent(count: Count) -> str:
    """Write how many first guesses are right.

    >>> percent(Count(images=800, top1=609))
    '609 of 800 (76.1 %)'
    """
    return _of(count.top1, count.images)


def short(name: str) -> str:
    """Return a class's first name.

    >>> short("tench, Tinca tinca"), short("n01440764")
    ('tench', 'n01440764 (tench)')
    """
    return spelled_out(name.split(",")[0])


def _of(right: int, images: int) -> str:
    return f"{right:,} of {images:,} ({100 * right / images if images else 0:.1f} %)"


def _accuracy(count: Count, outputs: int | None) -> str:
    """Write top-1 and top-5; of so few outputs that every class is among the first five, only top-1."""
    top5 = f", top-5: {_of(count.top5, count.images)}" if (outputs or 0) > FIRST_GUESSES else ""
    return f"top-1: {_of(count.top1, count.images)}{top5}"


def read_findings(folder: Folder, fingerprint: str) -> Findings | None:
    """Read what the last check of a run found; None if it was not checked, or if that was another run.

    Args:
        fingerprint: the run's.
    """
    values = folder.read_json(CHECK)
    if values is None or values.get("fingerprint") != fingerprint:
        return None
    try:
        return Findings.from_json(values)
    except (KeyError, TypeError, ValueError):
        # Of another version.
        return None
