"""What tasks are handed. Imports no torch: the driver needs none."""

from __future__ import annotations

from dataclasses import dataclass

from exemplar_ray.circuits.spec import CircuitOptions, CircuitsSpec
from exemplar_ray.network.spec import NetworkSpec


@dataclass(frozen=True)
class MakeSettings:
    """How groups of circuits are made."""

    spec: CircuitsSpec


@dataclass(frozen=True)
class AskedStretches:
    """Where circuits are looked for."""

    network: NetworkSpec
    options: CircuitOptions
    has_run: bool
