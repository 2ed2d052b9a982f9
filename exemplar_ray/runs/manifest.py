"""What a run folder is for: everything `run.json` holds, whichever job it is of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from exemplar_ray.errors import UsageError
from exemplar_ray.runs.identity import fingerprint

RUN = "run.json"

_VERSIONS = "versions"

# Run folders that do not say which job they are of were written when there was one.
_FIRST_JOB = "exemplars"


class Item(Protocol):
    """What a task is for, and a part of: a shard of images, a group of channels. Small, and pickles."""

    @property
    def kind(self) -> str:
        """Its word for people, in the singular: `shard`. Records and `run.json` name it so, too."""

    @property
    def name(self) -> str:
        """What it goes by: no two items of a run share a name."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""

    def change_since(self, recorded: Mapping[str, Any]) -> str | None:
        """Say how it differs from what a completion record has of it (`to_json` of then); None if it does not."""

    def may_differ(self, recorded: Mapping[str, Any]) -> bool:
        """Whether only a closer look can tell that it is what a completion record has of it."""


@dataclass(frozen=True)
class Manifest:
    """A job's name, its identity, its items, and what else it keeps in `run.json`."""

    job: str
    identity: dict[str, Any]
    """Plain JSON values: what decides the result, under the user's key names. `format`, if it is there, counts up when
    the meaning of a part changes."""
    items: Sequence[Item]
    details: dict[str, Any] = field(default_factory=dict)
    """Plain JSON values."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the identity."""
        return fingerprint(self.identity)

    @property
    def items_name(self) -> str:
        """Return what its items are called together: `shards`."""
        return f"{self.items[0].kind}s"

    def to_json(self) -> dict[str, Any]:
        """Return what `run.json` holds."""
        return {
            "job": self.job,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            **self.details,
            "items": self.items_name,
            self.items_name: [item.to_json() for item in self.items],
        }

    def renewal_of(self, there: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what a `run.json` of this run is to hold from now on; None if that is what it holds.

        Items may have been repaired since, or moved. The versions stay those that began the run: which versions
        computed a part, its record says.
        """
        here = self.to_json()
        if _VERSIONS in here and _VERSIONS in there:
            here[_VERSIONS] = there[_VERSIONS]
        same = here.keys() == there.keys() and all(_is_same(here[key], there[key]) for key in here)
        return None if same else here


def _is_same(here: Any, there: Any) -> bool:
    """Whether values are what they are once written and read back."""
    if here == there:
        return True
    if isinstance(here, list) and isinstance(there, list) and len(here) == len(there) > 1:
        # One by one: of many items the text of all would take several times their room.
        return all(map(_is_same, here, there))
    return json.loads(json.dumps(here)) == there


@dataclass(frozen=True)
class RecordedItem:
    """An item as `run.json` has it, for those who only want to know how far a run is."""

    kind: str
    name: str
    values: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return what `run.json` has of it."""
        return self.values

    def change_since(self, recorded: Mapping[str, Any]) -> str | None:
        """Not known here: what it is now is not looked at."""
        return None

    def may_differ(self, recorded: Mapping[str, Any]) -> bool:
        """Not known here either."""
        return False


def job_of(values: Mapping[str, Any]) -> str:
    """Return which job a `run.json` is of."""
    return values.get("job", _FIRST_JOB)


def read_manifest(values: Mapping[str, Any]) -> Manifest:
    """Take from a `run.json` of any job what all have in common."""
    items_name = values.get("items", "shards")
    kind = items_name.removesuffix("s")
    items = [RecordedItem(kind, item["name"], item) for item in values[items_name]]
    return Manifest(job_of(values), values["identity"], items)


def refuse_other_format(values: Mapping[str, Any], version: int | None, uri: str) -> None:
    """Refuse a `run.json` whose parts mean something else than today's.

    Raises:
        UsageError: `version` is not its identity's `format`.
    """
    if values["identity"].get("format") != version:
        raise UsageError(
            f"'{uri}/{RUN}' was written by another version of exemplar_ray, whose numbers this one does not "
            "continue; read it with that version, or choose another --out"
        )
