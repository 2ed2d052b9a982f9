"""The machines of a Ray: which there are, what they are called, whether others may join."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import ray

from exemplar_ray.executor.connection import may_grow
from exemplar_ray.executor.resources import Demand

# Ray tells of a machine that is lost after some 5 s anyway.
_FRESH_SECONDS = 2.0
_MOST_NAMED = 3
_SAY_EVERY_SECONDS = 60.0


class Machines:
    """The machines that are there now. They go by what Ray calls their nodes.

    Args:
        demand: what a task asks for: a machine that has not as much is none for it.
    """

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._looked = float("-inf")
        self._alive: dict[str, dict[str, Any]] = {}
        self._may_grow: bool | None = None
        self._said = float("-inf")

    def others(self, away_from: frozenset[str] | set[str]) -> set[str]:
        """Return the machines that a task can be on, but for these."""
        return {node for node, found in self._nodes().items() if self._demand.fits([found["Resources"]])} - away_from

    def most_memory(self) -> float:
        """Return the most memory that one machine has to give to tasks, in bytes."""
        fitting = self.others(frozenset())
        return max(
            (found["Resources"].get("memory", 0) for n, found in self._nodes().items() if n in fitting), default=0
        )

    def are_several(self) -> bool:
        """Whether a task can be on more than one machine."""
        return len(self.others(frozenset())) > 1

    def name(self, node: str, host: str | None) -> str:
        """Return what to call a machine: its host, and what Ray calls it where several go by that."""
        hosts = Counter(found["NodeManagerHostname"] for found in self._nodes().values())
        known = self._nodes().get(node, {}).get("NodeManagerHostname")
        return f"{host} (Ray node {node[:8]})" if hosts[known] > 1 else str(host)

    def at(self, address: str | None) -> tuple[str | None, str | None]:
        """Return (node, host) of the machine at an IP address; None where that is not known."""
        found = [
            (n, one["NodeManagerHostname"]) for n, one in self._nodes().items() if one["NodeManagerAddress"] == address
        ]
        return found[0] if len(found) == 1 else (None, address)

    def may_grow(self) -> bool:
        """Whether others may join."""
        if self._may_grow is None:
            self._may_grow = may_grow()
        return self._may_grow

    def waited_for(self) -> str | None:
        """Return what to say where no machine has what a task asks for, once a minute; None if there is nothing."""
        if self.others(frozenset()) or time.monotonic() - self._said < _SAY_EVERY_SECONDS:
            return None
        self._said = time.monotonic()
        there = ", ".join(
            f"{one['NodeManagerHostname']} with {one['Resources'].get('CPU', 0):g} CPUs and "
            f"{one['Resources'].get('GPU', 0):g} GPUs"
            for one in list(self._nodes().values())[:_MOST_NAMED]
        )
        return (
            f"waiting for a machine that has what a task asks for ({self._demand.words}); there is {there or 'none'}; "
            "`ray status` says what the autoscaler makes of it"
        )

    def _nodes(self) -> dict[str, dict[str, Any]]:
        if time.monotonic() - self._looked > _FRESH_SECONDS:
            self._alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
            self._looked = time.monotonic()
        return self._alive
