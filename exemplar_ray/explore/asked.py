"""What tasks are handed."""

from __future__ import annotations

from dataclasses import dataclass

from exemplar_ray.explore.spec import ExploreSpec


@dataclass(frozen=True)
class ExploreSettings:
    """How pieces are made. But for `spec`, none of it changes what is made."""

    spec: ExploreSpec
    threads: int
    """How many decode at the same time."""
