"""Noisy grey images with a magenta patch at a known place, and a run of a network that finds it."""

import numpy as np
from conftest import TESTS, encode

from exemplar_ray.cli import main
from exemplar_ray.data.write_shards import LabelledImage, write_images

SIDE = 16  # of a patch, in pixels of the original


def run_over_planted_patches(folder, count, seed, *flags):
    """Write images of several sizes and run over them; return {image path: (left, top) of its patch}.

    The run is `folder / "run"`, with every image an exemplar.
    """
    random = np.random.default_rng(seed)
    images, places = [], {}
    for i in range(count):
        width, height = (128, int(random.integers(128, 260)))[:: random.choice([1, -1])]
        pixels = np.repeat(random.integers(90, 150, (height, width, 1), dtype=np.uint8), 3, axis=2)
        # Inside the crop, which is the centre 7/8 of the shorter side.
        left = int(random.integers(width // 2 - 50, width // 2 + 50 - SIDE))
        top = int(random.integers(height // 2 - 50, height // 2 + 50 - SIDE))
        pixels[top : top + SIDE, left : left + SIDE] = (255, 0, 255)
        images.append(LabelledImage(encode(pixels), f"{i}.png", None))
        places[f"{i}.png"] = (left, top)
    write_images(images, str(folder / "data"), None, count // 4)
    network = ["--model", f"{TESTS / 'tiny_network.py'}:PatchFinder", "--layer", "find", "--top-k", str(count)]
    network += ["--preprocess", "{resize: 64, crop: 56, mean: [117, 117, 117]}", "--statistic", "max"]
    assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *network, *flags]) == 0
    return places
