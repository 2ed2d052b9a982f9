"""Labels as class ids; synset ids and class names: from an image's path, the shard's metadata, or a file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec

from exemplar_ray.data.imagenet_names import name_of_synset
from exemplar_ray.errors import UsageError

# n01440764_18.JPEG, n02105855_2933_n02105855.JPEG, train_000_n01440764.JPEG
_SYNSET_ID = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?![0-9A-Za-z])")
_MOST = 2**63


def label_of(value: Any, numbers: Mapping[str, int] | None = None) -> int | None:
    """Return the class id that a row's label stands for; None where it stands for none.

    No class are null, NaN, an empty text, and what is below 0, which data sets write where nobody has looked.
    False and true are the classes 0 and 1.

    Args:
        numbers: {text: class id}, if labels are texts.

    Raises:
        ValueError: a number is not whole or too large, a text is no known one.

    >>> [label_of(value) for value in (7, 7.0, True, -1, float("nan"), None)]
    [7, 7, 1, None, None, None]
    """
    if value is None or value != value or value == "":
        return None
    if isinstance(value, str):
        if numbers is None or value not in numbers:
            raise ValueError(f"label {value!r} is none of the data set's classes")
        return numbers[value]
    try:
        number = int(value)
    except (OverflowError, TypeError):
        number = _MOST
    if number != value or number >= _MOST:
        raise ValueError(f"label {value!r} is no whole number of 64 bits")
    return number if number >= 0 else None


def entries_of_texts(names: Sequence[str], table: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Return a `--class-labels` table for labels that are texts: its own numbers may be of other classes.

    An entry is of the class whose text is its synset id, its name (if that is of one entry only) or its key.

    Raises:
        UsageError: not one is.
    """
    by_text: dict[str, tuple[str, str]] = {}
    called = Counter(name for _, name in table.values())
    for key, entry in table.items():
        by_text[key] = entry
        if called[entry[1]] == 1:
            by_text[entry[1]] = entry
        by_text[entry[0]] = entry
    found = {str(number): by_text[name] for number, name in enumerate(names) if name in by_text}
    if table and not found:
        raise UsageError(
            f"labels are texts, such as '{names[0] if names else ''}', and the class labels have no entry of such a "
            "name, synset id or key; leave out --class-labels, or write an entry for each"
        )
    return found


@dataclass(frozen=True)
class ClassLabels:
    """What is known of the classes beyond a row's label and path.

    `names` come from the shards' ClassLabel metadata, `table` from the user's
    `--class-labels` file (label as text -> [synset id, class name]), which wins.
    """

    names: Sequence[str] | None = None
    table: dict[str, tuple[str, str]] = field(default_factory=dict)

    def synset_id(self, label: int | None, path: str | None) -> str | None:
        """Return the WordNet id, such as n01440764, from the path, the file or the class name."""
        in_path = _SYNSET_ID.search(path.replace("\\", "/").rsplit("/", 1)[-1]) if path else None
        if in_path:
            return in_path.group()
        if str(label) in self.table:
            return self.table[str(label)][0]
        name = self.class_name(label)
        return name if name and _SYNSET_ID.fullmatch(name) else None

    def class_name(self, label: int | None) -> str | None:
        """Return the class's name, from the file or the shards' metadata."""
        if label is None:
            return None
        if str(label) in self.table:
            return self.table[str(label)][1]
        return self.names[label] if self.names and 0 <= label < len(self.names) else None

    def all_names(self) -> list[str] | None:
        """Return every class's name, index = label, or None where they are not all known."""
        names = [name for label in range(self.count or 0) if (name := self.class_name(label))]
        # Hugging Face's ClassLabel refuses names that stand twice ("crane" is two classes).
        return names if names and len(set(names)) == self.count else None

    @property
    def count(self) -> int | None:
        """Return how many classes there are, None where nothing says so."""
        return max(len(self.names or ()), *(int(label) + 1 for label in self.table), 0) or None

    def by_name(self) -> dict[str, list[int]]:
        """Return {a class's name or synset id, in lower case: the labels that have it}."""
        known: dict[str, list[int]] = {}
        for label in range(self.count or 0):
            synset_id = self.synset_id(label, None)
            for text in {self.class_name(label), synset_id, name_of_synset(synset_id)}:
                if text:
                    known.setdefault(text.strip().casefold(), []).append(label)
        return known

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return {"names": list(self.names) if self.names else None, "table": self.table}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ClassLabels:
        """Read back what `to_json` wrote."""
        return cls(values["names"], {label: tuple(entry) for label, entry in values["table"].items()})


def read_json(what: str, uri: str) -> Any:
    """Read a JSON file that the user gives, from any file system that fsspec opens.

    Args:
        what: what it is, for messages.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with fsspec.open(uri, "rb") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{what} '{uri}' cannot be read: {error}") from error


def read_class_labels(uri: str) -> dict[str, tuple[str, str]]:
    """Read a `--class-labels` file: `{"0": ["n01440764", "tench"], ...}`.

    Raises:
        UsageError: the file cannot be read or has another shape.
    """
    table = read_json("class labels", uri)
    shape = 'class labels are JSON such as {"0": ["n01440764", "tench"]}'
    if not isinstance(table, dict):
        raise UsageError(f"{shape}; '{uri}' holds a {type(table).__name__}")
    for label, entry in table.items():
        pair = isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry)
        if not label.isdecimal() or not pair:
            raise UsageError(f"{shape}; '{uri}' has {label!r}: {entry!r}")
    return {label: (entry[0], entry[1]) for label, entry in table.items()}
