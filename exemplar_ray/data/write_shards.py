"""Make shards: an image folder, a Hugging Face data set, or any stream of images -> parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from exemplar_ray.data.shards import imagenet_schema
from exemplar_ray.errors import UsageError

ROWS_PER_GROUP = 100


class LabelledImage(NamedTuple):
    """One image to be written: its encoded bytes, its path in the data set, its class id."""

    data: bytes | None
    path: str | None
    label: int | None


def write_shards(source: str, folder: str, split: str, rows_per_shard: int) -> tuple[list[Path], int]:
    """Turn an image folder or a Hugging Face data set into shards in the ImageNet schema.

    Image bytes are copied as they are, decodable or not.

    Args:
        source: a folder of images (its subfolders, if any, are the classes), or a data set's
            name on the Hub.
        folder: where to write, new or empty.
        split: which split of a Hub data set.
        rows_per_shard: images a shard.

    Returns:
        The shards' paths and the number of images.

    Raises:
        UsageError: there are no images, or the folder has files in it.
    """
    if rows_per_shard < 1:
        raise UsageError(f"--rows-per-shard is a whole number from 1, not {rows_per_shard}")
    if Path(source).is_dir():
        images, class_names = _from_folder(Path(source))
    else:
        images, class_names = _from_hub(source, split)
    return write_images(images, folder, class_names, rows_per_shard, split)


def write_images(
    images: Iterable[LabelledImage],
    folder: str,
    class_names: Sequence[str] | None,
    rows_per_shard: int,
    split: str = "train",
) -> tuple[list[Path], int]:
    """Write a stream of images as `SPLIT-00000-of-00006.parquet`, ...; see `write_shards`."""
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"'{folder}' is not an empty folder; choose a new one")
    images = iter(images)
    first = next(images, None)
    if first is None:
        raise UsageError("there are no images to write")
    target.mkdir(parents=True, exist_ok=True)
    schema = imagenet_schema(class_names)
    written: list[Path] = []
    rows = 0
    remaining = chain([first], images)
    # How many shards there will be is known at the end, and only then do they get their names.
    while shard := list(islice(remaining, 1)):
        path = target / f".{len(written):05d}.parquet.tmp"
        written.append(path)
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            in_shard = chain(shard, islice(remaining, rows_per_shard - 1))
            while group := list(islice(in_shard, ROWS_PER_GROUP)):
                rows += len(group)
                columns = {
                    "image": [{"bytes": image.data, "path": image.path} for image in group],
                    "label": [image.label for image in group],
                }
                writer.write_table(pa.table(columns, schema=schema))
    names = [target / f"{split}-{i:05d}-of-{len(written):05d}.parquet" for i in range(len(written))]
    return [path.rename(name) for path, name in zip(written, names, strict=True)], rows


def _from_folder(source: Path) -> tuple[Iterator[LabelledImage], list[str] | None]:
    Image.init()
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in Image.EXTENSION and file.is_file())
    if not files:
        raise UsageError(f"'{source}' has no image files in it")
    classes = sorted({file.relative_to(source).parts[0] for file in files if file.parent != source})
    label_of = {name: label for label, name in enumerate(classes)}

    def images() -> Iterator[LabelledImage]:
        for file in files:
            path = file.relative_to(source)
            yield LabelledImage(file.read_bytes(), path.as_posix(), label_of.get(path.parts[0]))

    return images(), classes or None


def _from_hub(source: str, split: str) -> tuple[Iterator[LabelledImage], list[str] | None]:
    import datasets

    try:
        data = datasets.load_dataset(source, split=split, streaming=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"'{source}' is neither a folder nor a data set that can be loaded: {reason}") from error
    features = data.features or {}
    if not isinstance(features.get("image"), datasets.Image):
        columns = ", ".join(features) or "no known columns"
        raise UsageError(f"'{source}' has no image column called 'image'; it has {columns}")
    data = data.cast_column("image", datasets.Image(decode=False))
    label = features.get("label")

    def images() -> Iterator[LabelledImage]:
        for row in data:
            image = row["image"] or {"bytes": None, "path": None}
            content = image["bytes"]
            if content is None and image["path"]:
                content = Path(image["path"]).read_bytes()
            yield LabelledImage(content, image["path"], row.get("label"))

    return images(), label.names if isinstance(label, datasets.ClassLabel) else None
