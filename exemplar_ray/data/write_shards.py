"""Make shards: an image folder, a Hugging Face data set, or any stream of images -> parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.data.columns import NO_LABELS, TEXT, Chosen, class_names, describe, find_columns, label_kind
from exemplar_ray.data.disk_files import OnDisk
from exemplar_ray.data.labels import label_of
from exemplar_ray.data.listed import LeftOut, class_of, refuse_names_that_are_no_text
from exemplar_ray.data.shards import imagenet_schema
from exemplar_ray.errors import UsageError

ROWS_PER_GROUP = 100

# Pages of a few images, found by an index: to gather some images of many takes little reading. With checksums, as an
# image whose bytes are damaged may still be one that can be decoded.
_PARQUET: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "data_page_size": 256 << 10,
    "write_batch_size": 1,
    "write_page_index": True,
    "write_page_checksum": True,
}

# What a command that was killed leaves: whole shards get other names.
_TEMPORARY = ".[0-9][0-9][0-9][0-9][0-9].parquet.tmp"


class LabelledImage(NamedTuple):
    """One image to be written: its encoded bytes, its path in the data set, its class id."""

    data: bytes | None
    path: str | None
    label: int | None


def write_shards(
    source: str,
    folder: str,
    split: str,
    rows_per_shard: int,
    chosen: Chosen | None = None,
    notes: list[str] | None = None,
) -> tuple[list[Path], int]:
    """Turn an image folder or a Hugging Face data set into shards in the ImageNet schema.

    Image bytes are copied as they are, decodable or not.

    Args:
        source: a folder of images (its subfolders, if any, are the classes), or a data set's
            name on the Hub.
        folder: where to write, new or empty.
        split: which split of a Hub data set.
        rows_per_shard: images a shard.
        chosen: which columns of a Hub data set hold images and labels.
        notes: gets what is to be said of the result, in lines.

    Returns:
        The shards' paths and the number of images.

    Raises:
        UsageError: there are no images, or the folder has files in it, or a name or a label cannot be written down.
    """
    if rows_per_shard < 1:
        raise UsageError(f"--rows-per-shard is a whole number from 1, not {rows_per_shard}")
    notes = [] if notes is None else notes
    if Path(source).is_dir():
        images, names = _from_folder(Path(source), notes)
    else:
        images, names = _from_hub(source, split, chosen or Chosen(), notes)
    return write_images(images, folder, names, rows_per_shard, split)


def write_images(
    images: Iterable[LabelledImage],
    folder: str,
    class_names: Sequence[str] | None,
    rows_per_shard: int,
    split: str = "train",
) -> tuple[list[Path], int]:
    """Write a stream of images as `SPLIT-00000-of-00006.parquet`, ...; see `write_shards`.

    Whatever goes wrong, the folder is as it was before.
    """
    target = Path(folder)
    is_new = not target.exists()
    if not is_new and (not target.is_dir() or not _is_empty(target)):
        raise UsageError(f"'{folder}' is not an empty folder; choose a new one")
    images = iter(images)
    first = next(images, None)
    if first is None:
        raise UsageError("there are no images to write")
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        rows = _write(chain([first], images), target, imagenet_schema(class_names), rows_per_shard, written)
        # How many shards there are is known at the end, and only then do they get their names.
        for i, path in enumerate(written):
            written[i] = path.rename(target / f"{split}-{i:05d}-of-{len(written):05d}.parquet")
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):
                target.rmdir()
        raise
    return written, rows


def _is_empty(target: Path) -> bool:
    """Whether there is nothing in a folder but what a command that was killed has left, which is removed."""
    left = set(target.glob(_TEMPORARY))
    if set(target.iterdir()) - left:
        return False
    for path in left:
        path.unlink(missing_ok=True)
    return True


def _write(
    images: Iterator[LabelledImage], target: Path, schema: pa.Schema, rows_per_shard: int, written: list[Path]
) -> int:
    """Write shards under temporary names, which `written` gets; return how many images there were."""
    rows = 0
    while shard := list(islice(images, 1)):
        path = target / f".{len(written):05d}.parquet.tmp"
        written.append(path)
        with pq.ParquetWriter(path, schema, **_PARQUET) as writer:
            in_shard = chain(shard, islice(images, rows_per_shard - 1))
            while group := list(islice(in_shard, ROWS_PER_GROUP)):
                rows += len(group)
                columns = {
                    "image": [{"bytes": image.data, "path": image.path} for image in group],
                    "label": [image.label for image in group],
                }
                writer.write_table(pa.table(columns, schema=schema))
    return rows


def _from_folder(source: Path, notes: list[str]) -> tuple[Iterator[LabelledImage], list[str] | None]:
    left_out = LeftOut()
    files = OnDisk(str(source)).images(left_out).files
    notes += left_out.lines()
    if not files:
        raise UsageError(f"'{source}' has no image files in it")
    refuse_names_that_are_no_text((str(source / file.name) for file in files), "image")
    classes = sorted({name for file in files if (name := class_of(file.name)) is not None})
    label_of_class = {name: label for label, name in enumerate(classes)}

    def images() -> Iterator[LabelledImage]:
        for file in files:
            label = label_of_class.get(class_of(file.name) or "")
            yield LabelledImage((source / file.name).read_bytes(), file.name, label)

    return images(), classes or None


def _from_hub(
    source: str, split: str, chosen: Chosen | None = None, notes: list[str] | None = None
) -> tuple[Iterator[LabelledImage], list[str] | None]:
    import datasets

    try:
        data = datasets.load_dataset(source, split=split, streaming=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"'{source}' is neither a folder nor a data set that can be loaded: {reason}") from error
    schema = (data.features or datasets.Features()).arrow_schema
    columns = find_columns(schema, chosen or Chosen(), source)
    image_column, label_column = columns.image, columns.label_column
    if chosen is not None and chosen.label is not None and columns.label is None and chosen.label != NO_LABELS:
        raise UsageError(f"'{source}' has no column '{chosen.label}' (--label-column)")
    names = class_names(schema, label_column)
    numbers: dict[str, int] | None = None
    if label_column is not None and label_kind(schema.field(label_column).type) == TEXT:
        names = sorted({row[label_column] for row in data.select_columns([label_column])} - {None, ""})
        numbers = {name: number for number, name in enumerate(names)}
    if notes is not None:
        notes += describe([replace(columns, names=tuple(names or ()))])
    data = data.cast_column(image_column, datasets.Image(decode=False))

    def label(row: dict[str, Any]) -> int | None:
        if label_column is None:
            return None
        try:
            return label_of(row.get(label_column), numbers)
        except ValueError as error:
            raise UsageError(
                f"'{source}': column '{label_column}': {error}; choose another with --label-column NAME, or "
                f"--label-column {NO_LABELS}"
            ) from error

    def images() -> Iterator[LabelledImage]:
        for row in data:
            image = row[image_column] or {"bytes": None, "path": None}
            content = image["bytes"]
            if content is None and image["path"]:
                content = Path(image["path"]).read_bytes()
            yield LabelledImage(content, image["path"], label(row))

    return images(), names
