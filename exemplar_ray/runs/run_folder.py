"""The run on disk or object store. Everything there is to know of a run is in its folder.

    RUN/run.json                      the manifest: which job, its identity, its items
    RUN/network-8c1f....pt            the network, where it was a module in hand
    RUN/parts/000003.parquet          one item's part: a file, or several whose names end differently
    RUN/layers/.../000003.parquet     or in a folder of its own, see `part_file`
    RUN/parts/000003.json             its completion record, written after the part
    RUN/failed/000003.json            why an item failed, until it succeeds
    RUN/summary.json                  what was read, what it cost; written last
    RUN/...                           the job's results

Files appear whole or not at all, see `storage.folder`. Torch and Ray are not needed to read it. What is in a part is
the job's affair: here parts are bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from exemplar_ray.errors import UsageError
from exemplar_ray.prefetch import map_ahead
from exemplar_ray.runs.identity import differences
from exemplar_ray.runs.manifest import RUN, Item, Manifest, job_of, refuse_other_format
from exemplar_ray.runs.records import CompletionRecord, Failed, FailureRecord, Kept, State, StoredFile
from exemplar_ray.storage.folder import Folder

SUMMARY = "summary.json"
NETWORK = "network-"
RECORD = "json"

# Files that are read at the same time: what takes long on object stores and shared disks is the answer to each request.
_READING_THREADS = 16
# Records are small: reading one takes less than handing it to a thread.
_RECORDS_A_BATCH = 64
# Parts are large: while one is folded, so many more wait in memory.
_PARTS_READ_AHEAD = 8


def whole_record(record: CompletionRecord) -> Any:
    """Keep everything of a completion record, see `RunFolder.state`."""
    return record


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

    # The manifest ------------------------------------------------------------------------

    def read_run(self) -> dict[str, Any]:
        """Read `run.json`.

        Raises:
            UsageError: there is none.
        """
        values = self.read_json(RUN)
        if values is None:
            raise UsageError(f"'{self.uri}' is no run folder: it has no readable {RUN}")
        if "identity" not in values or values.get("items", "shards") not in values:
            refuse_other_format({"identity": {}}, -1, self.uri)
        return values

    def answered(self) -> str | None:
        """Return the fingerprint of the run whose result is here; None if there is none yet."""
        return (self.read_json(SUMMARY) or {}).get("fingerprint")

    def adopt(
        self,
        manifest: Manifest,
        keep: Callable[[CompletionRecord], Kept] = whole_record,
        is_answered: Callable[[], bool] = lambda: False,
    ) -> State[Kept]:
        """Make this the folder of a run, or continue in it if it already is; return how far that is.

        Where nothing is left to do, and where `run.json` holds what it is to hold already, nothing is written. What
        becomes of completed items that have changed since is the driver's affair, unless most have: then this is not
        the data that the run is of.

        Args:
            keep: what to keep of each completion record, see `state`.
            is_answered: asked once every item is done: whether the result is written, too.

        Raises:
            UsageError: the folder belongs to another run (the message names the keys that
                differ), holds other files, or most completed items have changed since.
        """
        if not self.exists(RUN):
            self._refuse_foreign_files()
            self.write_json(RUN, manifest.to_json())
            return State({}, {}, list(range(len(manifest.items))), {}, [])
        there = self._refuse_another_run(manifest)
        state = self.state(manifest, keep)
        refuse_other_data(self.uri, manifest, state.changed, len(state.completed))
        renewal = manifest.renewal_of(there)
        if renewal is not None and (state.unfinished or state.changed or not is_answered()):
            self.write_json(RUN, renewal)
        return state

    def keep_network(self, name: str, content: bytes) -> None:
        """Keep a network that workers and later invocations take from here, before there is a manifest.

        Args:
            name: begins with `NETWORK`; tells of the content, so that a file of that name is the same.

        Raises:
            UsageError: the folder is of a run of another network, or holds other files.
        """
        if self.exists(name):
            return
        if self.exists(RUN):
            raise UsageError(
                f"run folder '{self.uri}' is of a run of another network, whose weights or structure differ; choose "
                "another out, or the network of that run"
            )
        self._refuse_foreign_files()
        self.write(name, content)

    def _refuse_another_run(self, manifest: Manifest) -> dict[str, Any]:
        there = self.read_run()
        if job_of(there) != manifest.job:
            raise UsageError(
                f"run folder '{self.uri}' is of another job: {job_of(there)} there, {manifest.job} here; "
                "choose another --out"
            )
        refuse_other_format(there, manifest.identity.get("format"), self.uri)
        differing = differences(there["identity"], manifest.identity)
        if differing:
            raise UsageError(
                f"run folder '{self.uri}' is of another run; these keys differ: {', '.join(differing)} "
                f"({'; '.join(differing.values())}); choose another --out, or the settings of that run"
            )
        return there

    def _refuse_foreign_files(self) -> None:
        foreign = sorted(name for name in self.names("") if not name.startswith((".", NETWORK)))
        if foreign:
            raise UsageError(
                f"run folder '{self.uri}' has no {RUN} but holds {', '.join(foreign[:3])}; "
                "choose an empty or new folder"
            )

    # Items -------------------------------------------------------------------------------

    def commit(self, position: int, files: Mapping[str, bytes | Path], record: CompletionRecord) -> CompletionRecord:
        """Store one item's part, then its completion record.

        Args:
            files: the part: {how the file's name ends: its content, or a local file, which is moved}.

        Returns:
            The record as stored, with the files' sizes and SHA-256.
        """
        record = replace(record, files={ending: _stored_file(content) for ending, content in files.items()})
        self.write_all({part_file(position, ending): content for ending, content in files.items()})
        self.write_json(f"parts/{_number(position)}.json", record.to_json())
        self.remove(f"failed/{_number(position)}.json")
        return record

    def fail(self, position: int, record: FailureRecord) -> None:
        """Store why an item failed."""
        self.write_json(f"failed/{_number(position)}.json", record.to_json())

    def has_part(self, position: int) -> bool:
        """Whether an item's completion record can be seen from here."""
        return self.exists(f"parts/{_number(position)}.json")

    def record(self, position: int, item: Item) -> CompletionRecord | None:
        """Return an item's completion record, of whichever run; None if there is no whole one."""
        values = self.read_json(f"parts/{_number(position)}.json")
        return None if values is None else CompletionRecord.from_json(values, item.kind)

    def renew(self, position: int, record: CompletionRecord) -> None:
        """Store another record of a part that stays as it is."""
        self.write_json(f"parts/{_number(position)}.json", record.to_json())

    def committed(self, position: int, item: Item, fingerprint: str) -> CompletionRecord | None:
        """Return the completion record of an item that is done already, asking for its files one by one: what
        another attempt has just written may be missing from a listing."""
        record = self.record(position, item)
        if record is None or not is_of_run(record, fingerprint):
            return None
        if item.change_since(record.item) is not None or item.may_differ(record.item):
            return None
        there = (self.exists(part_file(position, ending)) for ending in record.files)
        return record if all(there) else None

    def retract(self, position: int) -> None:
        """Take an item's completion record back, so that the item counts as not done."""
        self.remove(f"parts/{_number(position)}.json")

    def state(self, manifest: Manifest, keep: Callable[[CompletionRecord], Kept] = whole_record) -> State[Kept]:
        """Find out what is done, from the completion records alone.

        A record counts if it is whole, of this run, and its part's files are there.

        Args:
            keep: what to keep of each record: a run may have very many items.
        """
        expected, items = manifest.fingerprint, manifest.items
        completed: dict[int, Kept] = {}
        changed: dict[int, str] = {}
        touched: list[int] = []
        listed = cache(partial(self._stored, items=len(items)))

        def is_there(position: int, ending: str) -> bool:
            folder, end = _folder_and_end(ending)
            return end in listed(folder) and bool(listed(folder)[end][position])

        for position, values in self._records("parts", listed("parts")):
            record = CompletionRecord.from_json(values, items[position].kind)
            if record is None or not is_of_run(record, expected):
                continue
            if not all(is_there(position, ending) for ending in record.files):
                continue
            completed[position] = keep(record)
            change = items[position].change_since(record.item)
            if change is not None:
                changed[position] = change
            elif items[position].may_differ(record.item):
                touched.append(position)
        failed = {
            position: Failed(record["reason"], record["attempts"])
            for position, record in self._records("failed", self._stored("failed", len(items)))
            if position not in completed
        }
        pending = [p for p in range(len(items)) if p not in completed and p not in failed]
        return State(completed, failed, pending, changed, touched)

    def _stored(self, folder: str, items: int) -> dict[str, bytearray]:
        """List the files of items: {how their names end: for each item, whether there is such a file}."""
        stored: dict[str, bytearray] = {}
        for name in self.names(folder):
            number, _, ending = name.partition(".")
            position = int(number) if number.isdecimal() else items
            if position < items and number == _number(position):
                stored.setdefault(ending, bytearray(items))[position] = True
        return stored

    def _records(self, folder: str, stored: dict[str, bytearray]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the records that are whole, by position."""
        positions = [position for position, there in enumerate(stored.get(RECORD, b"")) if there]
        batches = [positions[i : i + _RECORDS_A_BATCH] for i in range(0, len(positions), _RECORDS_A_BATCH)]

        def read(batch: list[int]) -> list[tuple[int, dict[str, Any] | None]]:
            return [(position, self.read_json(f"{folder}/{_number(position)}.{RECORD}")) for position in batch]

        for records in map_ahead(read, batches, _READING_THREADS, _READING_THREADS):
            yield from ((position, values) for position, values in records if values is not None)

    def read_parts(
        self, positions: Sequence[int], fingerprint: str, only: Collection[str] | None = None
    ) -> Iterator[tuple[int, dict[str, bytes]]]:
        """Read committed parts, checked against their completion records; yield them in order, by position.

        Args:
            only: which files of each, by their endings; None for all.

        Raises:
            TornPartError: a file is gone, or is not the one that was committed.
        """

        def read(position: int) -> tuple[int, dict[str, bytes]]:
            return position, self._read_part(position, fingerprint, only)

        yield from map_ahead(read, positions, _PARTS_READ_AHEAD, _PARTS_READ_AHEAD)

    def _read_part(self, position: int, fingerprint: str, only: Collection[str] | None) -> dict[str, bytes]:
        name = f"parts/{_number(position)}.{RECORD}"
        record = self.read_json(name)
        if record is None or record.get("fingerprint") != fingerprint:
            raise TornPartError(position, f"{name} is gone")
        files = {}
        for ending, stored in record["files"].items():
            if only is not None and ending not in only:
                continue
            name = part_file(position, ending)
            try:
                files[ending] = self.read(name)
            except FileNotFoundError:
                raise TornPartError(position, f"{name} is gone") from None
            refuse_torn(position, name, files[ending], stored["sha256"])
        return files


def refuse_other_data(uri: str, manifest: Manifest, changed: Mapping[int, str], completed: int) -> None:
    """Refuse a run whose completed items have changed, most of them: that is other data under the same names, not a
    shard that was repaired.

    Args:
        changed: {position: how it differs}.
        completed: how many items were done.

    Raises:
        UsageError: it is so.
    """
    if len(changed) < 2 or 2 * len(changed) <= completed:
        return
    position = min(changed)
    item = manifest.items[position]
    raise UsageError(
        f"run folder '{uri}': data differs: {item.kind} {item.name} changed after it was scanned "
        f"({changed[position]}), and so did {len(changed) - 1} more of the {completed} that are done; choose another "
        "--out for other data, or, to scan these again, remove their records from the run folder "
        f"(parts/{_number(position)}.json and so on)"
    )


def is_of_run(record: CompletionRecord, fingerprint: str) -> bool:
    """Whether a completion record counts for a run."""
    return record.fingerprint == fingerprint


def refuse_torn(position: int, name: str, content: bytes, expected: str) -> None:
    """Refuse a part's file that is not the one that was committed.

    Raises:
        TornPartError: its SHA-256 (hex) is another one.
    """
    if sha256(content) != expected:
        raise TornPartError(position, f"{name} is not the file that was committed")


def sha256(content: bytes) -> str:
    """Return the SHA-256 (hex) that a completion record keeps of a part's file."""
    return hashlib.sha256(content).hexdigest()


def _stored_file(content: bytes | Path) -> StoredFile:
    if isinstance(content, bytes):
        return StoredFile(len(content), sha256(content))
    with open(content, "rb") as file:
        return StoredFile(content.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def part_file(position: int, ending: str) -> str:
    """Return where a part's file is, below the run folder.

    >>> part_file(3, "moments.parquet"), part_file(3, "layers/mixed4a/mean/parquet")
    ('parts/000003.moments.parquet', 'layers/mixed4a/mean/000003.parquet')
    """
    folder, end = _folder_and_end(ending)
    return f"{folder}/{_number(position)}.{end}"


def _folder_and_end(ending: str) -> tuple[str, str]:
    folder, _, end = ending.rpartition("/")
    return folder or "parts", end


def _number(position: int) -> str:
    return f"{position:06d}"
