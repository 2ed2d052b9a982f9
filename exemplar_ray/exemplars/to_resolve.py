"""What the task that builds and questions a network is handed, and what it hands back. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from exemplar_ray.data.shard import Shard
from exemplar_ray.exemplars.spec import ExemplarsSpec, RunSpec
from exemplar_ray.network.questions import Answers, KnownNetwork


@dataclass(frozen=True)
class ToResolve:
    """What the user asks for, and what is at hand to find out what that means."""

    spec: RunSpec
    shards: Sequence[Shard] = field(default_factory=tuple)
    """Whose first images the network is questioned with."""
    known: KnownNetwork | None = None
    """What an earlier invocation of the run found out."""


@dataclass(frozen=True)
class Resolved:
    """What it means, and what the network answered."""

    spec: ExemplarsSpec
    answers: Answers
