"""Where images come from: discover parquet shards, read rows of one, write new ones.

A shard is one parquet file in the layout of `ILSVRC/imagenet-1k` on the Hugging Face Hub:
`image: struct<bytes, path>` (a plain binary column is taken too) and, if the data is
labelled, `label: int64` with the class names in the `huggingface` schema metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from exemplar_ray.errors import ShardError, UsageError
from exemplar_ray.storage import hub
from exemplar_ray.storage.hub_uri import AccessError, NoAnswerError, is_on_hub, without_revision

# What a parquet file is read in: small enough that memory follows the batch, not the shard.
ROWS_PER_READ = 32
# A row group of the usual 100 images is one request; of larger ones only so much is in memory at a time.
_BYTES_PER_READ = 16 << 20
# ImageNet's footers are below this, so one request reads a whole footer.
_TAIL_BYTES = 1 << 16
_LISTING_THREADS = 32


@dataclass(frozen=True)
class Shard:
    """One parquet file of images.

    `name` is its path below the folder that all shards of a run share; it is what results
    refer to. `uri` names the commit, if the file is in a repository on the Hub. `rows` and
    `footer` (SHA-256 of the parquet footer) are None while the file cannot be read as parquet:
    such a shard fails when it is scanned, not before.
    """

    name: str
    uri: str
    size: int
    rows: int | None = None
    footer: str | None = None

    @property
    def kind(self) -> str:
        """Return what it is called in records and for people."""
        return "shard"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `Shard(**values)` reads them back."""
        return asdict(self)

    def change_since(self, recorded: Mapping[str, Any]) -> str | None:
        """Say how the file differs from what a completion record says of it; None if it does not."""
        if (recorded["size"], recorded["footer"]) == (self.size, self.footer):
            return None
        return f"{recorded['size']} bytes then, {self.size} now"


class ImageRow(NamedTuple):
    """One row of a shard; `data` is None where the row has no image bytes."""

    row: int
    data: bytes | None
    path: str | None
    label: int | None


def discover(data: Sequence[str], revisions: Mapping[str, str] | None = None) -> list[Shard]:
    """List the shards that files, folders and globs stand for, sorted by name.

    Args:
        data: paths or URIs of any file system that fsspec opens. A folder stands for the
            `*.parquet` files directly in it.
        revisions: the commits at which to read repositories on the Hub, as
            `hub.resolve_revisions` returns them; None to look them up.

    Raises:
        UsageError: nothing matches, or a file system cannot be reached.
    """
    if revisions is None:
        revisions = hub.resolve_revisions(data)
    sizes: dict[str, int] = {}
    for uri in data:
        files = _expand(hub.pinned(uri, revisions))
        if not files:
            raise UsageError(f"no parquet shard matches '{uri}'")
        sizes.update(files)
    # Names are of places, not of commits: a run is the same at another commit if its shards are.
    uris: dict[str, str] = {}
    for uri in sorted(sizes):
        plain_uri = without_revision(uri)
        if plain_uri in uris:
            raise UsageError(f"'{plain_uri}' is in the data at two revisions; give one")
        uris[plain_uri] = uri
    levels = zip(*(plain_uri.split("/")[:-1] for plain_uri in uris), strict=False)
    shared = len(list(takewhile(lambda folders: len(set(folders)) == 1, levels)))
    shards = [Shard("/".join(plain_uri.split("/")[shared:]), uri, sizes[uri]) for plain_uri, uri in uris.items()]
    return sorted(shards, key=lambda shard: shard.name)


def _expand(uri: str) -> dict[str, int]:
    """Return {full URI: size in bytes} of the files that one URI, folder or glob stands for."""
    try:
        fs, path = hub.file_system(uri)
        fs.invalidate_cache()
        pattern = path if fsspec.core.has_magic(path) else None
        if pattern is None and fs.isdir(path):
            pattern = path.rstrip("/") + "/*.parquet"
        infos = fs.glob(pattern, detail=True).values() if pattern is not None else [fs.info(path)]
    except FileNotFoundError:
        return {}
    except AccessError as error:
        raise UsageError(str(error)) from error
    except PermissionError as error:
        raise UsageError(
            f"cannot list '{uri}': access denied ({_one_line(error)}); check permissions or credentials"
        ) from error
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"cannot list '{uri}': {_one_line(error)}") from error
    local = isinstance(fs, LocalFileSystem)
    return {
        info["name"] if local else fs.unstrip_protocol(info["name"]): info["size"]
        for info in infos
        if info["type"] == "file" or (local and Path(info["name"]).is_file())  # fsspec calls links to files "other"
    }


def inspect(shards: Sequence[Shard]) -> tuple[list[Shard], list[str] | None]:
    """Read every shard's footer: fill in `rows` and `footer`, and find the class names.

    Returns:
        The shards, completed where their footer could be read, and the class names of the
        first shard that has them (index = label), or None.

    Raises:
        UsageError: a shard is a parquet file without an image column, or cannot be had from the Hub.
    """
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        inspected = list(pool.map(_inspect_one, shards))
    class_names = next((names for _, names in inspected if names), None)
    return [shard for shard, _ in inspected], class_names


