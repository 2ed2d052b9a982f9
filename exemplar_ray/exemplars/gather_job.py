"""Gather as tasks: what the driver hands out, and what it keeps of what comes. Knows no torch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from exemplar_ray.data.shard import Shard
from exemplar_ray.executor.cluster import Order, Outcome
from exemplar_ray.executor.job import Context
from exemplar_ray.executor.progress import ProgressDisplay
from exemplar_ray.executor.resources import Demand
from exemplar_ray.exemplars.gather_tasks import Task, split
from exemplar_ray.exemplars.gathered import GatheredShard, NotAsScanned, OfShard, ToGather, joined
from exemplar_ray.exemplars.left_answers import LeftAnswers
from exemplar_ray.exemplars.plan import Plan, ScannedShard
from exemplar_ray.exemplars.scan_job import TASKS
from exemplar_ray.exemplars.tables.image_spool import ImageSpool
from exemplar_ray.exemplars.topk import Scores

_GATHER = f"{TASKS}:gather"


class NotAsScannedFoundError(Exception):
    """Parts are not what their shards give; `reasons` is {position: why}."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons


def gather_candidates(
    plan: Plan, context: Context, images: ImageSpool, left: LeftAnswers, wanted: Mapping[int, Scores]
) -> tuple[dict[int, GatheredShard], dict[str, str]]:
    """Recompute candidates, and keep their images; see `selection.Gather`.

    Args:
        left: what was left of images that were recomputed earlier; what is left of these is added.

    Raises:
        NotAsScannedFoundError: shards have to be scanned again.
    """
    gathering = _Gathering(plan, context, images, left, wanted)
    tasks = split(plan.spec, gathering.shards, wanted, left.scanned)
    while tasks:
        # Of several shards one is at fault.
        of_several = gathering.run(tasks)
        tasks = [task._replace(candidates={p: which}) for task in of_several for p, which in task.candidates.items()]
    left.note(wanted)
    if gathering.again:
        raise NotAsScannedFoundError(gathering.again)
    return gathering.result(), gathering.failed


class _Gathering:
    """What has been gathered so far of some candidates.

    `failed` is {shard's name: reason}, `again` {position: reason} of shards that have to be scanned again.
    """

    def __init__(
        self, plan: Plan, context: Context, images: ImageSpool, left: LeftAnswers, wanted: Mapping[int, Scores]
    ) -> None:
        self._plan, self._context, self._images, self._left, self._wanted = plan, context, images, left, wanted
        self.shards = {p: _as_scanned(plan.shards[p], context.completed[p]) for p in wanted}
        self.failed: dict[str, str] = {}
        self.again: dict[int, str] = {}
        self._come: dict[int, list[tuple[np.ndarray, GatheredShard]]] = {p: [] for p in wanted}

    def run(self, tasks: list[Task]) -> list[Task]:
        """Run tasks, see `gather_tasks.split`; return those of several shards that failed."""
        of_several = []
        names = self._names(tasks)
        waiting = deque(range(len(tasks)))
        retries: dict[int, int] = {}

        def following() -> Order[int] | None:
            if not waiting:
                return None
            number = waiting.popleft()
            task = tasks[number]
            given = [self._of_shard(p, which) for p, which in task.candidates.items()]
            # Where it is tried again, what others had left is gone with its machine.
            left = () if number in retries else self._left.of(task)
            item = ToGather(given, leave=self._left.wants_more)
            of, tried = _first_shard(task), retries.get(number, 0)
            return Order(number, _GATHER, item, names[number], of=of, leaves=True, left=left, retries=tried)

        run = self._context.cluster.do(following, self._plan.spec, demand=Demand(), imports=_GATHER)
        with ProgressDisplay(self._context.console, "gather", len(tasks), "tasks") as display:
            for outcome in run:
                task, name = tasks[outcome.key], names[outcome.key]
                if outcome.again is not None:
                    retries[outcome.key] = outcome.again
                    waiting.append(outcome.key)
                elif outcome.error is None:
                    self._take(task, name, outcome, display)
                    self._left.add(task, outcome.left)
                elif len(task.candidates) > 1:
                    of_several.append(task)
                else:
                    self._fail(_first_shard(task), name, outcome.error, display)
        return of_several

    def _names(self, tasks: list[Task]) -> list[str]:
        """Return what people call each task: its shard, and which piece where there are several of it."""
        of = [_first_shard(task) for task in tasks]
        pieces, seen, names = Counter(of), Counter[int](), []
        for position in of:
            seen[position] += 1
            piece = f" (piece {seen[position]} of {pieces[position]})" if pieces[position] > 1 else ""
            names.append(f"{self._plan.shards[position].name}{piece}")
        return names

    def _fail(self, position: int, task: str, reason: str, display: ProgressDisplay) -> None:
        """Note that a shard failed; of several of its tasks the first to fail says why."""
        shard = self._plan.shards[position].name
        if shard in self.failed:
            display.finished(task, None, "failed as well")
            return
        self.failed[shard] = reason
        display.failed(shard, reason)

    def _of_shard(self, position: int, which: np.ndarray) -> OfShard:
        candidates = self._wanted[position].take(which)
        return OfShard(
            self.shards[position], candidates, self._images.had(position, np.unique(candidates.row).tolist())
        )

    def _take(self, task: Task, name: str, outcome: Outcome[Any], display: ProgressDisplay) -> None:
        """Keep what came of a task, but for its images' bytes and maps, which are spooled."""
        count, changed = 0, []
        for (position, which), gathered in zip(task.candidates.items(), outcome.value, strict=True):
            if isinstance(gathered, NotAsScanned):
                # Another task may have found it, too.
                if position not in self.again:
                    self.again[position] = gathered.reason
                    changed.append(position)
                continue
            self._images.add(position, gathered.images)
            without_bytes, maps = gathered.images.drop_columns(["bytes"]), self._images.add_maps(gathered.maps)
            self._come[position].append((which, replace(gathered, images=without_bytes, maps=maps)))
            count += len(gathered.images)
        display.finished(name, count, host=outcome.host)
        for position in changed:
            display.failed(self._plan.shards[position].name, self.again[position], steps=0)

    def result(self) -> dict[int, GatheredShard]:
        """Return what was gathered, by shard position."""
        return {p: joined(*zip(*pieces, strict=True)) for p, pieces in self._come.items() if pieces}


def _first_shard(task: Task) -> int:
    """Return the position of the first of a task's shards, which it is named by."""
    return min(task.candidates)


def _as_scanned(shard: Shard, scanned: ScannedShard) -> Shard:
    """Return a shard with what its scan has found out, and nobody knew before."""
    return replace(shard, places=scanned.places, about=scanned.rows if shard.rows is None else None)
