"""What a worker does for circuits: find out between which layers they are, and make those of a group of channels.

Named by the driver as `module:function`; see `executor.cluster`. The network is kept between tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exemplar_ray.circuits.anatomy import Anatomy, anatomy_of
from exemplar_ray.circuits.asked import AskedStretches, MakeSettings
from exemplar_ray.circuits.edges import Strengths, edge, edges, strengths, trimmed
from exemplar_ray.circuits.factors import factors
from exemplar_ray.circuits.measured import measured_gates
from exemplar_ray.circuits.natural import between
from exemplar_ray.circuits.on_exemplars import ablation, exemplar_rows, on_exemplars
from exemplar_ray.circuits.spec import EXEMPLARS, EXPANDED, GATED, LITERAL, CircuitsSpec, Group, Stretch
from exemplar_ray.circuits.tables import SCHEMAS, parquet
from exemplar_ray.circuits.twins import twins
from exemplar_ray.circuits.weights import field_of, kernels
from exemplar_ray.executor.job import Made
from exemplar_ray.executor.machine import cpus
from exemplar_ray.network.affine import Gates, Open
from exemplar_ray.network.before import Before
from exemplar_ray.network.layers import Axis
from exemplar_ray.network.questions import KnownNetwork
from exemplar_ray.network.reference_precision import reference_precision
from exemplar_ray.network.resolve import resolve_network
from exemplar_ray.network.spec import NetworkRequest
from exemplar_ray.runs.ranked import of_others, strongest
from exemplar_ray.runs.run_folder import RunFolder

__all__ = ["find", "make", "resolve"]

# With one thread numbers are the same, to the last bit, whatever is computed beside them.
_THREADS = 1
# So many images, of so many row groups, are looked at to measure how often units fire.
_MEASURED = (64, 16)
# Kernels of a whole layer that are kept: twins are looked for among them.
_MOST_NUMBERS = 1 << 26


def resolve(asked: NetworkRequest) -> KnownNetwork:
    """Build the network of a command without a run, and question it.

    Raises:
        UsageError: see `network.resolve.resolve_network`.
    """
    torch.set_num_threads(cpus())
    return resolve_network(asked)


def find(asked: AskedStretches) -> tuple[Stretch, ...]:
    """Find out between which layers the circuits of a network's wanted layers are.

    Raises:
        UsageError: see `anatomy.Anatomy.stretches`.
    """
    anatomy = anatomy_of(asked.network)
    found = []
    for layer in asked.network.layers:
        found += anatomy.stretches(layer, asked.options.from_layer, asked.has_run)
    wanted = {layer.name for layer in asked.network.layers}
    # A layer that is wanted anyway is not made once more as one between.
    return tuple(one for place, one in enumerate(found) if one not in found[:place] and not _is_twice(one, wanted))


def _is_twice(stretch: Stretch, wanted: set[str]) -> bool:
    return stretch.kinds == (LITERAL,) and stretch.layer in wanted


def make(settings: MakeSettings, given: tuple[int, Group]) -> Made:
    """Make the circuits of a group of channels."""
    spec, (_, group) = settings.spec, given
    torch.set_num_threads(_THREADS)
    with reference_precision():
        rows = _Circuits(spec, group).rows()
    facts = {"scored": len(group.channels)}
    return Made({f"{table}.parquet": parquet(table, rows[table]) for table in SCHEMAS}, facts)


class _Circuits:
    """The circuits of a group of channels."""

    def __init__(self, spec: CircuitsSpec, group: Group) -> None:
        self._spec, self._group = spec, group
        self._stretch = spec.stretches[group.stretch]
        self._anatomy: Anatomy = anatomy_of(spec.network)
        self._rows: dict[str, list[dict[str, Any]]] = {table: [] for table in SCHEMAS}

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of each table."""
        if LITERAL in self._stretch.kinds:
            self._literal()
        if EXPANDED in self._stretch.kinds:
            self._whole()
        return self._rows

    def _literal(self) -> None:
        for weights in self._anatomy.directly_before(self._group.layer):
            within = range(weights.first, weights.first + weights.channels)
            wanted = [channel for channel in self._group.channels if channel in within]
            if not wanted or (len(self._stretch.kinds) == 1 and weights.before.layer != self._stretch.from_layer):
                continue
            places = torch.tensor(wanted) - weights.first
            found = kernels(weights.before.piece, Open(), places).numpy()
            for channel, kernel in zip(wanted, found, strict=True):
                self._keep(channel, weights.before.layer, LITERAL, kernel)

    def _whole(self) -> None:
        before, stretch = self._anatomy.before(self._group.layer, self._spec.options.from_layer), self._stretch
        expanded = _expanded(self._spec, stretch)
        places = torch.tensor(self._group.channels)
        own = kernels(before.piece, Open(), places) if expanded is None else expanded[places]
        gates = _gates(self._spec, stretch) if GATED in stretch.kinds else None
        gated = None if gates is None else kernels(before.piece, gates[1], places)
        for at, channel in enumerate(self._group.channels):
            self._keep(channel, before.layer, EXPANDED, own[at].numpy())
            if gated is not None:
                self._keep(channel, before.layer, GATED, gated[at].numpy())
            known = {EXPANDED: own[at]} | ({} if gated is None else {GATED: gated[at]})
            row = self._channel(before, channel, own[at].numpy(), gates[0] if gates else None)
            row["twins"] = [] if expanded is None else twins(expanded.numpy(), channel)
            if EXEMPLARS in stretch.kinds:
                row |= self._exemplars(before, channel, known)
            self._rows["channels"].append(row)
        if stretch.next_layer is not None:
            self._uses()

    def _keep(self, channel: int, from_layer: str, kind: str, kernel: np.ndarray) -> None:
        names = {"layer": self._group.layer, "channel": channel, "from_layer": from_layer, "kind": kind}
        self._rows["edges"] += edges(names, kernel, self._spec.options.top)

    def _channel(self, before: Before, channel: int, kernel: np.ndarray, measured: int | None) -> dict[str, Any]:
        strength, absolute = strengths(kernel), float(np.abs(kernel).sum(dtype=np.float64))
        core = trimmed(kernel)
        return {
            "layer": self._group.layer,
            "channel": channel,
            "from_layer": before.layer,
            "through": list(before.through),
            "inputs": len(kernel),
            "nearly_zero": int(strength.nearly_zero.sum()),
            "l2": float(np.sqrt((strength.l2**2).sum())),
            "sum": float(kernel.sum(dtype=np.float64)),
            "positive_share": float(kernel[kernel > 0].sum(dtype=np.float64)) / absolute if absolute else None,
            "images_measured": measured,
            "height": core.shape[1],
            "width": core.shape[2],
            "factors": factors(core),
        }

    def _exemplars(self, before: Before, channel: int, known: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what a channel is on its exemplars, and keep what is to be said of each."""
        spec, options, group = self._spec, self._spec.options, self._group
        assert spec.run is not None
        assert spec.statistic is not None
        _, images = strongest(RunFolder(spec.run), group.layer, spec.statistic, channel, options.exemplars)
        seen = between(self._anatomy, before, images, spec.network.preprocess)
        if seen is None:
            return {"exemplars": 0}
        field = _field(spec, self._stretch)
        made_of = on_exemplars(before.piece, field, seen, channel)
        self._keep(channel, before.layer, EXEMPLARS, made_of.kernel)
        order = np.argsort(strengths(known[EXPANDED].numpy()).rank)
        removed = [int(at) for at in order[: options.removed]]
        without = ablation(before.piece, field, seen, made_of, removed, known)
        names = {"layer": group.layer, "channel": channel, "from_layer": before.layer, "statistic": spec.statistic}
        self._rows["exemplars"] += exemplar_rows(names, seen, made_of, without.left, options.top)
        left = without.left[~np.isnan(without.left)]
        return {
            "exemplars": len(seen.images),
            "removed": removed,
            "activation_left": float(np.median(left)) if len(left) else None,
            "predicts": dict(without.predicted_by),
            "residual": made_of.residual,
        }

    def _uses(self) -> None:
        """Keep which channels of the next layer are made of these ones, the strongest first."""
        known = _next(self._spec, self._stretch)
        if known is None:
            return
        made, l2, rank, share = known
        for channel in self._group.channels:
            order = np.argsort(-l2[:, channel], kind="stable")[: self._spec.options.top or None]
            for at in order:
                strength = Strengths(l2[at], rank[at], share[at])
                if strength.nearly_zero[channel]:
                    continue
                names = {"layer": self._group.layer, "channel": channel}
                names |= {"next_layer": self._stretch.next_layer, "next_channel": int(at)}
                kernel = trimmed(made[at])[channel]
                self._rows["uses"].append({**names, **edge(kernel, strength, channel)})


@lru_cache(maxsize=2)
def _expanded(spec: CircuitsSpec, stretch: Stretch) -> Tensor | None:
    """Return the expanded kernels of all channels of a layer; None where they are too many to be kept."""
    before = anatomy_of(spec.network).before(stretch.layer, spec.options.from_layer)
    return _all_kernels(before)


def _all_kernels(before: Before) -> Tensor | None:
    one = kernels(before.piece, Open(), torch.tensor([0]))
    channels = sum(before.piece.channels_after)
    return kernels(before.piece, Open()) if one.numel() * channels <= _MOST_NUMBERS else None


@lru_cache(maxsize=2)
def _field(spec: CircuitsSpec, stretch: Stretch) -> tuple[Axis, Axis] | None:
    return field_of(anatomy_of(spec.network).before(stretch.layer, spec.options.from_layer).piece)


@lru_cache(maxsize=2)
def _gates(spec: CircuitsSpec, stretch: Stretch) -> tuple[int, Gates] | None:
    """Return how often units between two layers fire, and on how many images that was measured."""
    assert spec.run is not None
    assert spec.statistic is not None
    anatomy = anatomy_of(spec.network)
    before = anatomy.before(stretch.layer, spec.options.from_layer)
    images = of_others(RunFolder(spec.run), stretch.layer, spec.statistic, *_MEASURED)
    seen = between(anatomy, before, images, spec.network.preprocess)
    return None if seen is None else (len(seen.images), measured_gates(before.piece, seen.inputs))


@lru_cache(maxsize=2)
def _next(spec: CircuitsSpec, stretch: Stretch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the next layer's expanded kernels, and how strong each of their inputs is."""
    found = anatomy_of(spec.network).after(stretch.layer)
    made = None if found is None else _all_kernels(found[1])
    if made is None:
        return None
    of_each = [strengths(kernel) for kernel in made.numpy()]
    l2, rank, share = (np.stack(values) for values in zip(*of_each, strict=True))
    return made.numpy(), l2, rank, share
