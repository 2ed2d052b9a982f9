"""What compiling a network gives: its trunk as machine code against the same run by torch, on one core: how long it
takes, and in a narrow type by how much it is off."""

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarking.data import first_images
from benchmarking.measuring import print_table, ratios, spread, write_figures
from exemplar_ray.data.decode import decode_and_crop
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.executor.malloc import keep_freed_memory
from exemplar_ray.network.compiled_trunk import CompiledForm, CompiledTrunk, compiled_trunk
from exemplar_ray.network.layers import PRECISIONS
from exemplar_ray.network.loading import trunk_of
from exemplar_ray.network.resolve import NetworkRequest, resolve_network
from exemplar_ray.network.spec import TrunkSpec
from exemplar_ray.network.trunk import Trunk

NETWORKS = {
    "inceptionv1": "mixed4a",
    "torchvision:resnet50": "layer3",
    "torchvision:vgg16": "features.29",
    "torchvision:convnext_tiny": "features.5",
    "torchvision:vit_b_16": "encoder.layers.encoder_layer_6.mlp.0",
    "torchvision:swin_t": "features.5",
}
# Photographs that tell by how much a narrow type is off.
_IMAGES = 48
# What a worker of one core scans at a time.
_BATCH, _THREADS = 4, 1
_PASSES = 5


def compiled(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Time both, `--repeats` times in turns, on noise; write compiled.json."""
    keep_freed_memory()
    figures: dict[str, dict[str, list[float]]] = {}
    photographs = first_images(shards, _IMAGES)
    rows = []
    for model, layer in NETWORKS.items():
        network = resolve_network(NetworkRequest(model, "random:0", (layer,), "all")).spec
        for precision in PRECISIONS[:2]:
            spec = TrunkSpec(network, ("mean",), precision)
            form = CompiledForm(spec, _BATCH, _THREADS)
            crops = form.example(torch.Generator().manual_seed(0), 0)[0]
            torch.set_num_threads(_THREADS)
            began = time.perf_counter()
            machine_code = compiled_trunk(form, partial(trunk_of, device="cpu"))[0]
            seconds = time.perf_counter() - began
            trunks: dict[str, Trunk | CompiledTrunk] = {"torch": trunk_of(spec, "cpu"), "compiled": machine_code}
            times: dict[str, list[float]] = {name: [] for name in trunks}
            for _ in range(options.repeats):
                for name, trunk in trunks.items():
                    times[name].append(_milliseconds(trunk, crops))
            exact = trunk_of(replace(spec, precision=PRECISIONS[0]), "cpu")
            off = {name: _off(trunk, exact, network.preprocess, photographs) for name, trunk in trunks.items()}
            figures[f"{model}, {precision}"] = {**times, "off": list(off.values())}
            over = spread(ratios(times["torch"], times["compiled"]), 2)
            said = [*map(spread, times.values()), over, f"{seconds:.0f}", *(f"{share:.1e}" for share in off.values())]
            rows.append((f"{model} to {layer}", precision, *said))
            print(*rows[-1], flush=True)
    print()
    heads = "network", "", "torch, ms an image", "compiled", "times as fast", "s to compile", "torch is off", "compiled"
    print_table(heads, rows)
    write_figures(options.out, "compiled", figures)


def _milliseconds(trunk: Trunk | CompiledTrunk, crops: torch.Tensor) -> float:
    """Return how long an image takes."""
    trunk(crops)
    began = time.perf_counter()
    for _ in range(_PASSES):
        trunk(crops)
    return (time.perf_counter() - began) / _PASSES / len(crops) * 1e3


def _off(trunk: Trunk | CompiledTrunk, exact: Trunk, preprocess: Preprocess, photographs: Sequence[bytes]) -> float:
    """Return by how much a channel's mean is off, as a share of the largest one: of photographs the root mean square,
    of channels the median."""
    means = []
    for first in range(0, len(photographs), _BATCH):
        pixels = [decode_and_crop(data, preprocess) for data in photographs[first : first + _BATCH]]
        crops = torch.from_numpy(np.stack(pixels))
        means.append([next(iter(one(crops).activations.values())).double() for one in (trunk, exact)])
    found, expected = (torch.cat(of) for of in zip(*means, strict=True))
    largest = expected.abs().amax(dim=0)
    shares = (found - expected).square().mean(dim=0).sqrt()[largest > 0] / largest[largest > 0]
    return float(shares.median())
