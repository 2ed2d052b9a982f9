"""The run on disk or object store. Everything there is to know of a run is in its folder.

    RUN/run.json                      the plan: spec, fingerprint, versions, shard list
    RUN/parts/000003.parquet          one shard's part: its candidates
    RUN/parts/000003.moments.parquet  and its tallies, a file each
    RUN/parts/000003.sampled.parquet  and images to draw samples from, if there are samples to draw
    RUN/parts/000003.json             its completion record, written after the part
    RUN/failed/000003.json            why a shard failed, until it succeeds
    RUN/exemplars.parquet             the answer
    RUN/channels.parquet              the distribution of every channel
    RUN/histograms.parquet            and its histogram
    RUN/classes.parquet               how much each class excites it
    RUN/class_exemplars.parquet       the strongest images of each class, if asked for
    RUN/images.parquet                the images of all samples but the top, if there are any
    RUN/settling-*/                   a run inside the run: exact scans of channels that screening left in doubt
    RUN/summary.json                  what was read, what it cost; written last

Files appear whole or not at all, see `folder`. Torch and Ray are not needed to read it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeVar

from exemplar_ray import parts
from exemplar_ray.errors import UsageError
from exemplar_ray.folder import Folder
from exemplar_ray.labels import ClassLabels
from exemplar_ray.shards import Shard
from exemplar_ray.spec import FORMAT_VERSION, ResolvedSpec, fingerprint

PLAN = "run.json"
EXEMPLARS = "exemplars.parquet"
CHANNELS = "channels.parquet"
HISTOGRAMS = "histograms.parquet"
CLASSES = "classes.parquet"
CLASS_EXEMPLARS = "class_exemplars.parquet"
IMAGES = "images.parquet"
SUMMARY = "summary.json"
SETTLING = "settling"
RECORD = "json"

T = TypeVar("T")

# Files that are read at the same time: what takes long on object stores and shared disks is the answer to each request.
_READING_THREADS = 16
# Records are small: reading one takes less than handing it to a thread.
_RECORDS_A_BATCH = 64
# Parts are large: while one is folded, so many more wait in memory.
_PARTS_READ_AHEAD = 8


@dataclass(frozen=True)
class Plan:
    """What a run folder is for: everything `run.json` holds."""

    spec: ResolvedSpec
    shards: list[Shard]
    class_labels: ClassLabels
    versions: dict[str, str]
    revisions: dict[str, str] = field(default_factory=dict)
    """The commits at which repositories on the Hub are read, as `hub.resolve_revisions` returns them."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the result, under the user's key names. Shards count by name:
        what is in them is held against each completion record instead, so that a broken
        shard can be repaired."""
        return {**self.spec.identity(), "data": [shard.name for shard in self.shards]}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the identity."""
        return fingerprint(self.identity())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return {
            "fingerprint": self.fingerprint,
            "identity": self.identity(),
            "spec": self.spec.to_json(),
            "versions": self.versions,
            "class_labels": self.class_labels.to_json(),
            "revisions": self.revisions,
            "shards": [shard.to_json() for shard in self.shards],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Plan:
        """Read back what `to_json` wrote."""
        return cls(
            spec=ResolvedSpec.from_json(values["spec"]),
            shards=[Shard(**shard) for shard in values["shards"]],
            class_labels=ClassLabels.from_json(values["class_labels"]),
            versions=values["versions"],
            revisions=values.get("revisions", {}),
        )


class Finished(NamedTuple):
    """What the driver keeps of a completion record: a run may have very many shards."""

    rows: int
    scored: int
    skipped: int
    seconds: float
    host: str
    device: str
    skipped_images: tuple[dict[str, Any], ...]
    not_finite: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """Take from a record what is kept of it."""
        # There are few hosts and devices.
        host, device = sys.intern(record["host"]), sys.intern(record["device"])
        skipped_images, not_finite = tuple(record["skipped_images"]), tuple(record["not_finite"])
        numbers = (record[name] for name in ("rows", "scored", "skipped", "seconds"))
        return cls(*numbers, host, device, skipped_images, not_finite)


class Failed(NamedTuple):
    """Why a shard failed, and after how many attempts."""

    reason: str
    attempts: int


@dataclass(frozen=True)
class State:
    """How far a run is: shard positions, ascending, and what is recorded of them."""

    completed: dict[int, Finished]
    failed: dict[int, Failed]
    pending: list[int]
    """Neither completed nor failed."""
    changed: dict[int, int]
    """Completed shards whose file is another one now, with the size that it had when it was scanned."""

    @property
    def unfinished(self) -> list[int]:
        """What a run has to scan: failed shards are tried again."""
        return sorted([*self.failed, *self.pending])


class TornPartError(Exception):
    """A part is not what its completion record says; the message is the reason."""

    def __init__(self, position: int, reason: str) -> None:
        # Both are arguments of the exception, as it comes out of tasks.
        super().__init__(position, reason)
        self.position = position

    def __str__(self) -> str:
        return str(self.args[1])


class RunFolder(Folder):
    """A run folder. Reading never writes."""

    # The plan ----------------------------------------------------------------------------

    def read_plan(self) -> Plan:
        """Read `run.json`.

        Raises:
            UsageError: there is none, or it was written by another version.
        """
        return Plan.from_json(self._read_plan_json())

    def revisions(self) -> dict[str, str]:
        """Return the commits at which the folder's run reads repositories on the Hub; {} where there is no run yet."""
        return (self.read_json(PLAN) or {}).get("revisions", {})

    def adopt(self, plan: Plan) -> State:
        """Make this the folder of a plan, or continue in it if it already is; return how far that is.

        Raises:
            UsageError: the folder belongs to another plan (the message names the keys that
                differ), holds other files, or a completed shard's file has changed since.
        """
        if not self.exists(PLAN):
            self._refuse_foreign_files()
            self.write_json(PLAN, plan.to_json())
            return State({}, {}, list(range(len(plan.shards))), {})
        there, here = self._read_plan_json()["identity"], plan.identity()
        differing = [key for key in here if there.get(key) != here[key]]
        if differing:
            details = "; ".join(_difference(key, there.get(key), here[key]) for key in differing)
            raise UsageError(
                f"run folder '{self.uri}' is of another run; these keys differ: {', '.join(differing)} "
                f"({details}); choose another --out, or the settings of that run"
            )
        state = self.state(plan)
        for position, size in state.changed.items():
            shard = plan.shards[position]
            raise UsageError(
                f"run folder '{self.uri}': data differs: shard {shard.name} changed after it was scanned "
                f"({size} bytes then, {shard.size} now); choose another --out, or remove "
                f"parts/{_number(position)}.json from the run folder to scan it again"
            )
        self.write_json(PLAN, plan.to_json())
        return state

    def _read_plan_json(self) -> dict[str, Any]:
        values = self.read_json(PLAN)
        if values is None:
            raise UsageError(f"'{self.uri}' is no run folder: it has no readable {PLAN}")
        if not {"identity", "spec", "shards"} <= values.keys() or values["identity"].get("format") != FORMAT_VERSION:
            raise UsageError(
                f"'{self.uri}/{PLAN}' was written by another version of exemplar_ray, whose numbers this one does not "
                "continue; read it with that version, or choose another --out"
            )
        return values

    def _refuse_foreign_files(self) -> None:
        foreign = sorted(name for name in self.names("") if not name.startswith("."))
        if foreign:
            raise UsageError(
                f"run folder '{self.uri}' has no {PLAN} but holds {', '.join(foreign[:3])}; "
                "choose an empty or new folder"
            )

    # Shards ------------------------------------------------------------------------------

    def commit(self, position: int, files: dict[str, bytes], record: dict[str, Any]) -> dict[str, Any]:
        """Store one shard's part, then its completion record.

        Args:
            files: the part, as `parts.to_files` returns it.

        Returns:
            The record as stored, with the files' sizes and SHA-256.
        """
        stored = {ending: {"bytes": len(content), "sha256": parts.digest(content)} for ending, content in files.items()}
        record = {**record, "files": stored}
        self.write_all({f"parts/{_number(position)}.{ending}": content for ending, content in files.items()})
        self.write_json(f"parts/{_number(position)}.json", record)
        self.remove(f"failed/{_number(position)}.json")
        return record

    def fail(self, position: int, record: dict[str, Any]) -> None:
        """Store why a shard failed."""
        self.write_json(f"failed/{_number(position)}.json", record)

    def has_part(self, position: int) -> bool:
        """Whether a shard's completion record can be seen from here."""
        return self.exists(f"parts/{_number(position)}.json")

    def committed(self, position: int, shard: Shard, fingerprint: str) -> dict[str, Any] | None:
        """Return the completion record of a shard that is scanned already, asking for its files one by one: what
        another attempt has just written may be missing from a listing."""
        record = self.read_json(f"parts/{_number(position)}.json")
        if record is None or record.get("fingerprint") != fingerprint or not record.get("files"):
            return None
        if (record["shard"]["size"], record["shard"]["footer"]) != (shard.size, shard.footer):
            return None
        there = (self.exists(f"parts/{_number(position)}.{ending}") for ending in record["files"])
        return record if all(there) else None

    def retract(self, position: int) -> None:
        """Take a shard's completion record back, so that the shard counts as not scanned."""
        self.remove(f"parts/{_number(position)}.json")

    def state(self, plan: Plan) -> State:
        """Find out what is done, from the completion records alone.

        A record counts if it is whole, of this plan, and its part's files are there.
        """
        expected, shards = plan.fingerprint, plan.shards
        completed: dict[int, Finished] = {}
        changed: dict[int, int] = {}
        stored = self._stored("parts", len(shards))
        for position, record in self._records("parts", stored):
            if (
                record.get("fingerprint") == expected
                and record.get("files")
                and all(ending in stored and stored[ending][position] for ending in record["files"])
            ):
                completed[position] = Finished.of(record)
                scanned = record["shard"]
                if (scanned["size"], scanned["footer"]) != (shards[position].size, shards[position].footer):
                    changed[position] = scanned["size"]
        failed = {
            position: Failed(record["reason"], record["attempts"])
            for position, record in self._records("failed", self._stored("failed", len(shards)))
            if position not in completed
        }
        pending = [p for p in range(len(shards)) if p not in completed and p not in failed]
        return State(completed, failed, pending, changed)

    def _stored(self, folder: str, shards: int) -> dict[str, bytearray]:
        """List the files of shards: {how their names end: for each shard, whether there is such a file}."""
        stored: dict[str, bytearray] = {}
        for name in self.names(folder):
            number, _, ending = name.partition(".")
            position = int(number) if number.isdecimal() else shards
            if position < shards and number == _number(position):
                stored.setdefault(ending, bytearray(shards))[position] = True
        return stored

    def _records(self, folder: str, stored: dict[str, bytearray]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the records that are whole, by position."""
        positions = [position for position, there in enumerate(stored.get(RECORD, b"")) if there]
        batches = [positions[i : i + _RECORDS_A_BATCH] for i in range(0, len(positions), _RECORDS_A_BATCH)]

        def read(batch: list[int]) -> list[dict[str, Any] | None]:
            return [self.read_json(f"{folder}/{_number(position)}.{RECORD}") for position in batch]

        for batch, contents in _read_ahead(read, batches, _READING_THREADS):
            yield from (pair for pair in zip(batch, contents, strict=True) if pair[1] is not None)

    def read_parts(
        self, positions: Sequence[int], fingerprint: str, spec: ResolvedSpec
    ) -> Iterator[tuple[int, parts.Part]]:
        """Read committed parts, checked against their completion records; yield them in order, by position.

        Raises:
            TornPartError: a file is gone, or is not the one that was committed.
        """

        def read(position: int) -> dict[str, bytes]:
            return self._read_part_files(position, fingerprint)

        for position, files in _read_ahead(read, positions, _PARTS_READ_AHEAD):
            yield position, parts.from_files(files, position, spec)

    def _read_part_files(self, position: int, fingerprint: str) -> dict[str, bytes]:
        name = f"parts/{_number(position)}.{RECORD}"
        record = self.read_json(name)
        if record is None or record.get("fingerprint") != fingerprint:
            raise TornPartError(position, f"{name} is gone")
        files = {}
        for ending, stored in record["files"].items():
            name = f"parts/{_number(position)}.{ending}"
            try:
                files[ending] = self.read(name)
            except FileNotFoundError:
                raise TornPartError(position, f"{name} is gone") from None
            if parts.digest(files[ending]) != stored["sha256"]:
                raise TornPartError(position, f"{name} is not the file that was committed")
        return files


def _read_ahead(read: Callable[[T], Any], these: Sequence[T], ahead: int) -> Iterator[tuple[T, Any]]:
    """Read in threads, so many ahead; yield each with what was read of it, in order."""
    with ThreadPoolExecutor(min(ahead, _READING_THREADS)) as pool:
        under_way: deque[tuple[T, Future[Any]]] = deque()
        for one in these:
            under_way.append((one, pool.submit(read, one)))
            if len(under_way) > ahead:
                first, future = under_way.popleft()
                yield first, future.result()
        for first, future in under_way:
            yield first, future.result()


def _number(position: int) -> str:
    return f"{position:06d}"


def _difference(key: str, there: Any, here: Any) -> str:
    if key == "data":
        return f"{len(there or [])} shards there, {len(here)} here" if len(there or []) != len(here) else "other shards"
    if key in ("weights", "model") and len(str(here)) == 64:
        there, here = str(there)[:12], str(here)[:12]
    return f"{key}: {there} there, {here} here"
