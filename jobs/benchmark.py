"""Side by side in one run, on the same images and cores: the notebook's loop, the rivals, this job, the limits.

    python jobs/benchmark.py --data ../shared/data/imagenet-sample --out benchmark
    python jobs/benchmark.py scaling --data ../shared/data/imagenet-sample --out benchmark
    python jobs/benchmark.py cluster-model --data ../shared/data/imagenet-sample --out benchmark

The first compares: notebook (one image at a time), dataloader (the same network, batches from a torch
DataLoader), ray_data (the same network in a Ray Data pipeline), zennit_crp (where it is installed), and
this job: exact, screened (bfloat16, fast decoding), every answer. All compute every channel of
InceptionV1's mixed4a, the mean, the top 10; every answer, all that can be asked for in one pass. "start to
end" is everything from starting Python to the written result; "scan" and "pipeline" leave out what starts
Ray. The limits are what the cores reach with nothing but decoding, and with nothing but the network up to
mixed4a. It writes benchmark.json and stages.png.

`scaling` compares the job with itself: more images, fewer channels, more layers, without Ray. It
writes scaling.json. `cluster-model` holds what `exemplar-ray plan` foresees against what one worker and two do.
`questions` holds the start of a run against its next start, where the network need not be questioned again.
`start` runs 30 and 800 images from the command to the exit, beside a Ray that runs nothing; it writes start.json.
`whole` holds runs of more and more images, from the command to the exit, against the notebook's loop and Ray Data's
pipeline; it writes whole.json. `every-job` tells what exemplars, activations, pictures and circuits take beside their
tasks; it writes every_job.json.
`growth` scans 4 and 16 times as many images, and watches its processes' memory; it writes growth.json.
`dead-channels` tells what screening gives where channels hardly ever fire; it writes dead_channels.json. `compiled`
holds networks as machine code against the same run by torch; it writes compiled.json.
`large-shards` tells how long workers are idle at the end of a scan of few large shards; it writes large_shards.json.
`gpu` measures one GPU: scans in processes that share it, their limits, and whether the answer is the CPU's; give it
`--cores` and enough `--copies`. It needs no Ray, and writes gpu.json.

`activations` holds a shard whose activations are stored against the same pass without, and reading them against
`numpy.load`; it writes activation_store.json.

`visualize` makes pictures of channels of a trained network, beside torch-lucent's `render_vis`. `visualize-gpu` makes
those of a whole layer of InceptionV1 on one GPU, without Ray. They need no data. The first writes visualize.json and
the pictures, the second visualize_gpu.json.

Elsewhere the weights are random, which does not change the speed. Repetitions are interleaved; tables have medians,
and minimum and maximum in brackets.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from benchmarking import pictures
from benchmarking.measuring import allowed_cores, only_on

from exemplar_ray.data.shards import discover

# Where each mode's function is: one of them needs no Ray, and others need more.
MODES = {
    "compare": ("benchmarking.comparison", "compare"),
    "scaling": ("benchmarking.scaling", "scaling"),
    "cluster-model": ("benchmarking.cluster_model", "cluster_model"),
    "gpu": ("benchmarking.gpu", "gpu"),
    "questions": ("benchmarking.questions", "questions"),
    "start": ("benchmarking.start", "start"),
    "whole": ("benchmarking.whole", "whole"),
    "growth": ("benchmarking.growth", "growth"),
    "dead-channels": ("benchmarking.dead_channels", "dead_channels"),
    "compiled": ("benchmarking.compiled", "compiled"),
    "every-job": ("benchmarking.every_job", "every_job"),
    "large-shards": ("benchmarking.large_shards", "large_shards"),
    "activations": ("benchmarking.activation_store", "activation_store"),
    "visualize": ("benchmarking.pictures", "visualize"),
    "visualize-gpu": ("benchmarking.pictures_gpu", "visualize_gpu"),
}
# What `visualize-gpu` has for the options of `visualize`.
_OF_GPU = {"model": "inceptionv1", "layer": "mixed4a", "preprocess": "null", "channels": "all", "sizes": [224]}
_OF_GPU |= {"steps": 512, "repeats": 1}


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("mode", nargs="?", choices=MODES, default="compare", help="default: compare")
    parser.add_argument("--data", nargs="+", metavar="PATH", help="local parquet shards")
    parser.add_argument("--out", metavar="FOLDER", help="where to write the figures and the picture")
    counts = {
        "repeats": (3, "how often to measure everything"),
        "cores": (2, "how many of the allowed cores to use"),
        "copies": (4, "how often the job's data holds every image (scaling: also once, and 4 times as often)"),
        "notebook-images": (200, "images a repetition"),
        "loader-images": (800, "images a repetition"),
        "ray-data-images": (800, "images a repetition; whole shards"),
        "crp-images": (96, "images a repetition"),
        "stage-images": (96, "images a repetition to time the stages with"),
        "limit-seconds": (10, "how long to measure each limit"),
        "shard-rows": (1000, "images a shard: scaling, where Ray is compared with plain processes, and activations"),
        "large-shards": (4, "scaling: how many such shards"),
        "rows-of-large": (6400, "large-shards: images a shard"),
        "rows": (1_000_000, "activations: rows of 508 channels to read"),
    }
    for name, (default, text) in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="gpus: cpu tries the script out")
    _add_pictures(parser)
    if "visualize-gpu" in sys.argv:
        parser.set_defaults(**_OF_GPU)
    options = parser.parse_args()
    if not options.data and not options.mode.startswith("visualize"):
        parser.error("--data is missing")
    if options.mode.endswith("gpu") and options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu tries the script out without one")
    return options


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    """Add what `visualize` and `visualize-gpu` are asked."""
    group = parser.add_argument_group("visualize", "visualize-gpu: of InceptionV1, all channels, 224 pixels, 512 steps")
    group.add_argument("--model", default=pictures.MODEL, help=f"default: {pictures.MODEL}")
    group.add_argument("--layer", default=pictures.LAYER, help=f"default: {pictures.LAYER}")
    group.add_argument("--preprocess", default=json.dumps(pictures.PREPROCESS), metavar="JSON", help="of the model")
    group.add_argument("--channels", default=pictures.CHANNELS, help=f"default: {pictures.CHANNELS}")
    group.add_argument("--sizes", type=int, nargs="+", default=[128, 224], metavar="PIXELS", help="default: 128 224")
    group.add_argument("--steps", type=int, default=256, metavar="N", help="of the job's optimiser (default: 256)")
    group.add_argument("--lucent-steps", type=int, default=512, metavar="N", help="default: 512, as lucent's")


def main() -> None:
    """Restrict this process and what it starts to some cores, and measure."""
    options = parse_options()
    shards = [shard.uri for shard in discover(options.data)] if options.data else []
    with only_on(allowed_cores()[: options.cores]), tempfile.TemporaryDirectory(prefix="exemplar_ray-data-") as work:
        # Compiled networks are kept for this run alone, which says what the first use of each costs.
        os.environ["EXEMPLAR_RAY_CACHE"] = f"{work}/cache"
        # From now on the shards are in memory: the disk is not what is measured.
        for shard in shards:
            Path(shard).read_bytes()
        module, function = MODES[options.mode]
        getattr(importlib.import_module(module), function)(shards, Path(work), options)


if __name__ == "__main__":
    main()
