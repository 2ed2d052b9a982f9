"""Commands that write data: the embedded data set, and parquet shards of anything."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from exemplar_ray.cli.common import COMPLETE, add_command
from exemplar_ray.executor.progress import say


def add_data_commands(commands: Any) -> None:
    """Add them."""
    sub = add_command(
        commands, "sample-data", _sample_data, "write the embedded default data set: parquet shards, offline"
    )
    sub.add_argument("dir", metavar="DIR", help="a new or empty folder")

    sub = add_command(commands, "shard", _shard, "any image folder or Hugging Face data set -> parquet shards")
    sub.add_argument("source", metavar="SOURCE", help="a folder of images, or the name of a data set on the Hub")
    sub.add_argument("dir", metavar="DIR", help="a new or empty folder")
    sub.add_argument("--split", default="train", help="which split of a Hub data set (default: train)")
    sub.add_argument("--rows-per-shard", type=int, default=4000, metavar="N", help="default: 4000")
    sub.add_argument("--image-column", metavar="NAME", help="of a Hub data set (default: as of run)")
    sub.add_argument("--label-column", metavar="NAME", help="of a Hub data set (default: as of run); none: no labels")


def _sample_data(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.data.sample_data import write_sample_data

    paths, images = write_sample_data(options.dir)
    say(console, f"{images} images in {len(paths)} shards: {options.dir}")
    return COMPLETE


def _shard(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.data.columns import Chosen
    from exemplar_ray.data.write_shards import write_shards

    notes: list[str] = []
    chosen = Chosen(options.image_column, options.label_column)
    paths, images = write_shards(options.source, options.dir, options.split, options.rows_per_shard, chosen, notes)
    for line in notes:
        say(console, line)
    say(console, f"{images} images in {len(paths)} shards: {options.dir}")
    return COMPLETE
