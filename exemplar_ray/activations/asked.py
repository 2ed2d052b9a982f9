"""What the task that builds and questions a network is handed. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exemplar_ray.data.shard import Shard
from exemplar_ray.network.questions import KnownNetwork
from exemplar_ray.network.spec import NetworkRequest


@dataclass(frozen=True)
class ToResolve:
    """What the user asks for, and what is at hand to find out what that means."""

    request: NetworkRequest
    statistics: tuple[str, ...]
    """By which maps are pooled."""
    shards: Sequence[Shard]
    """Whose first images the network is questioned with."""
    known: KnownNetwork | None = None
    """What an earlier invocation found out."""
