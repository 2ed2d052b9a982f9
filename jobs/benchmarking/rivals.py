"""What others do today, on the same images and the same cores, with torch-lucent's network just as it comes."""

import heapq
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torchvision import transforms

from benchmarking.data import first_shards, images_of, row_groups
from benchmarking.measuring import Rate, allowed_cores

CHANNELS, TOP_K, BATCH = 508, 10, 32
MEAN = 117


def hooked_network() -> tuple[nn.Module, dict[str, Tensor]]:
    """Return InceptionV1 with the weights of `random:0`, and where its hook puts the output of mixed4a."""
    from lucent.modelzoo import inceptionv1

    torch.manual_seed(0)
    model = inceptionv1(pretrained=False).eval()
    acts: dict[str, Tensor] = {}
    model.mixed4a.register_forward_hook(lambda module, inputs, output: acts.update(layer=output))
    return model, acts


def pixels_of(image: bytes) -> Tensor:
    """Decode, resize, crop: uint8 [3, 224, 224]."""
    prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    return prepare(Image.open(io.BytesIO(image)).convert("RGB"))


def notebook(shards: Sequence[str], limit: int) -> Rate:
    """Score as the notebook does: one image at a time, a Python heap a channel; model loading left out."""
    model, acts = hooked_network()
    heaps: list[list[tuple[float, int]]] = [[] for _ in range(CHANNELS)]
    started, count = time.perf_counter(), 0
    for group in row_groups(shards, limit):
        for image in images_of(group):
            with torch.no_grad():
                model(pixels_of(image).unsqueeze(0).float() - MEAN)
            count += 1
            for channel, heap in enumerate(heaps):
                entry = (acts["layer"][0, channel].mean().item(), -count)
                (heapq.heappush if len(heap) < TOP_K else heapq.heappushpop)(heap, entry)
    return Rate(count, time.perf_counter() - started)


class ShardImages(IterableDataset):
    """The first images of shards, decoded in the loader's workers, each of which reads row groups of its own."""

    def __init__(self, shards: Sequence[str], limit: int) -> None:
        self._groups = list(row_groups(shards, limit))

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        worker = get_worker_info()
        assert worker is not None, "a DataLoader's workers read, each its share"
        for group in self._groups[worker.id :: worker.num_workers]:
            for number, image in enumerate(images_of(group), start=group.first):
                yield pixels_of(image), number


def dataloader(shards: Sequence[str], limit: int) -> Rate:
    """Score batches that a DataLoader's worker processes decode; model loading left out."""
    model, acts = hooked_network()
    # The network takes ten times as long as the decoding, and all cores: more workers would only be in its way.
    workers = max(1, len(allowed_cores()) // 2)
    # Forked, as Python 3.11 on Linux does it: spawned workers would import torch on this one's time.
    loader = DataLoader(ShardImages(shards, limit), BATCH, num_workers=workers, multiprocessing_context="fork")
    best, numbers = torch.empty(0, CHANNELS), torch.empty(0, CHANNELS, dtype=torch.int64)
    started, count = time.perf_counter(), 0
    for pixels, images in loader:
        with torch.inference_mode():
            model(pixels.float() - MEAN)
            best = torch.cat([best, acts["layer"].mean(dim=(2, 3))])
            numbers = torch.cat([numbers, images[:, None].expand(-1, CHANNELS)])
            best, order = best.topk(min(TOP_K, len(best)), dim=0)
            numbers = numbers.gather(0, order)
        count += len(images)
    return Rate(count, time.perf_counter() - started)


def ray_data(shards: Sequence[str], limit: int) -> dict[str, Rate]:
    """Run the Ray Data pipeline in a process of its own, over the shards that hold the first images.

    Returns:
        "start to end", starting Python and Ray included, and "pipeline", which is its execution alone.
    """
    script = Path(__file__).with_name("ray_data.py")
    command = [sys.executable, str(script), "--cores", str(len(allowed_cores())), *first_shards(shards, limit)]
    started = time.perf_counter()
    finished = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if finished.returncode:
        raise RuntimeError(f"the Ray Data pipeline failed:\n{finished.stderr}")
    result = json.loads(finished.stdout.splitlines()[-1])
    images = result["images"]
    return {"start to end": Rate(images, seconds), "pipeline": Rate(images, result["seconds"])}


class LabelledImages(Dataset):
    """The first images and their labels, in memory, decoded when they are asked for."""

    def __init__(self, shards: Sequence[str], limit: int) -> None:
        self._rows: list[tuple[bytes, int]] = []
        for group in row_groups(shards, limit):
            labels = pq.ParquetFile(group.shard).read_row_group(group.group, columns=["label"])["label"]
            self._rows += zip(images_of(group), labels.slice(0, group.rows).to_pylist(), strict=True)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        image, label = self._rows[number]
        return pixels_of(image).float(), label


def zennit_crp(shards: Sequence[str], limit: int) -> Rate:
    """Let zennit-crp find what each channel of mixed4a answers to, set up as in its tutorial.

    Its one pass ranks by activation and by relevance, for which it runs the network backwards, too.

    Raises:
        ImportError: zennit-crp is not installed.
    """
    from crp.attribution import CondAttribution
    from crp.concepts import ChannelConcept
    from crp.visualization import FeatureVisualization
    from zennit.composites import EpsilonPlusFlat

    model, _ = hooked_network()
    images = LabelledImages(shards, limit)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        # A channel's sum over its map, not normalised by the image's, ranks as the mean does.
        visualization = FeatureVisualization(
            CondAttribution(model),
            images,
            {"mixed4a": ChannelConcept()},
            preprocess_fn=lambda pixels: pixels - MEAN,
            max_target="sum",
            abs_norm=False,
            path=folder,
        )
        started = time.perf_counter()
        visualization.run(EpsilonPlusFlat(), 0, len(images), batch_size=BATCH)
        return Rate(len(images), time.perf_counter() - started)
