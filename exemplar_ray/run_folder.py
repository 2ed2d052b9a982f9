"""The run on disk or object store. Everything there is to know of a run is in its folder.

    RUN/run.json                      the plan: spec, fingerprint, versions, shard list
    RUN/parts/000003.parquet          one shard's part: its candidates
    RUN/parts/000003.moments.parquet  and its tallies, a file each
    RUN/parts/000003.sampled.parquet  and images to draw samples from, if there are samples to draw
    RUN/parts/000003.json             its completion record, written after the part
    RUN/failed/000003.json            why a shard failed, until it succeeds
    RUN/exemplars.parquet             the answer
    RUN/channels.parquet              the distribution of every channel
    RUN/classes.parquet               how much each class excites it
    RUN/class_exemplars.parquet       the strongest images of each class, if asked for
    RUN/images.parquet                the images of all samples but the top, if there are any
    RUN/settling-*/                   a run inside the run: exact scans of channels that screening left in doubt
    RUN/summary.json                  what was read, what it cost; written last

Files appear whole or not at all: on a local disk through a temporary name, fsync and
rename, on an object store through a single PUT. On the Hugging Face Hub a run folder is only
read. Torch and Ray are not needed to read it.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from exemplar_ray import hub, parts
from exemplar_ray.errors import UsageError
from exemplar_ray.labels import ClassLabels
from exemplar_ray.shards import Shard
from exemplar_ray.spec import FORMAT_VERSION, ResolvedSpec, fingerprint

PLAN = "run.json"
EXEMPLARS = "exemplars.parquet"
CHANNELS = "channels.parquet"
CLASSES = "classes.parquet"
CLASS_EXEMPLARS = "class_exemplars.parquet"
IMAGES = "images.parquet"
SUMMARY = "summary.json"
SETTLING = "settling"
_NAME = re.compile(r"(\d{6,})\.json")
_READING_THREADS = 16


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


@dataclass(frozen=True)
class State:
    """How far a run is: shard positions and what is recorded of them."""

    completed: dict[int, dict[str, Any]]
    failed: dict[int, dict[str, Any]]
    pending: list[int]
    """Neither completed nor failed."""

    @property
    def unfinished(self) -> list[int]:
        """What a run has to scan: failed shards are tried again."""
        return sorted([*self.failed, *self.pending])


class TornPartError(Exception):
    """A part is not what its completion record says; the message is the reason."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position


