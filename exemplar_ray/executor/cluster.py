"""Ray: connect, run tasks, take their results as they come, retry what is worth it.

What a task computes is named `module:function`, and imported where the task runs:
the driver needs neither torch nor the job's code.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

import ray

from exemplar_ray.errors import UsageError
from exemplar_ray.executor.attempts import Attempts, Call, Key, Order, Outcome
from exemplar_ray.executor.blame import Blame
from exemplar_ray.executor.connection import connect, disconnect, kinds_to_come, may_grow, raylet
from exemplar_ray.executor.machines import Machines
from exemplar_ray.executor.ray_address import Watch, is_same
from exemplar_ray.executor.ray_token import RayToken
from exemplar_ray.executor.remote import Called, call, folder_of, prepare
from exemplar_ray.executor.resources import Demand, Resources, batch_size_of, demand_of

__all__ = ["Cluster", "Order", "Outcome"]

# Tasks handed to Ray at once: enough for its autoscaler to see the demand, few enough that
# the driver's memory does not grow with the number of items.
_MOST_IN_FLIGHT = 1000
_MOST_PREPARED = 64

_ONE_CPU = Demand()

_NODE = "ray.io/node-id"

# Ray imports it when it hands the first task over.
_FOR_FIRST_TASK = "ray._common.pydantic_compat"


class Cluster:
    """A connection to Ray, started here or joined, for the time of a `with` block.

    `demand` is what a task that runs a network asks for, `batch_size` the images of its forward pass, `slots` how many
    such tasks run at once; `waits_for` says so where no machine is large enough for one, but another may join.

    Args:
        resources: what the user asks for.
        log_level: what tasks log from, by name, see `logging`.
        tell: what to say a line with, on what happens meanwhile.
        later: a module that the driver needs when tasks are done: it is imported while a Ray of our own starts.
    """

    def __init__(
        self,
        resources: Resources,
        log_level: str = "warning",
        tell: Callable[[str], None] | None = None,
        later: str | None = None,
    ) -> None:
        self.resources = resources
        self._log_level = log_level.upper()
        address = resources.address or os.environ.get("RAY_ADDRESS")
        self._address = None if address == "local" else address
        self._token = RayToken(ray._raylet)
        self._folders: tuple[str, ...] = ()
        self.waits_for: str | None = None
        self.on_line = tell
        self._blame = Blame(self.tell)
        self._later = later

    def __enter__(self) -> Cluster:
        """Connect.

        Raises:
            UsageError: there is no Ray at the address, or it has less than a task asks for.
            KeyboardInterrupt: SIGTERM came meanwhile.
        """
        self._joined = ray.is_initialized()
        if self._joined:
            self._refuse_another()
        else:
            self._folders = connect(self._address, self._token, partial(_import, _FOR_FIRST_TASK, self._later))
        try:
            self._watch = Watch(ray.get_runtime_context().gcs_address, raylet())
            self._size_tasks(ray.cluster_resources())
        except UsageError:
            self.__exit__()
            raise
        return self

    def tell(self, line: str) -> None:
        """Say what happens meanwhile."""
        if self.on_line is not None:
            self.on_line(line)

    def __exit__(self, *_: object) -> None:
        if not self._joined:
            disconnect()
            self._token.restore()

    def _refuse_another(self) -> None:
        """Refuse an address of another Ray than the one that this process is connected to."""
        asked, here = self.resources.address, ray.get_runtime_context().gcs_address
        if asked not in (None, "auto", "local") and not is_same(asked, here):
            raise UsageError(
                f"this process is connected to the Ray at '{here}' already, so that it cannot join '{asked}'; leave "
                "--address (address) out, or call ray.shutdown() first"
            )

    def _size_tasks(self, totals: dict[str, float]) -> None:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        to_come = kinds_to_come() or []
        self.demand = demand_of(self.resources, [*machines, *to_come])
        self.batch_size = batch_size_of(self.resources, self.demand)
        self.slots = self.demand.slots(totals)
        if not self.demand.fits(machines):
            if not (self._joined or self._address):
                self.demand.refuse_impossible(machines)
            if to_come:
                self.demand.refuse_impossible([*machines, *to_come], "any machine of this cluster has or may get")
            elif not may_grow():
                self.demand.refuse_impossible(machines, "any machine of this cluster has")
            self.waits_for = (
                f"no machine of this cluster has what a task asks for ({self.demand.words}): tasks wait until one joins"
            )

    @property
    def brings_working_folder(self) -> bool:
        """Whether workers have a copy of the driver's working folder: a submitted job brings it along."""
        return "working_dir" in ray.get_runtime_context().runtime_env

    def prepare(self, function: str, item: Any, tasks: int) -> None:
        """Have workers call `function(item)` while other things go on, to import what the tasks that follow need; if
        one cannot, those will say so.

        Where no machine is there yet, an autoscaler sees at once what all tasks will ask for, and not only what the
        first does. That goes with the driver: nothing is asked for in advance that a killed one would leave behind.

        Args:
            function: `module:function`, of this package.
            tasks: how many there will be.
        """
        # A Ray that stays would keep asking after the run.
        count = min(self.slots - 1 if self.slots or self._joined else tasks, _MOST_PREPARED)
        for _ in range(count):
            prepare.options(num_cpus=self.demand.cpus, num_gpus=self.demand.gpus).remote(function, item)

    @property
    def at_once(self) -> str:
        """Return how many tasks run at once, in words."""
        if self.slots:
            return f"{self.slots} tasks at once, {self.demand} each"
        gpus = ""
        if self.resources.gpus_per_task is None and not self.demand.gpus:
            gpus = "; no GPU was there when the run began, so tasks use none: --gpus-per-task 1 asks for one"
        return f"tasks begin as machines join, {self.demand.words} each{gpus}"

    def map(
        self,
        function: str,
        items: Iterable[tuple[Key, Any]],
        *shared: Any,
        demand: Demand = _ONE_CPU,
        imports: str | None = None,
        named: Callable[[Key], str] = str,
    ) -> Iterator[Outcome[Key]]:
        """Call `function(*shared, item)` in a task for each item; yield outcomes as they come.

        Args:
            function: `module:function`, imported where the task runs.
            items: (key, item) pairs; taken one by one, so there may be any number of them.
            shared: what every task gets; stored once.
            demand: what each task asks Ray for.
            imports: another `module:function` that tasks import, and that items may be of.
            named: what people call an item; "" where there is only one.

        Raises:
            UsageError, TornPartError: see `do`.
        """
        orders = (Order(key, function, item, named(key)) for key, item in items)
        return self.do(partial(next, orders, None), *shared, demand=demand, imports=imports or function)

    def do(
        self, following: Callable[[], Order[Key] | None], *shared: Any, demand: Demand, imports: str
    ) -> Iterator[Outcome[Key]]:
        """Have tasks do what is ordered, each by calling `function(*shared, item)`; yield outcomes as they come.

        What is transient (lost workers, time-outs) is tried again, with back-off.

        Args:
            following: returns the next order; None if there is none, or none before another outcome is taken.
            shared: what every task gets; stored once.
            demand: what each task asks Ray for.
            imports: a `module:function` that tasks import, and that items may be of.

        Raises:
            UsageError, TornPartError: a task raised one; nothing that follows would fare better. Or there is no such
                module.
        """
        folder = folder_of(imports)
        folders = self._folders if folder is None else (folder, *self._folders)
        # For people: Ray's dashboard and the process list show it.
        verb = imports.rpartition(":")[2]
        # In a list, and the item as bytes: they may be of classes that a worker has to find first.
        stored = [ray.put(value) for value in shared]

        def submit(
            name: str, order: Order[Key], away_from: frozenset[str], attempt: int, memory: int | None
        ) -> tuple[ray.ObjectRef, ray.ObjectRef | None]:
            options: dict[str, Any] = {"num_cpus": demand.cpus, "num_gpus": demand.gpus}
            options["num_returns"] = 2 if order.leaves else 1
            options["name"] = name if attempt == 1 else f"{name}, attempt {attempt}"
            if memory is not None:
                options["memory"] = memory
            if away_from:
                options["label_selector"] = {_NODE: f"!in({','.join(sorted(away_from))})"}
            called = Called(order.function, folders, self._log_level, order.leaves)
            item = ray.cloudpickle.dumps(order.item)
            returned: Any = call.options(**options).remote(called, item, stored, list(order.left))
            return (returned[0], returned[1]) if order.leaves else (returned, None)

        def next_call() -> Call[Key] | None:
            order = following()
            if order is None:
                return None
            name = f"{verb} {order.name}".strip()
            return Call(order, partial(submit, name, order), order.name or verb, retries=order.retries)

        attempts = Attempts(
            self.resources.retries, Machines(demand), self._blame, self._watch, self._most_in_flight, self.tell
        )
        return attempts.run(next_call)

    def call(self, function: str, item: Any, failing: str) -> Any:
        """Call `function(item)` in one task; return its value.

        Args:
            failing: what to say that it means if there is none: "the model cannot be built".

        Raises:
            UsageError: it raised one, or its workers were lost, or what else it raised may pass.
            RuntimeError: it raised something else.
        """
        [outcome] = self.map(function, [(failing, item)], named=lambda _: "")
        if outcome.lost or outcome.transient:
            raise UsageError(f"{failing}: {outcome.error}")
        if outcome.error:
            raise RuntimeError(f"{failing}: {outcome.error}\n{outcome.details}")
        return outcome.value

    def slots_now(self) -> int:
        """Return how many tasks that run a network the cluster has room for at the moment."""
        return self.demand.slots(ray.cluster_resources())

    @cached_property
    def may_grow(self) -> bool:
        """Whether machines may join while tasks wait for them."""
        return bool(self._joined or self._address) and may_grow()

    def _most_in_flight(self) -> int:
        """How many tasks to have handed to Ray, begun or not."""
        if not self._joined:
            return _MOST_IN_FLIGHT
        # When a run ends early, this Ray goes on with them: they cannot be cancelled, as Ray 2.60 aborts the process
        # that cancels a task at the moment when its result arrives (ray-project/ray#54527). So enough that no slot
        # waits, and that an autoscaler doubles what there is.
        return min(2 * max(self.slots_now(), 1), _MOST_IN_FLIGHT)


def _import(*modules: str | None) -> None:
    """Import modules before they are needed; one that cannot be imported says so then."""
    for module in filter(None, modules):
        with suppress(Exception):
            importlib.import_module(module)
