"""What a job says of itself; the driver does the rest.

    items --task--> parts --reduce--> result

A job is a subclass of `Job` and a function for its task. It gets rerun, refusal, status, progress, retries and
failed items from `driver.run_job`, for nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exemplar_ray.executor.progress import IMAGES
from exemplar_ray.runs.manifest import Item, Manifest
from exemplar_ray.runs.records import CompletionRecord
from exemplar_ray.runs.run_folder import RunFolder, whole_record

if TYPE_CHECKING:
    from rich.console import Console

    from exemplar_ray.executor.cluster import Cluster


@dataclass(frozen=True)
class Made:
    """What a task makes of one item. Everything is a function of the job's settings and the item alone."""

    files: Mapping[str, bytes | Path]
    """The part: {how the file's name ends, such as `parquet`: its content, or a local file, which is moved}. One that
    is to be in a folder of its own says so before it, see `run_folder.part_file`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the completion record: plain JSON values. `scored` is how many images it took, for the progress line."""
    left: Any = None
    """Where the job's tasks leave something: what spares the reduce's tasks work, as long as it is there. It stays in
    Ray's memory."""


@dataclass(frozen=True)
class Reduced:
    """What a reduce comes to: `failed` is {item's name: reason} where it could not be done, `again` {position: reason}
    where a part is not what its item gives, so that the item has to be done again."""

    failed: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    """For `summary.json`: plain JSON values."""
    again: Mapping[int, str] = field(default_factory=dict)
    lines: Sequence[str] = ()
    """For people, when the run is over."""


@dataclass(frozen=True)
class Context:
    """What a reduce works with."""

    cluster: Cluster
    folder: RunFolder
    manifest: Manifest
    completed: Mapping[int, Any]
    """What is done: {position: what the job keeps of its record}, ascending."""
    console: Console
    left: Mapping[int, Any] = field(default_factory=dict)
    """What items' tasks have left for others, in this invocation, as `cluster.Order` takes it: {position: it}. The
    reduce must do without, and come to the same."""

    @property
    def partial(self) -> str | None:
        """None, or what the result leaves out: `7 of 8 shards`."""
        done, items = len(self.completed), len(self.manifest.items)
        return None if done == items else f"{done} of {items} {self.manifest.items_name}"

    def parts(self, only: Collection[str] | None = None) -> Iterator[tuple[int, dict[str, bytes]]]:
        """Read the parts in order: (position, {how the file's name ends: its content}).

        Args:
            only: which files of each, by their endings; None for all.

        Raises:
            TornPartError: a part is not the one that was committed.
        """
        return self.folder.read_parts(list(self.completed), self.manifest.fingerprint, only)


class Job(ABC):
    """One run of a job.

    Attributes:
        name: what the kind of job is called: `exemplars`.
        items: what there is a task and a part for, in an order that stays; at least one.
        settings: what every task is handed: small, and pickles. What of it is not in the identity must not change the
            result.
        task: `module:function`, called in a worker as `function(settings, (position, item))`; returns a `Made`. It
            raises ShardError where the item is at fault and trying again would not help.
        piece, join: of a job whose items may be done in pieces by several workers, see `pieces`: `module:function`s,
            called as `function(settings, (position, item), number)`, which returns anything that pickles, and as
            `function(settings, (position, item), iterator)`, with what all pieces gave, in order; that returns the
            `Made` that the task would, to the last bit.
        compare: `module:function`, called in a worker as `function(settings, (position, item), facts)` for a completed
            item that may have changed: returns how it differs from what the task noted in its facts, or None. Without
            one such an item is done again.
        result: the file that the reduce writes last; with it the run is answered.
        verb: what its tasks do, for the progress line.
        counted: what they do that to: what is `scored` in their facts.
        leaves: whether what the task makes has something `left`, see `Made`.
    """

    name: str
    task: str
    result: str
    items: Sequence[Item]
    settings: Any = None
    piece: str | None = None
    join: str | None = None
    compare: str | None = None
    verb: str = "map"
    counted: str = IMAGES
    leaves: bool = False
    keep: Callable[[CompletionRecord], Any] = staticmethod(whole_record)
    """What the driver keeps of a completion record, of which there may be very many."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what decides the result, plain JSON values under the user's key names."""

    @abstractmethod
    def reduce(self, context: Context) -> Reduced:
        """Fold the parts, and write the result. The order of parts must not matter, but for the last bits of sums."""

    def pieces(self, item: Any) -> int:
        """Return how many pieces an item falls into that may be done by several workers; 1 if it does not.

        It is asked where workers would be idle at the end of a run. Failing, trying again and rerunning stay by item.
        """
        return 1

    def details(self) -> dict[str, Any]:
        """Return what else `run.json` keeps: plain JSON values."""
        return {}

    def manifest(self) -> Manifest:
        """Return what the run folder is for."""
        return Manifest(self.name, self.identity(), self.items, self.details())

    def is_answered(self, summary: Mapping[str, Any]) -> bool:
        """Whether a complete result, of this identity, is what was asked for."""
        return True

    def difference(self, before: CompletionRecord, after: CompletionRecord) -> str | None:
        """Say of an item that was done anew, as its part was wrong, what the two records tell of the reason."""
        return None

    def retract(self, folder: RunFolder, position: int) -> None:
        """Take an item's part back, and whatever else came of it."""
        folder.retract(position)

    def notes(self, record: CompletionRecord) -> Sequence[str]:
        """Return what an item's record says that is worth saying once a run."""
        return ()

    def steps(self, item: Any) -> int | None:
        """Return how much of `counted` an item is, so that the progress line counts that; None to count items."""
        return None

    def glimpse(self, part: Mapping[str, bytes]) -> Sequence[tuple[str, bytes]]:
        """Return what can be seen of a part: small pictures, JPEG, each with its name.

        A notebook shows the last ones while the job goes on.

        Args:
            part: {how the file's name ends: its content}.
        """
        return ()

    def announce(self, cluster: Cluster) -> Sequence[str]:
        """Return what to say before the tasks begin, in lines."""
        return ()
