"""What one GPU does: a picture of every channel of a layer, by the worker's own code. Needs no Ray.

No figure of it has been measured yet: there was no GPU.
"""

import resource
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarking.limits import WEIGHTS
from benchmarking.measuring import allowed_cores, in_own_process, print_table, reference_machine, spread, write_figures
from benchmarking.pictures import request
from exemplar_ray.errors import UsageError
from exemplar_ray.network.resolve import resolve_network
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.visualize.asked import MakeSettings
from exemplar_ray.visualize.spec import PictureOptions, PicturesSpec
from exemplar_ray.visualize.tasks import make


def visualize_gpu(_shards: Sequence[str], _work: Path, options: Namespace) -> None:
    """Make the pictures `--repeats` times, each in a process of its own; write visualize_gpu.json."""
    network = trained_or_not(options)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "no GPU: the CPU in its place"
    machine = {**reference_machine(allowed_cores()), "GPU": name, "note": network.title}
    print_table(("reference machine", ""), list(machine.items()))
    [size] = options.sizes
    spec = PicturesSpec(network, "mean", PictureOptions(size=size, steps=options.steps), size)
    measured: list[dict[str, float]] = []
    for number in range(options.repeats):
        measured.append(in_own_process(every_picture, spec, options.device == "cuda"))
        print(f"repetition {number + 1} of {options.repeats}: {measured[-1]['seconds']:.1f} s", flush=True)
    print()
    pictures = len(network.layers[0].channels)
    print_table(
        (f"{pictures} pictures of {size} pixels, {options.steps} steps", ""),
        [(what, spread([one[what] for one in measured])) for what in measured[0]],
    )
    contents = {"machine": machine, "options": vars(options), "pictures": pictures, "measured": measured}
    write_figures(options.out, "visualize_gpu", contents)


def trained_or_not(options: Namespace) -> NetworkSpec:
    """Build the network, untrained where its weights cannot be had, and question it."""
    try:
        return resolve_network(request(options)).spec
    except UsageError as error:
        print(f"{error}\n-> UNTRAINED: {WEIGHTS} instead; the speed is the same", flush=True)
        return resolve_network(request(options, WEIGHTS)).spec


def every_picture(spec: PicturesSpec, on_gpu: bool) -> dict[str, float]:
    """Make all pictures as one task after another does. Loading the network counts, judging on the CPU counts, too."""
    settings: Any = MakeSettings(spec, on_gpu)
    started = time.perf_counter()
    for position, group in enumerate(spec.groups(on_gpu)):
        make(settings, (position, group))
    seconds = time.perf_counter() - started
    steps = len(spec.network.layers[0].channels) * spec.options.steps
    found = {"seconds": seconds, "steps of a picture/s": steps / seconds}
    if on_gpu:
        found["GiB of the GPU's memory at most"] = torch.cuda.max_memory_allocated() / 2**30
    else:
        found["GiB of memory at most"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found