class RunFolder:
    """A run folder on any file system that fsspec opens. Reading never writes.

    On the Hugging Face Hub it can only be read, and is read at one commit, that of when it is opened.

    Raises:
        UsageError: there is no such file system, or no such repository on the Hub, or no access to it.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self._fs, path = hub.file_system(hub.pinned(uri, hub.resolve_revisions([uri])))
        except (ValueError, ImportError) as error:
            raise UsageError(f"run folder '{uri}' cannot be opened: {error}") from error
        self._root = path.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

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

    def adopt(self, plan: Plan) -> None:
        """Make this the folder of a plan, or continue in it if it already is.

        Raises:
            UsageError: the folder belongs to another plan (the message names the keys that
                differ), holds other files, or a completed shard's file has changed since.
        """
        if not self.exists(PLAN):
            self._refuse_foreign_files()
            self.write_json(PLAN, plan.to_json())
            return
        there, here = self._read_plan_json()["identity"], plan.identity()
        differing = [key for key in here if there.get(key) != here[key]]
        if differing:
            details = "; ".join(_difference(key, there.get(key), here[key]) for key in differing)
            raise UsageError(
                f"run folder '{self.uri}' is of another run; these keys differ: {', '.join(differing)} "
                f"({details}); choose another --out, or the settings of that run"
            )
        for position, record in self.state(plan).completed.items():
            shard = plan.shards[position]
            scanned = record["shard"]
            if (scanned["size"], scanned["footer"]) != (shard.size, shard.footer):
                raise UsageError(
                    f"run folder '{self.uri}': data differs: shard {shard.name} changed after it was scanned "
                    f"({scanned['size']} bytes then, {shard.size} now); choose another --out, or remove "
                    f"parts/{_number(position)}.json from the run folder to scan it again"
                )
        self.write_json(PLAN, plan.to_json())

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
        for ending, content in files.items():
            self.write(f"parts/{_number(position)}.{ending}", content)
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
        expected = plan.fingerprint
        with ThreadPoolExecutor(_READING_THREADS) as pool:
            stored = set(self.names("parts"))
            completed = {
                position: record
                for position, record in self._records("parts", stored, plan, pool)
                if record.get("fingerprint") == expected
                and record.get("files")
                and stored.issuperset(f"{_number(position)}.{ending}" for ending in record["files"])
            }
            failed = {
                position: record
                for position, record in self._records("failed", self.names("failed"), plan, pool)
                if position not in completed
            }
        pending = [p for p in range(len(plan.shards)) if p not in completed and p not in failed]
        return State(dict(sorted(completed.items())), dict(sorted(failed.items())), pending)

    def _records(
        self, folder: str, names: Iterable[str], plan: Plan, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        matches = [m for m in map(_NAME.fullmatch, sorted(names)) if m and int(m[1]) < len(plan.shards)]
        contents = pool.map(lambda m: self.read_json(f"{folder}/{m[0]}"), matches)
        for match, content in zip(matches, contents, strict=True):
            if content is not None:
                yield int(match[1]), content

    def read_part(self, position: int, record: dict[str, Any], plan: Plan) -> parts.Part:
        """Read one committed part, checked against its completion record.

        Raises:
            TornPartError: a file is gone, or is not the one that was committed.
        """
        files = {}
        for ending, stored in record["files"].items():
            name = f"parts/{_number(position)}.{ending}"
            try:
                files[ending] = self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                raise TornPartError(position, f"{name} is gone") from None
            if parts.digest(files[ending]) != stored["sha256"]:
                raise TornPartError(position, f"{name} is not the file that was committed")
        return parts.from_files(files, position, plan.spec)

    # Files -------------------------------------------------------------------------------

    def names(self, folder: str) -> list[str]:
        """List a folder's file and folder names, past any cache; [] where there is none."""
        path = self._path(folder)
        self._fs.invalidate_cache(path)
        try:
            return [posixpath.basename(p.rstrip("/")) for p in self._fs.ls(path, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, name: str) -> bool:
        """Whether a file is there now."""
        path = self._path(name)
        self._fs.invalidate_cache(posixpath.dirname(path))
        return self._fs.exists(path)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON object; None where there is none or it is torn."""
        try:
            values = json.loads(self._fs.cat_file(self._path(name)))
        except (FileNotFoundError, ValueError):
            return None
        return values if isinstance(values, dict) else None

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON object, whole or not at all."""
        self.write(name, (json.dumps(values, indent=1) + "\n").encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        if not self._local:
            self._fs.pipe_file(self._path(name), content)
            return
        with self._temporary(name) as temporary, open(temporary, "wb") as file:
            file.write(content)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    @contextmanager
    def writing(self, name: str) -> Iterator[str]:
        """Give a local path to write to; on leaving without an exception it becomes `name`."""
        if self._local:
            with self._temporary(name) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="exemplar_ray-") as folder:
            local = os.path.join(folder, posixpath.basename(name))
            yield local
            self._fs.put_file(local, self._path(name))

    def open(self, name: str) -> Any:
        """Open a file for reading in binary mode."""
        return self._fs.open(self._path(name), "rb")

    @contextmanager
    def _temporary(self, name: str) -> Iterator[str]:
        """Local disk: a temporary name beside the final one, then fsync and rename."""
        path = self._path(name)
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f".{os.path.basename(path)}.{uuid.uuid4().hex}.tmp")
        try:
            yield temporary
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(folder)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def _number(position: int) -> str:
    return f"{position:06d}"


def _fsync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _difference(key: str, there: Any, here: Any) -> str:
    if key == "data":
        return f"{len(there or [])} shards there, {len(here)} here" if len(there or []) != len(here) else "other shards"
    if key in ("weights", "model") and len(str(here)) == 64:
        there, here = str(there)[:12], str(here)[:12]
    return f"{key}: {there} there, {here} here"
