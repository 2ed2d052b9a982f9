"""What a worker does for the visualisations: find out what a network without a run is, and make a group of pictures.

Named by the driver as `module:function`; see `executor.cluster`. The network is kept between tasks.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

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
from exemplar_ray.visualize.beside import beside_natural
from exemplar_ray.visualize.describe import describe
from exemplar_ray.visualize.facets import Facet
from exemplar_ray.visualize.judge import Judged, agreements, judge
from exemplar_ray.visualize.natural import NaturalImages
from exemplar_ray.visualize.optimise import Picture, Recipe, Wanted, optimise
from exemplar_ray.visualize.pictures_table import PART_SCHEMA
from exemplar_ray.visualize.spec import AT_ONCE, AT_ONCE_ON_GPU, DIVERSE, FACET, Group, PicturesSpec

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
    """Make a group of pictures, and judge them.

    Raises:
        ShardError: they are to be of facets, and a channel's exemplars have none.
    """
    spec, (_, group) = settings.spec, given
    torch.set_num_threads(_THREADS)
    at = device(settings.use_gpu)
    natural = None
    if settings.run is not None:
        natural = _natural(spec.network, group.layer, spec.statistic, settings.run, spec.size)
    asked = _asked(spec, group, natural)
    wanted = [one.wanted for one in asked]
    layer, trunk = _layer(spec.network, group.layer, at), _trunk(spec.network, group.layer, spec.statistic)
    recipe = Recipe(
        statistic=spec.statistic,
        sign=-1 if group.objective.endswith("-") else 1,
        diverse=group.objective == DIVERSE,
        parameterization=spec.options.parameterization,
        size=spec.size,
        steps=spec.options.steps,
        spectrum=settings.spectrum,
        colourless=spec.network.preprocess.channels == 1,
        batch=AT_ONCE_ON_GPU if settings.use_gpu else AT_ONCE,
        bfloat16=settings.use_gpu and torch.cuda.is_bf16_supported(including_emulation=False),
    )
    pictures = optimise(layer, wanted, recipe, torch.device(at))
    readout, colours = (group.layer, spec.statistic), spec.network.preprocess.channels
    judged = judge(trunk, _layer(spec.network, group.layer, "cpu"), readout, wanted, pictures, colours, layer)
    facts = {
        "scored": len(pictures),
        "grey": [one.channel for one, picture in zip(wanted, pictures, strict=True) if picture.grey],
        "starts": [picture.starts for picture in pictures],
        "device": at,
        "worker": {"process": os.getpid(), **counts},
    }
    return Made({"parquet": _part(spec, group, asked, pictures, judged, natural)}, facts)


class Asked(NamedTuple):
    """One picture of a group."""

    wanted: Wanted
    objective: str
    """What it is called in the result: `channel`, `channel-`, `diverse-1`, ..."""
    seed: int


def _asked(spec: PicturesSpec, group: Group, natural: NaturalImages | None) -> list[Asked]:
    """Return the pictures of a group, each with the key that its random numbers go by."""
    options, objective = spec.options, group.objective
    seeds = options.seeds if objective == spec.objective else 1
    asked = []
    for channel in group.channels:
        facets: list[Facet | None] = [None] * (options.diverse if objective == DIVERSE else 1)
        if objective == FACET and natural is not None:
            facets = [*natural.facets(channel, options.facets)]
        for number, facet in enumerate(facets):
            called = f"{objective}-{number + 1}" if objective in (DIVERSE, FACET) else objective
            for seed in range(options.picture_seed, options.picture_seed + seeds):
                key = "\n".join(map(str, (group.layer, channel, objective, number, seed)))
                asked.append(Asked(Wanted(channel, key, facet), called, seed))
    return asked


@lru_cache(maxsize=1)
def _module(spec: NetworkSpec) -> nn.Module:
    """Return the network, on the CPU. What is differentiated is a copy of it, what ranks images is itself."""
    counts["trunks_loaded"] += 1
    return network_of(spec).module


@lru_cache(maxsize=2)
def _layer(spec: NetworkSpec, name: str, at: str) -> DifferentiableLayer:
    layer = next(layer for layer in spec.layers if layer.name == name)
    return DifferentiableLayer(_module(spec), layer, spec.preprocess, torch.device(at), spec.channels_last)


@lru_cache(maxsize=2)
def _trunk(spec: NetworkSpec, name: str, statistic: str) -> Trunk:
    """Return the path that ranks images, of all channels of one layer; on the CPU, which decides."""
    layers = [replace(one, channels=tuple(range(one.channel_count))) for one in spec.layers if one.name == name]
    kind = Trunk if spec.channels_last else ContiguousTrunk
    return kind(_module(spec), layers, (statistic,), spec.preprocess, torch.device("cpu"))


@lru_cache(maxsize=2)
def _natural(spec: NetworkSpec, name: str, statistic: str, run: str, size: int) -> NaturalImages:
    return NaturalImages(spec, name, statistic, run, size)


def _part(
    spec: PicturesSpec,
    group: Group,
    asked: Sequence[Asked],
    pictures: Sequence[Picture],
    judged: Sequence[Judged],
    natural: NaturalImages | None,
) -> bytes:
    wanted_channels, colours = list(spec.layer(group.layer).channels), spec.network.preprocess.channels
    agreement = agreements([one.wanted.channel for one in asked], judged) if group.objective == spec.objective else {}
    rows = []
    for one, picture, worth in zip(asked, pictures, judged, strict=True):
        looks, channel = describe(picture.pixels), one.wanted.channel
        beside = {}
        if natural is not None:
            seen = picture.pixels[..., :colours]
            beside = beside_natural(natural, channel, None if group.objective.endswith("-") else seen, looks)
        rows.append(
            {
                "layer": group.layer,
                "channel": channel,
                "objective": one.objective,
                "seed": one.seed,
                "image": {"bytes": png(picture.pixels), "path": None},
                "activations": worth.activations[wanted_channels],
                "activation_pre_relu": worth.activation_pre_relu,
                "robust_activation": worth.robust_activation,
                "seed_agreement": agreement.get(channel),
                "facet_ranks": [at + 1 for at in one.wanted.facet.images] if one.wanted.facet else None,
                "starts": picture.starts,
                "grey": picture.grey,
                **looks._asdict(),
                "patterns": looks.patterns,
                **beside,
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
