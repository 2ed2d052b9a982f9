"""The circuits of a finished run: what each channel is made of, and what that explains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from exemplar_ray.circuits.job_names import CHANNELS, EXEMPLARS, FOLDER, RESULT, USES_RESULT
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.results.circuit_html import circuit_html
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder

# A circuit whose inputs leave more than that of the activation does not explain the channel,
MOST_LEFT = 0.8
# nor does one that foretells worse than that what happens without them.
LEAST_AGREEMENT = 0.7


class Edge(dict):
    """One row of `circuits.parquet` or `circuit_uses.parquet`."""

    @property
    def kernel(self) -> np.ndarray:
        """The weights: float32 [height, width]."""
        return np.array(self["weights"], np.float32).reshape(self["height"], self["width"])


@dataclass
class Circuit:
    """What one channel is made of."""

    layer: str
    channel: int
    row: dict[str, Any]
    """Its row of `circuit_channels.parquet`; {} of a channel that lies between two layers."""
    edges: list[Edge] = field(default_factory=list)
    exemplars: list[dict[str, Any]] = field(default_factory=list)
    """Its rows of `circuit_exemplars.parquet`, by rank."""
    used_by: list[Edge] = field(default_factory=list)
    """The channels of the next layer that are made of it, the strongest first."""

    def inputs(self, kind: str = "expanded") -> list[Edge]:
        """Return its input channels, the strongest first.

        Args:
            kind: `literal`, `expanded`, `gated` or `exemplars`.
        """
        return [edge for edge in self.edges if edge["kind"] == kind]

    @property
    def kinds(self) -> list[str]:
        """The kinds of edges that there are."""
        return list(dict.fromkeys(edge["kind"] for edge in self.edges))

    @property
    def doubt(self) -> str | None:
        """Why its inputs do not explain the channel; None if they do, or that was not looked at."""
        left, predicts = self.row.get("activation_left"), self.row.get("predicts") or {}
        if left is None:
            return None
        agreement = predicts.get("expanded")
        if left > MOST_LEFT:
            return (
                f"this does not explain it: without its {len(self.row['removed'])} strongest inputs "
                f"{100 * left:.0f} % of the activation is left"
            )
        if agreement is not None and agreement < LEAST_AGREEMENT:
            return (
                "the kernels foretell badly what happens without its strongest inputs "
                f"(rank correlation {agreement:.2f})"
            )
        return None

    def _repr_html_(self) -> str:
        return circuit_html(self)


class Circuits:
    """The circuits in a folder, if there are any of the very result that they are to be of.

    Args:
        folder: the run folder of the job that made them.
        of_run: the fingerprint of the run whose channels they are of; None where they are of a network alone.
    """

    def __init__(self, folder: RunFolder, of_run: str | None = None) -> None:
        self._folder = folder
        summary = folder.read_json(SUMMARY) or {}
        self.exist = "edges" in summary and summary.get("of_run") == of_run and folder.exists(RESULT)
        """Whether there are any."""
        self.statistic: str | None = summary.get("statistic") if self.exist else None
        """By which the exemplars are meant that they were held against."""

    @classmethod
    def of_run(cls, run: RunFolder) -> Circuits:
        """Look for the circuits of a run, which are below its folder."""
        return cls(RunFolder(f"{run.uri.rstrip('/')}/{FOLDER}"), run.answered() or "")

    @property
    def network(self) -> NetworkSpec:
        """The network, and the layers whose channels were taken apart."""
        return NetworkSpec.from_json(self._folder.read_run()["spec"])

    def of_channel(self, layer: str, channel: int) -> Circuit | None:
        """Return what a channel is made of; None where that was not looked at."""
        return next(iter(self._read(layer, channel)), None) if self.exist else None

    def of_layer(self, layer: str) -> Iterator[Circuit]:
        """Yield what each of a layer's channels is made of, by channel."""
        yield from self._read(layer) if self.exist else ()

    def _read(self, layer: str, channel: int | None = None) -> list[Circuit]:
        which = [("layer", "=", layer), *([("channel", "=", channel)] if channel is not None else [])]

        def rows(file: str) -> list[dict[str, Any]]:
            with self._folder.open(file) as opened:
                return pq.read_table(opened, filters=which).to_pylist()

        found: dict[int, Circuit] = {row["channel"]: Circuit(layer, row["channel"], row) for row in rows(CHANNELS)}
        for row in rows(RESULT):
            found.setdefault(row["channel"], Circuit(layer, row["channel"], {})).edges.append(Edge(row))
        for row in rows(EXEMPLARS):
            found[row["channel"]].exemplars.append(row)
        for row in rows(USES_RESULT):
            found[row["channel"]].used_by.append(Edge(row))
        return [found[number] for number in sorted(found)]
