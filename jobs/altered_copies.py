"""Copies of parquet shards whose images are blurred, noised or recoloured: sets whose distance from the first is known
to grow. Names, rows, labels and paths stay.

    python jobs/altered_copies.py ../shared/data/imagenet-sample copies

writes copies/blur-1, copies/blur-2 and so on; then `exemplar-ray activations` and `exemplar-ray compare`.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter


def blurred(image: Image.Image, radius: float, _seed: int) -> Image.Image:
    """Blur with a Gaussian of a radius in pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius))


def noised(image: Image.Image, deviation: float, seed: int) -> Image.Image:
    """Add Gaussian noise, of a standard deviation in grey levels."""
    pixels = np.asarray(image, np.float64)
    noise = np.random.default_rng(seed).normal(0, deviation, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))


def recoloured(image: Image.Image, degrees: float, _seed: int) -> Image.Image:
    """Turn the hues by so many degrees."""
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point(lambda level: (level + round(degrees / 360 * 256)) % 256)
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


ALTERATIONS: dict[str, tuple[Callable[[Image.Image, float, int], Image.Image], tuple[int, ...]]] = {
    "blur": (blurred, (1, 2, 4)),
    "noise": (noised, (10, 25, 50)),
    "hue": (recoloured, (30, 90, 180)),
}
"""{name: (what does it, how strongly)}"""


def altered_copy(source: Path, target: Path, name: str, strength: float, rows: int | None = None) -> None:
    """Write a copy of a folder's shards, the first so many rows of each.

    Args:
        target: a new folder.
        name: of `ALTERATIONS`.
    """
    alter = ALTERATIONS[name][0]
    target.mkdir(parents=True)
    for number, path in enumerate(sorted(source.glob("*.parquet"))):
        table = pq.read_table(path).slice(0, rows)
        images = table["image"].to_pylist()
        for row, image in enumerate(images):
            sink = io.BytesIO()
            opened = Image.open(io.BytesIO(image["bytes"])).convert("RGB")
            alter(opened, strength, number * 1_000_000 + row).save(sink, "PNG", compress_level=1)
            image["bytes"] = sink.getvalue()
        at = table.schema.get_field_index("image")
        field = table.schema.field(at)
        pq.write_table(table.set_column(at, field, pa.array(images, field.type)), target / path.name)


if __name__ == "__main__":
    given, folder = map(Path, sys.argv[1:3])
    for kind, (_, strengths) in ALTERATIONS.items():
        for level in strengths:
            altered_copy(given, folder / f"{kind}-{level}", kind, level)
            print(folder / f"{kind}-{level}", flush=True)
