"""A data set as a job takes it: its shards, what its classes are called, and what was noticed on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from exemplar_ray.data.columns import USUAL, Chosen
from exemplar_ray.data.labels import ClassLabels, entries_of_texts
from exemplar_ray.data.listed import LeftOut
from exemplar_ray.data.shard import Shard, labels_are_texts
from exemplar_ray.data.shards import discover, inspect
from exemplar_ray.errors import UsageError


class DataSet(NamedTuple):
    """What files, folders and globs stand for."""

    shards: list[Shard]
    class_labels: ClassLabels
    notes: list[str]
    """What was passed over, in lines."""


def data_set(
    data: Sequence[str],
    chosen: Chosen,
    table: dict[str, tuple[str, str]],
    revisions: Mapping[str, str] | None = None,
) -> DataSet:
    """List and look at a data set.

    Args:
        data: see `shards.discover`.
        chosen: columns of images and labels, and the split, as the user names them.
        table: of the user's `--class-labels` file; {} without one.
        revisions: see `shards.discover`.

    Raises:
        UsageError: see `shards.discover` and `shards.inspect`.
    """
    left_out = LeftOut()
    shards, names = inspect(discover(data, revisions, left_out, chosen.split), chosen, bool(table))
    if labels_are_texts(shards):
        table = entries_of_texts(names or (), table)
    return DataSet(shards, ClassLabels(names, table), left_out.lines())


def refuse_unlabelled(shards: Sequence[Shard]) -> None:
    """Refuse a data set of which some shard has no labels, for a network that is given them.

    Raises:
        UsageError: with that shard.
    """
    for shard in shards:
        if shard.images and (shard.columns or USUAL).label_column is None:
            raise UsageError(
                f"the network is given the images' labels (its forward takes `labels`), and '{shard.name}' has none; "
                "--label-column NAME says in which column they are, or give data that have them (the subfolders of a "
                "folder of images are its classes)"
            )
