"""The same job as a Ray Data pipeline, written as its documentation teaches; prints images and seconds as JSON.

Run by `rivals.ray_data` in a process of its own: `python ray_data.py --cores 2 SHARD.parquet ...`.
"""

import argparse
import io
import json
import logging
import time
from typing import Any

import numpy as np
import ray
import ray.data
from PIL import Image

CHANNELS, TOP_K, BATCH = 508, 10, 32

# An actor a core, and a core's other half for reading: actors that take all CPUs would leave the reading none.
SHARE = 0.5

Batch = dict[str, Any]


def decode(batch: Batch) -> Batch:
    """Decode, resize, crop: uint8 [images, 3, 224, 224]. Ray Data fuses this with the network's actors."""
    from torchvision import transforms

    prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    images = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in batch["image"]]
    return {
        "pixels": np.stack([prepare(image).numpy() for image in images]),
        "path": [image["path"] for image in batch["image"]],
    }


class Network:
    """torch-lucent's network as it comes, with a hook; Ray Data keeps it in an actor."""

    def __init__(self) -> None:
        import torch
        from lucent.modelzoo import inceptionv1

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._model = inceptionv1(pretrained=False).eval()
        self._model.mixed4a.register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._maps = output

    def __call__(self, batch: Batch) -> Batch:
        """Return the mean activations, float32 [images, channels], and what the images are called."""
        import torch

        with torch.inference_mode():
            self._model(torch.as_tensor(batch["pixels"]).float() - 117)
        return {"activation": self._maps.mean(dim=(2, 3)).numpy(), "path": batch["path"]}


def strongest(shards: list[str], cores: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Run the pipeline; return how many images there were, and activations and paths [K, channels]."""
    images = (
        ray.data.read_parquet(shards, num_cpus=SHARE)
        .select_columns(["image"])
        # Read blocks are of up to 128 MiB, which is more than a small data set has for each actor.
        .repartition(target_num_rows_per_block=BATCH)
        .map_batches(decode, batch_size=BATCH, num_cpus=SHARE)
        .map_batches(Network, batch_size=BATCH, num_cpus=SHARE, compute=ray.data.ActorPoolStrategy(size=cores))
    )
    # Folding here takes a few ms; `Dataset.aggregate` with a function of one's own takes seconds to start.
    count, best, paths = 0, np.empty((0, CHANNELS), np.float32), np.empty((0, CHANNELS), object)
    for batch in images.iter_batches(batch_size=8 * BATCH):
        count += len(batch["path"])
        best = np.concatenate([best, batch["activation"]])
        paths = np.concatenate([paths, np.repeat(np.asarray(batch["path"], object)[:, None], CHANNELS, axis=1)])
        order = np.argsort(-best, axis=0, kind="stable")[:TOP_K]
        best, paths = np.take_along_axis(best, order, axis=0), np.take_along_axis(paths, order, axis=0)
    return count, best, paths


def main() -> None:
    """Start Ray, run the pipeline, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("shards", nargs="+", metavar="SHARD")
    options = parser.parse_args()
    # Ray Data's own steps take whole CPUs: next to an actor's half of a single one they would wait forever.
    cpus = max(options.cores, 2)
    ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.perf_counter()
    count, _, _ = strongest(options.shards, options.cores)
    print(json.dumps({"images": count, "seconds": time.perf_counter() - started}))
    ray.shutdown()


if __name__ == "__main__":
    main()
