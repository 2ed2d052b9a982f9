"""Circuits on a run's pages: what each channel is made of, whether that explains it, and what it is used by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exemplar_ray.results.circuit import Circuit, Circuits, Edge
from exemplar_ray.results.kernels import kernel_picture

_EACH_WAY = 8
_PARTS_NAMED = 6
_EXEMPLARS = 10
_SCALE_QUANTILE = 0.99

KINDS = {
    "expanded": ("Expanded", "through all that lies between, as if every ReLU were open and every pooling a mean"),
    "gated": ("Gated", "the same, each unit between weighted by how often it fires on this data"),
    "exemplars": ("On these exemplars", "what each input adds at the peak, on average over the exemplars"),
    "literal": ("Literal", "the kernels of the convolution itself, whose inputs may lie between the layers"),
}


@dataclass(frozen=True)
class Neighbour:
    """A channel of another layer, as it is shown beside what connects it."""

    layer: str
    channel: int
    page: str | None
    """Its page, below the report's folder; None where there is none."""
    pictures: tuple[str, ...] = ()
    """What it looks for, and its strongest exemplars, as far as they are known."""


@dataclass(frozen=True)
class ShownEdge:
    """An edge with its kernel."""

    neighbour: Neighbour
    kernel: str
    """A picture, as a `data:` address."""
    edge: Edge


@dataclass(frozen=True)
class ShownKind:
    """The inputs of one kind, excitatory and inhibitory apart."""

    name: str
    title: str
    words: str
    excite: list[ShownEdge]
    inhibit: list[ShownEdge]
    share: float
    """How much of the whole squared norm is shown, 0..1."""


@dataclass(frozen=True)
class Bar:
    """What a channel comes to on one exemplar: pieces that add up."""

    rank: int
    total: float
    pieces: list[tuple[str, float, float, float]]
    """Name, value, and where it begins and how wide it is, in per cent of the whole bar."""
    zero: float
    words: str


@dataclass(frozen=True)
class ShownCircuit:
    """What a channel is made of, as its page shows it."""

    circuit: Circuit
    kinds: list[ShownKind]
    bars: list[Bar]
    factors: list[tuple[str, float, list[Neighbour]]]
    twins: list[tuple[Neighbour, str, float]]
    used_by: list[ShownEdge]

    @property
    def predicts(self) -> list[tuple[str, float]]:
        """Return, for each kind of inputs, how well it foretells what happens without the strongest."""
        return [(kind, value) for kind, value in (self.circuit.row["predicts"] or {}).items() if value is not None]


class ShownCircuits:
    """The circuits of a run, as its pages show them.

    Args:
        circuits: what there is.
        neighbour: from a layer and a channel to what is known of it.
    """

    def __init__(self, circuits: Circuits, neighbour: Callable[[str, int], Neighbour]) -> None:
        self._circuits, self._neighbour = circuits, neighbour

    def of_layer(self, layer: str) -> Iterator[tuple[int, ShownCircuit]]:
        """Yield each channel that has a circuit, and this."""
        for circuit in self._circuits.of_layer(layer):
            if circuit.row:
                yield circuit.channel, self._shown(circuit)

    def _shown(self, circuit: Circuit) -> ShownCircuit:
        row = circuit.row
        kinds = [self._kind(name, circuit.inputs(name)) for name in KINDS if circuit.inputs(name)]
        patterns = [np.array(factor["pattern"], np.float32) for factor in row["factors"]]
        factors = [
            (
                kernel_picture(pattern.reshape(row["height"], row["width"]), float(np.abs(pattern).max())),
                factor["share"],
                [self._neighbour(row["from_layer"], channel) for channel in factor["inputs"]],
            )
            for factor, pattern in zip(row["factors"], patterns, strict=True)
        ]
        twins = [
            (self._neighbour(circuit.layer, twin["channel"]), twin["turned"], twin["cosine"]) for twin in row["twins"]
        ]
        used_by = [edge for edge in circuit.used_by if edge["rank"] <= _EACH_WAY] or circuit.used_by
        used_by = used_by[: 2 * _EACH_WAY]
        return ShownCircuit(
            circuit,
            kinds,
            [bar_of(exemplar) for exemplar in circuit.exemplars[:_EXEMPLARS]],
            factors,
            twins,
            self._edges(used_by, "next_layer", "next_channel"),
        )

    def _kind(self, name: str, edges: Sequence[Edge]) -> ShownKind:
        excite = [edge for edge in edges if edge["sum"] > 0][:_EACH_WAY]
        inhibit = [edge for edge in edges if edge["sum"] <= 0][:_EACH_WAY]
        shown = self._edges([*excite, *inhibit], "from_layer", "from_channel")
        return ShownKind(
            name,
            *KINDS[name],
            shown[: len(excite)],
            shown[len(excite) :],
            sum(edge["share"] for edge in (*excite, *inhibit)),
        )

    def _edges(self, edges: Sequence[Edge], layer: str, channel: str) -> list[ShownEdge]:
        """Draw kernels, all on one scale."""
        weights = np.abs(np.concatenate([np.array(edge["weights"]) for edge in edges] or [np.zeros(1)]))
        strongest = float(np.quantile(weights, _SCALE_QUANTILE))
        return [
            ShownEdge(self._neighbour(edge[layer], edge[channel]), kernel_picture(edge.kernel, strongest), edge)
            for edge in edges
        ]


def bar_of(exemplar: dict[str, Any]) -> Bar:
    """Lay out what a channel comes to on an exemplar: what inhibits to the left of zero, what excites to the right."""
    named = list(zip(exemplar["inputs"], exemplar["contributions"], strict=True))
    rest = named[_PARTS_NAMED:]
    pieces = [(f"{channel}", value) for channel, value in named[:_PARTS_NAMED]]
    pieces.append(("others that excite", exemplar["others_excite"] + sum(value for _, value in rest if value > 0)))
    pieces.append(("others that inhibit", exemplar["others_inhibit"] + sum(value for _, value in rest if value < 0)))
    pieces.append(("bias", exemplar["bias"]))
    negative = -sum(value for _, value in pieces if value < 0)
    positive = sum(value for _, value in pieces if value > 0)
    whole = negative + positive or 1.0
    left = right = zero = 100 * negative / whole
    laid = []
    for name, value in pieces:
        width = 100 * abs(value) / whole
        left, right = (left - width, right) if value < 0 else (left, right + width)
        laid.append((name, value, left if value < 0 else right - width, width))
    words = " ".join(f"{'+' if value >= 0 else '−'} {abs(value):.4g} ({name})" for name, value in pieces if value)
    total = float(exemplar["activation_pre_relu"])
    return Bar(exemplar["rank"], total, laid, zero, f"{words} = {total:.4g}")
