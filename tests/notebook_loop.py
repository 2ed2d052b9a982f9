"""The oracle: the notebook's loop that this project replaces, kept as plain as it was.

One image at a time through the whole network, `acts[0, channel].mean().item()`, a heap a
channel. It shares no code with the package. Run as a script it scores the 800 sample
images and writes what the exactness tests compare with:

    python tests/notebook_loop.py inceptionv1 tests/oracle/inceptionv1-random-0.npz
    python tests/notebook_loop.py bvlc tests/oracle/bvlc-googlenet.npz
"""

import argparse
import heapq
import importlib.util
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision import transforms

SHARED = Path(__file__).resolve().parents[2] / "shared"
SAMPLE = SHARED / "data" / "imagenet-sample"
BVLC = SHARED / "models" / "bvlc_googlenet.py"

PREPARE = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
MEANS = {"inceptionv1": (117.0, 117.0, 117.0), "bvlc": (123.0, 117.0, 104.0)}

# One more than K, so that the gap below the last exemplar is known.
KEPT = 11


def network(name):
    """The network and the weights that the oracle is for."""
    if name == "inceptionv1":
        from lucent.modelzoo import inceptionv1

        torch.manual_seed(0)
        return inceptionv1(pretrained=False).eval()
    spec = importlib.util.spec_from_file_location("bvlc_googlenet", BVLC)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


def sample_images(shards):
    """Yield the images of parquet shards, decoded as the notebook's data set decodes them."""
    for shard in sorted(shards):
        for image in pq.read_table(shard, columns=["image"])["image"].to_pylist():
            yield Image.open(io.BytesIO(image["bytes"])).convert("RGB")


def notebook_loop(model, mean, images, kept=KEPT):
    """Score images one at a time.

    Returns: (image numbers, activations), each [channels, kept], strongest first.
    """
    acts = {}
    model.mixed4a.register_forward_hook(lambda module, inputs, output: acts.update(mixed4a=output))
    heaps = None
    for number, image in enumerate(images):
        x = PREPARE(image).unsqueeze(0).float() - torch.tensor(mean).view(1, 3, 1, 1)
        with torch.no_grad():
            model(x)
        layer = acts["mixed4a"]
        heaps = heaps or [[] for _ in range(layer.shape[1])]
        for channel, heap in enumerate(heaps):
            entry = (layer[0, channel].mean().item(), -number)
            if len(heap) < kept:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)
    ordered = [sorted(heap, reverse=True) for heap in heaps]
    numbers = np.array([[-number for _, number in heap] for heap in ordered])
    return numbers, np.array([[activation for activation, _ in heap] for heap in ordered])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=sorted(MEANS))
    parser.add_argument("out")
    options = parser.parse_args()
    shards = SAMPLE.glob("*.parquet")
    numbers, activations = notebook_loop(network(options.network), MEANS[options.network], sample_images(shards))
    np.savez_compressed(options.out, images=numbers.astype(np.int16), activations=activations.astype(np.float32))
