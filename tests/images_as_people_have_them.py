"""The same images as parquet shards, as a folder, as tars, and as other people's parquet."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.data.write_shards import LabelledImage, write_images


def put(content, path):
    """Write a file, and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_tar(path, members, end=True):
    """Write [(name, content)] as a tar; without the mark of its end, if that is not wanted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        size = tar.offset
    path.write_bytes(buffer.getvalue() if end else buffer.getvalue()[:size])
    return path


def samples_of(images, first=0):
    """Members of a sample for each image, (bytes, label), as WebDataset has them; a label of None is left out."""
    for number, (content, label) in enumerate(images, first):
        yield f"{number:06d}.png", content
        if label is not None:
            yield f"{number:06d}.cls", str(label).encode()


def in_all_forms(folder, images, names):
    """Write images, (bytes, path, label), in all forms; return {form: where}.

    Args:
        names: of the classes; they are the names of folders.
    """
    by_shard = [images[start : start + 100] for start in range(0, len(images), 100)]
    write_images([LabelledImage(*image) for image in images], str(folder / "parquet"), names, 100)
    for content, path, label in images:
        put(content, folder / "folder" / names[label] / Path(path).name)
    for number, shard in enumerate(by_shard):
        members = [
            member
            for content, path, label in shard
            for member in ((path, content), (f"{path.partition('.')[0]}.cls", f"{label}\n".encode()))
        ]
        write_tar(folder / "tars" / f"train-{number:04d}.tar", members)
        columns = {"jpg": [image[0] for image in shard], "fine_label": pa.array([i[2] for i in shard], pa.int32())}
        (folder / "bytes").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / "bytes" / f"{number}.parquet", row_group_size=30)
    return {form: folder / form for form in ("parquet", "folder", "tars", "bytes")}
