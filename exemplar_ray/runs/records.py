"""Records: what a run folder says of one item that is done, or that failed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

Kept = TypeVar("Kept")


class StoredFile(NamedTuple):
    """One of a part's files, as it was committed."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CompletionRecord:
    """What `parts/000003.json` says, whichever job it is of."""

    fingerprint: str
    """Of the run that the part belongs to."""
    item_kind: str
    item: dict[str, Any]
    """The item as it was then, see `manifest.Item.to_json`."""
    facts: dict[str, Any]
    """The job's own: what its task has to say of the item, plain JSON values."""
    seconds: float
    host: str
    finished: str
    """UTC, ISO 8601."""
    files: dict[str, StoredFile] = field(default_factory=dict)
    """{how the name of a part's file ends: what is in it}"""
    versions: dict[str, str] | None = None
    """{package: version} of the worker, see `versions.versions`; None in records of earlier versions."""
    peak_memory: int | None = None
    """The most that the worker has had in use until then, in bytes; None where its system does not tell."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, the job's facts among them; `from_json` reads them back."""
        return {
            "fingerprint": self.fingerprint,
            self.item_kind: self.item,
            **self.facts,
            "seconds": self.seconds,
            "host": self.host,
            "finished": self.finished,
            "files": {ending: stored._asdict() for ending, stored in self.files.items()},
            **({} if self.versions is None else {"versions": self.versions}),
            **({} if self.peak_memory is None else {"peak_memory": self.peak_memory}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], item_kind: str) -> CompletionRecord | None:
        """Read back what `to_json` wrote; None if that is no whole record of a part."""
        common = ("fingerprint", item_kind, "seconds", "host", "finished", "files")
        if not values.get("files") or any(name not in values for name in common):
            return None
        return cls(
            fingerprint=values["fingerprint"],
            item_kind=item_kind,
            item=values[item_kind],
            facts={name: value for name, value in values.items() if name not in (*common, "versions", "peak_memory")},
            seconds=values["seconds"],
            host=values["host"],
            finished=values["finished"],
            files={ending: StoredFile(**stored) for ending, stored in values["files"].items()},
            versions=values.get("versions"),
            peak_memory=values.get("peak_memory"),
        )


@dataclass(frozen=True)
class FailureRecord:
    """What `failed/000003.json` says: why an item failed, until it succeeds."""

    item_kind: str
    item: dict[str, Any]
    reason: str
    """In one line."""
    details: str
    """The traceback."""
    log: list[str]
    """What the item's task logged, line by line, the last time it was tried."""
    attempts: int
    finished: str
    """UTC, ISO 8601."""
    host: str | None = None
    """Where it was tried the last time; None if that is not known."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = asdict(self)
        return {values.pop("item_kind"): values.pop("item"), **values}


class Failed(NamedTuple):
    """Why an item failed, and after how many attempts."""

    reason: str
    attempts: int


@dataclass(frozen=True)
class State(Generic[Kept]):
    """How far a run is: item positions, ascending, and what is kept of their records."""

    completed: dict[int, Kept]
    failed: dict[int, Failed]
    pending: list[int]
    """Neither completed nor failed."""
    changed: dict[int, str]
    """Completed items that are not what they were when they were done, and how they differ."""
    touched: list[int]
    """Completed items of which only a closer look can tell whether they are what they were."""

    @property
    def unfinished(self) -> list[int]:
        """What a run has to do: failed items are tried again."""
        return sorted([*self.failed, *self.pending])


def now() -> str:
    """Return the time as records have it: UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
