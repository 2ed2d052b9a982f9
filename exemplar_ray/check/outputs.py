"""Which output is which class. Where two answers are possible, the images decide or the user: never we."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exemplar_ray.check.counts import SIGNIFICANCE, mcnemar
from exemplar_ray.data.labels import ClassLabels, read_json
from exemplar_ray.errors import UsageError

# Networks with so many outputs have ImageNet's 1,000 classes, but not as output 0..999.
_SHIFTED = {
    1001: "TensorFlow's networks have ImageNet's classes and a background before them",
    1008: "TensorFlow's InceptionV1, which Lucent ports, has ImageNet's classes in another order",
}
_SAY_WHICH = "--outputs FILE says which output is which class"


@dataclass(frozen=True)
class Reading:
    """One way to read a network's outputs."""

    words: str
    classes: tuple[int | None, ...]
    """The class (label) of each output, None for one that is of none of the data's classes."""
    whole: bool = True
    """Whether every label of the data must be the class of an output."""

    @property
    def outputs(self) -> dict[int, int]:
        """Return {class: its output}."""
        return {label: output for output, label in enumerate(self.classes) if label is not None}


@dataclass(frozen=True)
class Readings:
    """All ways that are possible."""

    possible: tuple[Reading, ...] = ()
    refusal: str | None = None
    """Why there is none, in a line."""


def readings(outputs: int, labels: ClassLabels, names: Sequence[str | None] | None) -> Readings:
    """Find the ways in which the outputs can be the data's classes.

    Args:
        outputs: how many the network has.
        names: the class of each output, from the user's file, see `read_outputs`.

    Raises:
        UsageError: the user's file does not fit network or data.
    """
    classes = labels.count
    if names is not None:
        return Readings((_by_names(outputs, labels, names),))
    if classes is None:
        if outputs in _SHIFTED:
            return Readings(
                refusal=f"the network has {outputs:,} outputs ({_SHIFTED[outputs]}), and the data do not name their "
                f"classes; --class-labels FILE names them, or {_SAY_WHICH}"
            )
        words = f"{outputs:,} outputs; the data name no classes, so output i is taken for label i"
        return Readings((Reading(words, tuple(range(outputs))),))
    if classes == outputs:
        words = f"{outputs:,} outputs for {classes:,} classes: output i is taken for the class of label i"
        return Readings((Reading(words, tuple(range(classes))),))
    if outputs == classes + 1:
        said = f"{outputs:,} outputs for {classes:,} classes"
        before = Reading(
            f"{said}: output 0 is none of them (background), output i + 1 is label i", (None, *range(classes))
        )
        behind = Reading(f"{said}: the last output is none of them, output i is label i", (*range(classes), None))
        return Readings((before, behind))
    known = f" ({_SHIFTED[outputs]})" if outputs in _SHIFTED else ""
    return Readings(refusal=f"the network has {outputs:,} outputs{known}, the data {classes:,} classes; {_SAY_WHICH}")


def read_outputs(uri: str) -> list[str | None]:
    """Read an `--outputs` file: `["background", "tench", ...]`, or synset ids; null for an output of no class.

    Raises:
        UsageError: the file cannot be read or has another shape.
    """
    names = read_json("outputs", uri)
    if not isinstance(names, list) or not all(name is None or isinstance(name, str) for name in names):
        raise UsageError(
            f"outputs '{uri}': it is a JSON list with the class of each output, a name or a synset id, such as "
            '["background", "tench", null]'
        )
    return names


def _by_names(outputs: int, labels: ClassLabels, names: Sequence[str | None]) -> Reading:
    if len(names) != outputs:
        raise UsageError(f"--outputs names {len(names):,} outputs, the network has {outputs:,}")
    known = labels.by_name()
    if not known:
        raise UsageError("--outputs names classes, and the data name none; give --class-labels, too")
    classes: list[int | None] = []
    for name in names:
        found = known.get(name.strip().casefold(), []) if name is not None else []
        if len(found) > 1:
            raise UsageError(
                f"--outputs: '{name}' is the name of {len(found)} classes, {_listed(found)}; name it by its synset id"
            )
        classes.append(found[0] if found else None)
    taken = [label for label in classes if label is not None]
    twice = {label for label in taken if taken.count(label) > 1} if len(set(taken)) < len(taken) else set()
    if twice:
        label = min(twice)
        raise UsageError(f"--outputs: class {label} ({labels.class_name(label)}) is that of several outputs")
    if not taken:
        raise UsageError("--outputs names none of the data's classes; they are named as in the data, or by synset id")
    words = f"{outputs:,} outputs, of which --outputs says the class: {len(taken):,} are of the data's classes"
    return Reading(words, tuple(classes), whole=False)


def _listed(labels: Sequence[int]) -> str:
    return " and ".join(map(str, labels))


def settled(right: Sequence[int]) -> int | None:
    """Return which of two readings the images speak for, None if they do not.

    Args:
        right: for each reading, how many first guesses are right. No guess is right by both.
    """
    if len(right) == 1:
        return 0
    first, second = right
    if mcnemar(first, second) >= SIGNIFICANCE:
        return None
    return 0 if first > second else 1