def _inspect_one(shard: Shard) -> tuple[Shard, list[str] | None]:
    try:
        footer = _read_footer(shard)
        metadata = pq.read_metadata(pa.BufferReader(footer))
    except (AccessError, NoAnswerError) as error:
        raise UsageError(str(error)) from error
    except (OSError, pa.ArrowException):
        return shard, None
    schema = metadata.schema.to_arrow_schema()
    if _image_columns(schema) is None:
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema) or "no columns"
        raise UsageError(
            f"'{shard.uri}' has no image column (image: struct<bytes, path> or image: binary); it has {columns}"
        )
    digest = hashlib.sha256(footer).hexdigest()
    return Shard(shard.name, shard.uri, shard.size, metadata.num_rows, digest), _class_names(schema)


def _read_footer(shard: Shard) -> bytes:
    """Return the file's footer: its metadata, the metadata's length, and the magic bytes."""
    with _open(shard) as file:
        file.seek(max(0, shard.size - _TAIL_BYTES))
        tail = file.read()
        if len(tail) < 12 or tail[-4:] != b"PAR1":
            raise OSError("not a parquet file")
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > len(tail):
            file.seek(max(0, shard.size - length))
            tail = file.read()
    return tail[-length:]


def _open(shard: Shard) -> Any:
    """Open a shard's file for reading in binary mode."""
    fs, path = hub.file_system(shard.uri)
    # pyarrow reads local files without the interpreter; others are read range by range,
    # without a read-ahead cache that would fetch bytes twice.
    if isinstance(fs, LocalFileSystem):
        return pa.OSFile(path)
    # The Hub would list the folder, in every process, to find out the size.
    options = {"size": shard.size} if is_on_hub(shard.uri) else {}
    return fs.open(path, "rb", cache_type="none", **options)


class ShardReader:
    """Reads rows of one shard, one small batch at a time.

    Raises:
        ShardError: the file is not the one that the shard list describes, or has no image
            column. Corrupt files raise pyarrow's errors, unreachable ones OSError.
    """

    def __init__(self, shard: Shard) -> None:
        self._source = _open(shard)
        try:
            self._file = pq.ParquetFile(self._source, pre_buffer=False, buffer_size=_BYTES_PER_READ)
        except BaseException:
            self._source.close()
            raise
        self.rows = self._file.metadata.num_rows
        columns = _image_columns(self._file.schema_arrow)
        if columns is None:
            self.close()
            raise ShardError(f"{shard.name} has no image column")
        if shard.rows is not None and self.rows != shard.rows:
            self.close()
            raise ShardError(f"{shard.name} changed: {self.rows} rows, the shard list says {shard.rows}")
        self._image_columns = columns
        self._label_columns = ["label"] if "label" in self._file.schema_arrow.names else []

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def images(self) -> Iterator[ImageRow]:
        """Yield every row in order, without paths (`path` is None)."""
        row = 0
        columns = [*self._image_columns[:1], *self._label_columns]
        for group in range(self._file.num_row_groups):
            for batch in self._batches(group, columns):
                for data, label in zip(_image_bytes(batch), self._labels(batch), strict=True):
                    yield ImageRow(row, data, None, label)
                    row += 1

    def select(self, rows: Iterable[int]) -> Iterator[ImageRow]:
        """Yield the given rows in order, reading only the row groups that hold them."""
        wanted = np.unique(np.fromiter(rows, dtype=np.int64))
        columns = [*self._image_columns, *self._label_columns]
        first = 0
        for group in range(self._file.num_row_groups):
            after = first + self._file.metadata.row_group(group).num_rows
            here = wanted[(wanted >= first) & (wanted < after)]
            start = first
            for batch in self._batches(group, columns) if len(here) else ():
                inside = here[(here >= start) & (here < start + len(batch))]
                picked = batch.take(pa.array(inside - start))
                start += len(batch)
                paths = _image_paths(picked)
                yield from map(ImageRow, inside.tolist(), _image_bytes(picked), paths, self._labels(picked))
            first = after

    def _labels(self, batch: pa.RecordBatch) -> list[int | None]:
        return batch["label"].to_pylist() if self._label_columns else [None] * len(batch)

    def _batches(self, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        return self._file.iter_batches(batch_size=ROWS_PER_READ, row_groups=[group], columns=columns, use_threads=False)


def _image_columns(schema: pa.Schema) -> list[str] | None:
    """Return the parquet columns that hold an image's bytes (first) and path, or None."""
    if "image" not in schema.names:
        return None
    kind = schema.field("image").type
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return [f"image.{name}" for name in ("bytes", "path") if name in names] if "bytes" in names else None
    return ["image"] if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def _image_bytes(batch: pa.RecordBatch) -> list[bytes | None]:
    images = batch["image"]
    if pa.types.is_struct(images.type):
        # flatten() carries a null struct over to its fields.
        names = [images.type.field(i).name for i in range(images.type.num_fields)]
        images = images.flatten()[names.index("bytes")]
    return images.to_pylist()


def _image_paths(batch: pa.RecordBatch) -> list[str | None]:
    images = batch["image"]
    if pa.types.is_struct(images.type):
        names = [images.type.field(i).name for i in range(images.type.num_fields)]
        if "path" in names:
            return images.flatten()[names.index("path")].to_pylist()
    return [None] * len(batch)


def _class_names(schema: pa.Schema) -> list[str] | None:
    """Return the names of the label's ClassLabel feature, where the schema has one."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None


def imagenet_schema(class_names: Sequence[str] | None) -> pa.Schema:
    """Return the schema of a shard, with the Hugging Face features that name its classes."""
    label = {"names": list(class_names), "_type": "ClassLabel"} if class_names else None
    features = {"image": {"_type": "Image"}, "label": label or {"dtype": "int64", "_type": "Value"}}
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
