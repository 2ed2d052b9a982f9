"""What tasks are handed. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exemplar_ray.activations.spec import ActivationsSpec
from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.shard import Shard
from exemplar_ray.network.questions import KnownNetwork
from exemplar_ray.network.spec import NetworkRequest

# Images a forward pass. It is no key: another shape may give other last bits, and what is stored is to be the same.
_BATCH_OF_A_CORE, _BATCH_OF_A_GPU = 8, 128


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


@dataclass(frozen=True)
class StoreSettings:
    """What a task is handed. But for `spec` and `class_labels`, none of it changes what is stored."""

    spec: ActivationsSpec
    class_labels: ClassLabels
    threads: int
    """How many decode at the same time."""
    use_gpu: bool = False
    max_skipped: int = 0
    allow_overflow: bool = False

    @property
    def batch_size(self) -> int:
        """Return how many images a forward pass takes."""
        return _BATCH_OF_A_GPU if self.use_gpu else _BATCH_OF_A_CORE
