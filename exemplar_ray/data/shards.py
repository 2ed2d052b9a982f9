"""Where images come from: list shards, look at them, open one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

import pyarrow as pa

from exemplar_ray.data.columns import USUAL, Chosen
from exemplar_ray.data.formats import images, tar
from exemplar_ray.data.formats.registry import open_shard
from exemplar_ray.data.hub_data_sets import addressed, refuse_split_elsewhere
from exemplar_ray.data.inspection import look_at
from exemplar_ray.data.listing import LeftOut, list_files
from exemplar_ray.data.shard import PARQUET, ImageRow, Shard, ShardReader

__all__ = ["ImageRow", "Shard", "ShardReader", "discover", "imagenet_schema", "inspect", "open_shard"]


def discover(
    data: Sequence[str],
    revisions: Mapping[str, str] | None = None,
    left_out: LeftOut | None = None,
    split: str | None = None,
) -> list[Shard]:
    """List the shards that files, folders and globs stand for, sorted by name.

    Args:
        data: see `listing.list_files`; without `revisions` also names of data sets on the Hub.
        revisions: the commits at which to read repositories on the Hub; None to look them up, as
            `hub_data_sets.addressed` does.
        left_out: gets what is passed over: hidden files, and those named before.
        split: of data sets on the Hub.

    Raises:
        UsageError: nothing matches, or a file system cannot be reached, or there are several ways to read it.
    """
    if revisions is None:
        data, revisions = addressed(data)
    refuse_split_elsewhere(data, split)
    # Names are of places, not of commits: a run is the same at another commit if its shards are.
    found = list_files(data, revisions, LeftOut() if left_out is None else left_out, split)
    shards = [
        Shard(file.place, file.uri, file.size, stamp=file.stamp, format=tar.TAR if file.is_tar else PARQUET)
        for file in found.files
    ]
    shards += [shard for folder in found.folders for shard in images.shards_of(folder)]
    levels = zip(*(shard.name.split("/")[:-1] for shard in shards), strict=False)
    shared = len(list(takewhile(lambda folders: len(set(folders)) == 1, levels)))
    named = [replace(shard, name="/".join(shard.name.split("/")[shared:])) for shard in shards]
    return sorted(named, key=lambda shard: shard.name)


def inspect(
    shards: Sequence[Shard], chosen: Chosen | None = None, numbers_are_known: bool = False
) -> tuple[list[Shard], list[str] | None]:
    """Look at every shard: fill in `rows`, `footer` and `columns`, and find the class names.

    Little is read if labels are whole numbers: footers, and the first samples of tars. Texts are read to find out
    which classes there are.

    Args:
        chosen: the columns that the user names.
        numbers_are_known: the user says what class each number is, so that shards may name them differently.

    Returns:
        The shards, completed where they are what they should be, and the class names (index = label): the texts, if
        labels are texts, else those that the shards have, or None.

    Raises:
        UsageError: a shard cannot be looked at now, is a pointer of Git LFS, has no image column or none that can be
            told from others, or labels that are none; or two shards do not agree on what labels are.
    """
    looked_at = look_at(shards, chosen or Chosen(), numbers_are_known)
    inspected = [
        shard
        if look is None
        else replace(
            shard,
            rows=look.rows,
            about=look.about,
            footer=look.footer,
            pieces=look.pieces,
            columns=None if look.columns == USUAL else look.columns,
        )
        for shard, look in zip(shards, looked_at.looks, strict=True)
    ]
    return inspected, looked_at.class_names


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
