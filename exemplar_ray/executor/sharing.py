"""Items shared by workers: in pieces, which are put together.

An item is the unit of rerunning: it is done or failed as a whole, and by one worker as long as there is an item for
each. The last ones of a run, as many as there are workers, are done in pieces, and so are those that were lost with a
worker: none waits for another's. Which pieces there are depends on the item alone, and they are put together in order,
so that the part is the same whoever did what.

What a piece gives stays in Ray's memory, not the driver's, until all of its item's are there. If it is lost with a
machine, the item's pieces are done again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from exemplar_ray.executor.attempts import Left, Order, Outcome
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.item_task import ItemTask, PieceDone
from exemplar_ray.runs.manifest import Item

_TASKS = "exemplar_ray.executor.item_task"

# Pieces handed to Ray for each worker that there is room for: one that it has, and the next. What they give takes
# memory until the last of an item's is done, so an item's are done together.
_PIECES_A_WORKER = 2


class Step(NamedTuple):
    """What a task does of an item: all of it, one piece, or putting the pieces together."""

    position: int
    piece: int | None = None
    joins: bool = False


@dataclass
class _Shared:
    """An item that is done in pieces."""

    pieces: int
    retries: int
    done: dict[int, tuple[PieceDone, Left]] = field(default_factory=dict)


class Sharing:
    """Orders items' tasks.

    Args:
        items: of the run, by position.
        positions: which to do.
        pieces: returns how many pieces an item falls into.
    """

    def __init__(
        self, cluster: Cluster, items: Sequence[Item], positions: Sequence[int], pieces: Callable[[Item], int]
    ) -> None:
        self._cluster, self._items, self._pieces_of = cluster, items, pieces
        self._whole = deque(positions)
        self._pieces: deque[Step] = deque()
        self._joins: deque[Step] = deque()
        self._shared: dict[int, _Shared] = {}
        self._ordered = 0
        self._leaves = False

    def outcomes(self, task: ItemTask, settings: object, imports: str) -> Iterator[Outcome[int]]:
        """Have the items done; yield how each ended, by its position, as they come.

        Args:
            settings: the job's, see `job.Job.settings`.
            imports: a `module:function` of the job.

        Raises:
            UsageError, TornPartError: see `Cluster.do`.
        """
        cluster, self._leaves = self._cluster, task.leaves
        for outcome in cluster.do(self._following, task, settings, demand=cluster.demand, imports=imports):
            self._ordered -= 1
            ended = self._take(outcome)
            if ended is not None:
                yield ended

    def _following(self) -> Order[Step] | None:
        """Return the next order: what is nearest to its end first."""
        order = self._next_join() or self._next_whole() or self._next_piece()
        self._ordered += order is not None
        return order

    def _next_join(self) -> Order[Step] | None:
        if not self._joins:
            return None
        step = self._joins.popleft()
        shared, item = self._shared[step.position], self._items[step.position]
        done, left = zip(*(shared.done.pop(piece) for piece in range(shared.pieces)), strict=True)
        given = (step.position, item, done)
        name = f"{item.name} (its {shared.pieces} pieces together)"
        return Order(
            key=step,
            function=f"{_TASKS}:join_item",
            item=given,
            name=name,
            of=step.position,
            leaves=self._leaves,
            left=left,
            retries=shared.retries,
        )

    def _next_whole(self) -> Order[Step] | None:
        while self._whole:
            position = self._whole.popleft()
            item = self._items[position]
            pieces = self._pieces_of(item)
            if pieces > 1 and self._is_among_last(1 + len(self._whole)):
                self._divide(position, pieces)
                continue
            step = Step(position)
            order = Order(step, f"{_TASKS}:do_item", (position, item), item.name, leaves=self._leaves)
            return replace(order, divisible=pieces > 1)
        return None

    def _next_piece(self) -> Order[Step] | None:
        # As many tasks as there are items, too: an autoscaler goes by those that wait.
        most = max(_PIECES_A_WORKER * self._cluster.slots_now(), len(self._shared)) if self._pieces else 0
        if self._ordered >= most:
            return None
        step = self._pieces.popleft()
        shared, item = self._shared[step.position], self._items[step.position]
        assert step.piece is not None
        name = f"{item.name} (piece {step.piece + 1} of {shared.pieces})"
        given = (step.position, item, step.piece)
        return Order(step, f"{_TASKS}:do_piece", given, name, of=step.position, leaves=True, retries=shared.retries)

    def _is_among_last(self, left: int) -> bool:
        """Whether there are, or may be, as many workers as items that nobody has begun."""
        return left <= self._cluster.slots_now() or self._cluster.may_grow

    def _divide(self, position: int, pieces: int, retries: int = 0) -> None:
        self._shared[position] = _Shared(pieces, retries)
        self._pieces.extend(Step(position, piece) for piece in range(pieces))

    def _take(self, outcome: Outcome[Step]) -> Outcome[int] | None:
        """Take in how a task ended; return how its item did, if it has."""
        step = outcome.key
        if outcome.again is not None:
            self._divide(step.position, self._pieces_of(self._items[step.position]), outcome.again)
            return None
        if step.piece is None and not step.joins:
            return outcome.under(step.position)
        shared = self._shared.get(step.position)
        if shared is None:
            # Another piece has failed, or somebody else has done the item.
            return None
        if outcome.error is None and isinstance(outcome.value, PieceDone):
            assert step.piece is not None
            assert outcome.left is not None
            shared.done[step.piece] = outcome.value, outcome.left
            if len(shared.done) == shared.pieces:
                self._joins.append(Step(step.position, joins=True))
            return None
        del self._shared[step.position]
        self._pieces = deque(one for one in self._pieces if one.position != step.position)
        return outcome.under(step.position)
