"""What screening gives, and costs, where a third of a layer's channels never fires, and a third next to never."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarking.data import copies_of, first_images
from benchmarking.limits import MODEL, WEIGHTS, crop_of, preprocess_of_model
from benchmarking.measuring import Rate, print_table, ratios, spread, write_figures
from benchmarking.own_job import INCEPTIONV1, KINDS, first_runs, job
from exemplar_ray.network.models import load_network
from exemplar_ray.network.trunk import to_input

ORDINARY, DEAD = "as it is", "of dead channels"
# The convolutions that mixed4a is put together of.
_BRANCHES = ("1x1", "3x3", "5x5", "pool_reduce")
# What channels come to is seen on so many images.
_IMAGES = 64
_NETWORK = """
import torch
from lucent.modelzoo import inceptionv1


def dead():
    network = inceptionv1(pretrained=False)
    network.load_state_dict(torch.load({weights!r}))
    return network
"""


def dead_channels(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Run both networks, exact and screened, over `--copies` and 4 times as many, `--repeats` times; write
    dead_channels.json."""
    networks = {ORDINARY: INCEPTIONV1, DEAD: _dead_network(shards, work)}
    sizes = (options.copies, 4 * options.copies)
    copies = copies_of(shards, work / "copies", sizes[-1])
    for network in networks.values():
        first_runs(shards, KINDS, network)
    rates: dict[str, list[Rate]] = {}
    doubtful: dict[str, int] = {}
    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        for size in sizes:
            for which, network in networks.items():
                for kind, flags in KINDS.items():
                    parts, summary = job(copies[:size], flags, network)
                    name = f"{which}, {summary['scored']:,} images"
                    rates.setdefault(f"{name}, {kind}", []).append(parts["start to end"])
                    doubtful[name] = summary["settled_anew"] or 0
                    print(f"  {name}, {kind}: {parts['start to end'].per_second:.1f} images/s", flush=True)
    print()
    per_second = {name: [rate.per_second for rate in found] for name, found in rates.items()}
    rows = []
    for name, channels in doubtful.items():
        exact, screened = (per_second[f"{name}, {kind}"] for kind in KINDS)
        rows.append((name, spread(exact), spread(screened), spread(ratios(screened, exact), 2), str(channels)))
    print_table(("the network", "exact, images/s", "screened", "screened / exact", "scanned again for"), rows)
    write_figures(options.out, "dead_channels", {"images_per_second": per_second, "scanned_again_for": doubtful})


def _dead_network(shards: Sequence[str], work: Path) -> list[str]:
    """Write such a network's file and weights; return the flags that name it."""
    module, preprocess = load_network(MODEL, WEIGHTS).module, preprocess_of_model()
    crops = np.stack([crop_of(data, "reference") for data in first_images(shards, _IMAGES)])
    convolutions = [module.get_submodule(f"mixed4a_{branch}_pre_relu_conv") for branch in _BRANCHES]
    strongest: dict[Any, torch.Tensor] = {}

    def seen(convolution: Any, _given: object, output: torch.Tensor) -> None:
        strongest[convolution] = output.amax((2, 3))

    for convolution in convolutions:
        convolution.register_forward_hook(seen)
    with torch.no_grad():
        module(to_input(torch.from_numpy(crops), preprocess))
        for convolution in convolutions:
            bias, of_images = convolution.get_parameter("bias"), strongest[convolution]
            bias[0::3] -= (10 * of_images.abs().amax(0) + 1)[0::3]
            # What the strongest of these images just about excites.
            bias[1::3] -= (of_images.amax(0) - 0.02 * of_images.abs().mean(0))[1::3]
    torch.save(module.state_dict(), work / "dead.pt")
    (work / "dead.py").write_text(_NETWORK.format(weights=str(work / "dead.pt")))
    return ["--model", f"{work / 'dead.py'}:dead", "--layer", "mixed4a", "--preprocess", preprocess.as_flag()]
