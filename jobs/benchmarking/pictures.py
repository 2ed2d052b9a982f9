"""Pictures of what channels look for: this project's job beside torch-lucent's `render_vis` at its defaults.

Both make them for the mean of a channel, of the same network with the same input. Lucent gets its own pictures of 128
pixels, Adam, 512 steps and transformations, after which it enlarges what the network sees to 224; a process, and so a
network, of its own for each, as it never takes its hooks off again; and every core for it. Its time is that of
`render_vis` alone. All are judged alike: from 8-bit pixels by `visualize.judge`, before the ReLU, each at the size that
the network saw while it was made. Lucent optimises what comes after the ReLU, where a picture that a channel gives 0
for has no gradient: some stay grey.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarking.measuring import (
    Rate,
    allowed_cores,
    in_own_process,
    print_table,
    ratios,
    reference_machine,
    spread,
)
from exemplar_ray.network.gradients import DifferentiableLayer, prepared
from exemplar_ray.network.loading import network_of, trunk_of
from exemplar_ray.network.resolve import resolve_network
from exemplar_ray.network.spec import NetworkRequest, NetworkSpec, TrunkSpec
from exemplar_ray.visualize.judge import judge
from exemplar_ray.visualize.optimise import Picture, Wanted

MODEL, LAYER = "../shared/models/bvlc_googlenet.py:load", "mixed4a"
PREPROCESS = {"mean": [123, 117, 104]}
# Eight: two cores make four at once each.
CHANNELS = "8,32,194,298,0,100,400,511"
LUCENT = "lucent, 128 pixels seen at 224"
_SEEN = 224


def visualize(_shards: Sequence[str], _work: Path, options: Namespace) -> None:
    """Make pictures of every size `--repeats` times, and with lucent one of each channel; write visualize.json."""
    network = resolve_network(request(options)).spec
    channels = network.layers[0].channels
    if len(channels) < options.repeats:
        raise SystemExit(f"{options.repeats} repetitions need as many channels: lucent makes some of them in each")
    machine = {**reference_machine(allowed_cores()), "note": network.title}
    print_table(("reference machine", ""), list(machine.items()))
    making: dict[str, list[Rate]] = {}
    whole: dict[str, list[float]] = {}
    reached: dict[str, dict[int, float]] = {LUCENT: {}}
    made: dict[str, dict[int, np.ndarray]] = {LUCENT: {}}
    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        share = channels[number :: options.repeats]
        rate, pixels = _by_lucent(network, share, options.lucent_steps)
        _add(making, LUCENT, rate)
        made[LUCENT] |= pixels
        reached[LUCENT] |= activations(network, pixels)
        for size in options.sizes:
            name = f"the job, {size} pixels"
            rate, seconds, pixels = own_job(options, size)
            _add(making, name, rate)
            whole.setdefault(name, []).append(3600 * rate.images / seconds)
            made[name], found = pixels, activations(network, pixels)
            if reached.setdefault(name, found) != found:
                raise RuntimeError(f"{name}: other pictures than in the repetition before")
    print()
    compared = _compared(making, whole, reached)
    heads = ("", "pictures/h", "/ lucent", "from start to end", "reached", "more than lucent's")
    of_lucent = compared[LUCENT]["reached"]
    print_table(heads, [_row(name, figures, of_lucent) for name, figures in compared.items()])
    print(f"{options.layer}, channels {options.channels}; {options.steps} steps, lucent {options.lucent_steps}.")
    print("Starting Ray and questioning the network is small change where there are hundreds of channels.")
    if options.out:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        contents = {"machine": machine, "options": vars(options), "channels": list(channels), "compared": compared}
        (out / "visualize.json").write_text(json.dumps(contents, indent=2) + "\n")
        for name, pixels in made.items():
            for channel, one in pixels.items():
                Image.fromarray(one).save(out / f"{'lucent' if name == LUCENT else 'job'}-{len(one)}-{channel}.png")


def _compared(
    making: dict[str, list[Rate]], whole: dict[str, list[float]], reached: dict[str, dict[int, float]]
) -> dict[str, dict[str, list[float]]]:
    """Return the figures of each way, one a repetition or one a channel."""
    per_hour = {name: [3600 * rate.per_second for rate in rates] for name, rates in making.items()}
    of_lucent = reached[LUCENT]
    return {
        name: {
            "pictures/h": per_hour[name],
            "/ lucent": ratios(per_hour[name], per_hour[LUCENT]),
            "from start to end": whole.get(name, []),
            "reached": [reached[name][channel] for channel in of_lucent],
        }
        for name in making
    }


def _row(name: str, figures: dict[str, list[float]], of_lucent: list[float]) -> tuple[str, ...]:
    return (
        name,
        spread(figures["pictures/h"]),
        spread(figures["/ lucent"]),
        spread(figures["from start to end"]) if figures["from start to end"] else "",
        spread(figures["reached"]),
        f"{sum(own > other for own, other in zip(figures['reached'], of_lucent, strict=True))} of {len(of_lucent)}",
    )


def _add(rates: dict[str, list[Rate]], name: str, rate: Rate) -> None:
    rates.setdefault(name, []).append(rate)
    print(f"  {name}: {3600 * rate.per_second:.0f} pictures/h", flush=True)


def request(options: Namespace, weights: str = "pretrained") -> NetworkRequest:
    """Return which network is asked for."""
    return NetworkRequest(options.model, weights, (options.layer,), options.channels, json.loads(options.preprocess))


def _by_lucent(network: NetworkSpec, channels: Sequence[int], steps: int) -> tuple[Rate, dict[int, np.ndarray]]:
    """Make a picture of each channel: how fast, and {channel: as the network saw it}."""
    seconds, made = 0.0, {}
    for channel in channels:
        made[channel], taken = in_own_process(lucents_picture, network, channel, steps)
        seconds += taken
        print(f"  lucent, channel {channel}: {taken:.1f} s", flush=True)
    return Rate(len(channels), seconds), made


def lucents_picture(network: NetworkSpec, channel: int, steps: int) -> tuple[np.ndarray, float]:
    """Have lucent make a picture; return it as the network saw it, uint8 [224, 224, 3], and how many seconds it took.

    Its only other option is the network's input: lucent knows that of two kinds of networks, and takes every other one
    for torchvision's.
    """
    from lucent.optvis import render, transform

    torch.set_num_threads(len(allowed_cores()))
    torch.manual_seed(channel)
    np.random.seed(channel)
    module, name = network_of(network).module.eval(), network.layers[0].name.replace(".", "_")
    transforms = [*transform.standard_transforms, lambda pictures: prepared(pictures, network.preprocess)]
    started = time.perf_counter()
    [made] = render.render_vis(
        module,
        f"{name}:{channel}",
        transforms=transforms,
        preprocess=False,
        thresholds=(steps,),
        progress=False,
        show_image=False,
    )
    seconds = time.perf_counter() - started
    # To 8 bits as it is stored, then enlarged as lucent does.
    stored = torch.tensor(made * 255).round().permute(0, 3, 1, 2)
    seen = torch.nn.functional.interpolate(stored, size=_SEEN, mode="bilinear", align_corners=True)
    return seen[0].round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy(), seconds


def own_job(options: Namespace, size: int) -> tuple[Rate, float, dict[int, np.ndarray]]:
    """Run the job as a user runs it.

    Returns:
        Its rate from the first task to the last, loading the network in every worker included; the seconds from
        starting Python to the written result; {channel: its picture}.
    """
    asked = request(options)
    with tempfile.TemporaryDirectory(prefix="exemplar_ray-benchmark-") as folder:
        command = [sys.executable, "-m", "exemplar_ray", "visualize", "--model", asked.model, "--layer", options.layer]
        command += ["--channels", asked.channels, "--preprocess", json.dumps(asked.preprocess)]
        command += ["--size", str(size), "--steps", str(options.steps), "--out", folder]
        os.sync()
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        made = json.loads((Path(folder) / "summary.json").read_text())["this_invocation"]
        rows = pq.read_table(Path(folder) / "visualizations.parquet", columns=["channel", "image"]).to_pylist()
    pixels = {row["channel"]: np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows}
    return Rate(made["images_scanned"], made["scan_seconds"]), seconds, pixels


def activations(network: NetworkSpec, pixels: Mapping[int, np.ndarray]) -> dict[int, float]:
    """Return what channels' pictures, uint8 [size, size, 3], reach: the mean before the ReLU, as the job says it."""
    torch.set_num_threads(1)
    layer, trunk = _judges(network)
    wanted = [Wanted(channel, str(channel)) for channel in pixels]
    made = [Picture(one, starts=1, grey=False) for one in pixels.values()]
    judged = judge(trunk, layer, (network.layers[0].name, "mean"), wanted, made)
    return {one.channel: worth.activation_pre_relu for one, worth in zip(wanted, judged, strict=True)}


@lru_cache
def _judges(network: NetworkSpec) -> tuple[DifferentiableLayer, Any]:
    module, at = network_of(network).module, torch.device("cpu")
    layer = DifferentiableLayer(module, network.layers[0], network.preprocess, at, network.channels_last)
    return layer, trunk_of(TrunkSpec(network, ("mean",)), "cpu")
