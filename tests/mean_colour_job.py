"""A job of its own: the mean colour of each class, over shards of images.

python mean_colour_job.py DATA... RUN
"""

import io
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from exemplar_ray.data.decode import UndecodableImageError, decode
from exemplar_ray.data.shards import discover, inspect, open_shard
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.driver import run_job
from exemplar_ray.executor.job import Job, Made, Reduced
from exemplar_ray.executor.resources import Resources


class MeanColour(Job):
    """For each class the mean of its images' mean colours, on a scale of 0..`scale`."""

    name = "mean-colour"
    task = "mean_colour_job:sum_colours"
    result = "colours.parquet"

    def __init__(self, data, scale=255.0):
        self.items, _ = inspect(discover(data))
        self.settings = scale

    def identity(self):
        return {"scale": self.settings, "data": [shard.name for shard in self.items]}

    def reduce(self, context):
        images, total = np.zeros(1000, np.int64), np.zeros((1000, 3))
        for _, files in context.parts():
            part = pq.read_table(pa.BufferReader(files["parquet"]))
            images[part["label"]] += part["images"]
            total[part["label"]] += np.array(part["total"].to_pylist())
        labels = np.flatnonzero(images)
        mean = total[labels] / images[labels, None]
        with context.folder.writing(self.result) as path:
            pq.write_table(pa.table({"label": labels, "mean_rgb": list(mean)}), path)
        return Reduced(summary={"classes": len(labels)}, lines=[f"{len(labels)} classes"])


def sum_colours(scale, given):
    """The task: how many images of each class a shard has, and the sum of their mean colours."""
    _, shard = given
    images, total, skipped = {}, {}, 0
    with open_shard(shard) as reader:
        for row in reader.images():
            try:
                colour = np.asarray(decode(row.data)).mean(axis=(0, 1)) * (scale / 255.0)
            except UndecodableImageError:
                skipped += 1
                continue
            images[row.label] = images.get(row.label, 0) + 1
            total[row.label] = total.get(row.label, 0.0) + colour
    columns = {"label": list(images), "images": list(images.values()), "total": [list(v) for v in total.values()]}
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    scored = sum(images.values())
    return Made({"parquet": file.getvalue()}, {"rows": scored + skipped, "scored": scored, "skipped": skipped})


if __name__ == "__main__":
    with Cluster(Resources()) as cluster:
        sys.exit(not run_job(MeanColour(sys.argv[1:-1]), sys.argv[-1], cluster, Console()).complete)
