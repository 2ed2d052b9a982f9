"""Side by side in one run, on the same images: the notebook's loop, the top K alone, and every answer.

    python jobs/benchmark.py --data ../shared/data/imagenet-sample --repeats 3

Prints images/s of each (median, minimum, maximum) and the ratios, repetition by repetition. All
compute every channel of InceptionV1's mixed4a; the weights are random, which does not change the
speed. A job's figure includes everything from start to result: starting Ray, building the network
in each worker, scanning, gathering, writing.
"""

import argparse
import heapq
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision import transforms

from exemplar_ray.shards import discover


def images_of(shards: list[str]) -> Iterator[Image.Image]:
    """Yield the decoded images of local parquet shards, one row group at a time."""
    for shard in shards:
        file = pq.ParquetFile(shard)
        for group in range(file.num_row_groups):
            for image in file.read_row_group(group, columns=["image"])["image"].to_pylist():
                yield Image.open(io.BytesIO(image["bytes"])).convert("RGB")


def notebook_loop(shards: list[str], limit: int) -> float:
    """Score up to `limit` images as the notebook does and return images/s, model loading left out."""
    from lucent.modelzoo import inceptionv1

    torch.manual_seed(0)
    model = inceptionv1(pretrained=False).eval()
    acts = {}
    model.mixed4a.register_forward_hook(lambda module, inputs, output: acts.update(layer=output))
    prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    heaps = [[] for _ in range(508)]
    started, count = time.perf_counter(), 0
    for count, image in enumerate(images_of(shards), start=1):
        with torch.no_grad():
            model(prepare(image).unsqueeze(0).float() - 117)
        for channel, heap in enumerate(heaps):
            entry = (acts["layer"][0, channel].mean().item(), -count)
            (heapq.heappush if len(heap) < 10 else heapq.heappushpop)(heap, entry)
        if count == limit:
            break
    return count / (time.perf_counter() - started)


# Tallies and classes are part of every run.
EVERY_ANSWER = ["--statistic", "mean", "max", "center", "--sample", "bottom", "random", "q99", "q95", "q90", "q50"]
EVERY_ANSWER += ["--distinct", "--class-top-k", "1"]


def job(data: list[str], flags: list[str]) -> tuple[float, float]:
    """Run the job in a process of its own; return images/s from start to end, and of the scan alone."""
    folder = tempfile.mkdtemp(prefix="exemplar_ray-benchmark-")
    command = [sys.executable, "-m", "exemplar_ray", "run", "--out", folder, "--weights", "random:0", "--data", *data]
    command += flags
    # What was written before must not be written back on this one's time.
    os.sync()
    try:
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        summary = json.loads((Path(folder) / "summary.json").read_text())
    finally:
        shutil.rmtree(folder)
    return summary["scored"] / seconds, summary["this_invocation"]["images_per_second"]


def main() -> None:
    """Measure, interleaved, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, help="local parquet shards")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--notebook-images", type=int, default=200, help="images a repetition of the notebook's loop")
    options = parser.parse_args()
    shards = [shard.uri for shard in discover(options.data)]
    measured: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        figures = {"notebook's loop": notebook_loop(shards, options.notebook_images)}
        for name, flags in (("top K alone", []), ("every answer", EVERY_ANSWER)):
            figures[f"{name}, start to end"], figures[f"{name}, the scan"] = job(options.data, flags)
        for name, figure in figures.items():
            measured.setdefault(name, []).append(figure)
    for name, figures in measured.items():
        print(f"{name:28} {statistics.median(figures):7.1f} images/s ({min(figures):.1f}-{max(figures):.1f})", end="")
        for other in ("notebook's loop", name.replace("every answer", "top K alone")):
            if other != name:
                ratios = [figure / base for figure, base in zip(figures, measured[other], strict=True)]
                print(f"   x {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) of {other}", end="")
        print()


if __name__ == "__main__":
    main()
