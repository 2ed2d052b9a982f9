"""Classes taken together, such as all dogs: what scores of many small classes can be of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from exemplar_ray.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

NONE = -1
_MOST_LABELS = 1 << 20


def labels_of_groups(groups: Any) -> dict[str, tuple[int, ...]]:
    """Read what the key `groups` says: {group: labels}.

    Args:
        groups: {group: labels such as 151, "151-268" or "7-24,80-100"}.

    Raises:
        UsageError: it says something else, or a label is in two groups.

    >>> labels_of_groups({"dog": "151-152,154", "cat": 281})
    {'dog': (151, 152, 154), 'cat': (281,)}
    """
    if not isinstance(groups, Mapping) or not groups:
        raise UsageError(f"groups is {{group: labels}}, such as {{dog: 151-268, cat: 281-285}}, not {groups!r}")
    found = {str(name): _labels(str(name), str(labels)) for name, labels in groups.items()}
    of_label: dict[int, str] = {}
    for name, labels in found.items():
        for label in labels:
            if label in of_label:
                raise UsageError(f"groups: label {label} is in '{of_label[label]}' and in '{name}'; name it once")
            of_label[label] = name
    return found


def _labels(name: str, text: str) -> tuple[int, ...]:
    labels: list[int] = []
    for piece in text.replace(" ", "").split(","):
        first, _, last = piece.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or piece.endswith("-"):
            raise UsageError(f"groups: '{name}' is labels such as 7-24,80-100, not '{text}'")
        low, high = int(first), int(last or first)
        if not low <= high < _MOST_LABELS:
            raise UsageError(f"groups: '{name}' has a range of labels that is none: '{piece}'")
        labels += range(low, high + 1)
    return tuple(labels)


def grouped(labels: np.ndarray, groups: Mapping[str, Any]) -> np.ndarray:
    """Return which group each label is in: int64 like `labels`, the place among the groups; `NONE` for none."""
    # Here, as the command line answers sooner without.
    import numpy as np

    found = np.full(len(labels), NONE, np.int64)
    for number, members in enumerate(labels_of_groups(groups).values()):
        found[np.isin(labels, members)] = number
    return found
