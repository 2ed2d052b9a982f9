"""What a worker does for the visualisations: find out what a network without a run is, and make a group of pictures.

Named by the driver as `module:function`; see `executor.cluster`. The network is kept between tasks.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from exemplar_ray.executor.job import Made
from exemplar_ray.executor.machine import cpus
from exemplar_ray.network.gradients import DifferentiableLayer
from exemplar_ray.network.loading import counts, device, network_of
from exemplar_ray.network.questions import KnownNetwork
from exemplar_ray.network.resolve import resolve_network
from exemplar_ray.network.spec import NetworkRequest, NetworkSpec
from exemplar_ray.network.trunk import ContiguousTrunk, Trunk
from exemplar_ray.visualize.asked import MakeSettings
from exemplar_ray.visualize.describe import describe
from exemplar_ray.visualize.judge import Judged, judge
from exemplar_ray.visualize.optimise import Picture, Recipe, Wanted, optimise
from exemplar_ray.visualize.pictures_table import PART_SCHEMA
from exemplar_ray.visualize.spec import DIVERSE, Group, PicturesSpec

__all__ = ["make", "resolve"]

# What a CPU computes: with one thread a picture is the same, to the last bit, whatever is made beside it.
_THREADS = 1


def resolve(asked: NetworkRequest) -> KnownNetwork:
    """Build the network of a command without a run, and question it.

    Raises:
        UsageError: see `network.resolve.resolve_network`.
    """
    torch.set_num_threads(cpus())
    return resolve_network(asked)


def make(settings: MakeSettings, given: tuple[int, Group]) -> Made:
    """Make a group of pictures, and judge them."""
    spec, (_, group) = settings.spec, given
    torch.set_num_threads(_THREADS)
    at = device(settings.use_gpu)
    layer, trunk = _layer(spec.network, group.layer, at), _trunk(spec.network, group.layer, spec.statistic)
    recipe = Recipe(
        statistic=spec.statistic,
        sign=-1 if group.objective.endswith("-") else 1,
        diverse=group.objective == DIVERSE,
        parameterization=spec.options.parameterization,
        size=spec.size,
        steps=spec.options.steps,
        colourless=spec.network.preprocess.channels == 1,
    )
    wanted = _wanted(spec, group)
    pictures = optimise(layer, wanted, recipe, torch.device(at))
    readout, colours = (group.layer, spec.statistic), spec.network.preprocess.channels
    judged = judge(trunk, _layer(spec.network, group.layer, "cpu"), readout, wanted, pictures, colours)
    facts = {
        "scored": len(pictures),
        "grey": [one.channel for one, picture in zip(wanted, pictures, strict=True) if picture.grey],
        "starts": [picture.starts for picture in pictures],
        "device": at,
        "worker": {"process": os.getpid(), **counts},
    }
    return Made({"parquet": _part(group, wanted, pictures, judged)}, facts)


def _wanted(spec: PicturesSpec, group: Group) -> list[Wanted]:
    """Return the pictures of a group, each with the key that its random numbers go by."""
    return [
        Wanted(channel, "\n".join(map(str, (group.layer, channel, group.objective, number, spec.options.picture_seed))))
        for channel in group.channels
        for number in range(spec.pictures_a_channel(group))
    ]


def objective_of(group: Group, number: int) -> str:
    """Return what a picture of a group is called in the result: `channel`, `channel-`, `diverse-1`, ..."""
    return f"{DIVERSE}-{number + 1}" if group.objective == DIVERSE else group.objective


@lru_cache(maxsize=1)
def _module(spec: NetworkSpec) -> nn.Module:
    """Return the network, on the CPU. What is differentiated is a copy of it, what ranks images is itself."""
    counts["trunks_loaded"] += 1
    return network_of(spec).module


@lru_cache(maxsize=2)
def _layer(spec: NetworkSpec, name: str, at: str) -> DifferentiableLayer:
    layer = next(layer for layer in spec.layers if layer.name == name)
    return DifferentiableLayer(_module(spec), layer, spec.preprocess, torch.device(at))


@lru_cache(maxsize=2)
def _trunk(spec: NetworkSpec, name: str, statistic: str) -> Trunk:
    """Return the path that ranks images, of one layer; on the CPU, which decides."""
    layers = [layer for layer in spec.layers if layer.name == name]
    kind = Trunk if spec.channels_last else ContiguousTrunk
    return kind(_module(spec), layers, (statistic,), spec.preprocess, torch.device("cpu"))


def _part(group: Group, wanted: Sequence[Wanted], pictures: Sequence[Picture], judged: Sequence[Judged]) -> bytes:
    rows = []
    for number, (one, picture, worth) in enumerate(zip(wanted, pictures, judged, strict=True)):
        looks = describe(picture.pixels)
        rows.append(
            {
                "layer": group.layer,
                "channel": one.channel,
                "objective": objective_of(group, number),
                "image": {"bytes": png(picture.pixels), "path": None},
                "activations": worth.activations,
                "activation_pre_relu": worth.activation_pre_relu,
                "robust_activation": worth.robust_activation,
                "starts": picture.starts,
                "grey": picture.grey,
                **looks._asdict(),
                "patterns": looks.patterns,
            }
        )
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=PART_SCHEMA), file, compression="none")
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    """Encode a picture, uint8 [height, width, 3], without loss."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
