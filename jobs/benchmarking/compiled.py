"""What compiling a network gives: its trunk as machine code against the same run by torch, on one core."""

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarking.measuring import print_table, ratios, spread, write_figures
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
    "torchvision:convnext_tiny": "features.5",
    "torchvision:vit_b_16": "encoder.layers.encoder_layer_6.mlp.0",
    "torchvision:swin_t": "features.5",
}
# What a worker of one core scans at a time.
_BATCH, _THREADS = 4, 1
_PASSES = 5


def compiled(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Time both, `--repeats` times in turns, on noise; write compiled.json."""
    keep_freed_memory()
    figures: dict[str, dict[str, list[float]]] = {}
    rows = []
    for model, layer in NETWORKS.items():
        network = resolve_network(NetworkRequest(model, "random:0", (layer,), "all")).spec
        for precision in PRECISIONS[:2]:
            spec = TrunkSpec(network, ("mean",), precision)
            form = CompiledForm(spec, _BATCH, _THREADS)
            crops = form.example(torch.Generator().manual_seed(0), 0)[0]
            torch.set_num_threads(_THREADS)
            began = time.perf_counter()
            machine_code = compiled_trunk(form, lambda spec=spec: trunk_of(spec, "cpu"))[0]
            seconds = time.perf_counter() - began
            trunks = {"torch": trunk_of(spec, "cpu"), "compiled": machine_code}
            times = {name: [] for name in trunks}
            for _ in range(options.repeats):
                for name, trunk in trunks.items():
                    times[name].append(_milliseconds(trunk, crops))
            figures[f"{model}, {precision}"] = times
            over = spread(ratios(times["torch"], times["compiled"]), 2)
            rows.append(
                (f"{model} to {layer}", precision, *(spread(of) for of in times.values()), over, f"{seconds:.0f}")
            )
            print(*rows[-1], flush=True)
    print()
    print_table(("network", "", "torch, ms an image", "compiled", "times as fast", "s to compile"), rows)
    write_figures(options.out, "compiled", figures)


def _milliseconds(trunk: Trunk | CompiledTrunk, crops: torch.Tensor) -> float:
    """Return how long an image takes."""
    trunk(crops)
    began = time.perf_counter()
    for _ in range(_PASSES):
        trunk(crops)
    return (time.perf_counter() - began) / _PASSES / len(crops) * 1e3
