"""The images that a job goes over: as the user names them, and as `run.json` holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from exemplar_ray.data.chosen import Chosen
from exemplar_ray.data.data_set import data_set
from exemplar_ray.data.hub_data_sets import addressed
from exemplar_ray.data.labels import ClassLabels, read_class_labels
from exemplar_ray.data.shard import Shard, identity_of_columns
from exemplar_ray.data.subset import Subset, Wanted, choose


@dataclass(frozen=True)
class PlannedImages:
    """The images that a job goes over."""

    shards: list[Shard]
    class_labels: ClassLabels
    revisions: Mapping[str, str] = field(default_factory=dict)
    """The commits at which repositories on the Hub are read, as `hub.resolve_revisions` returns them."""
    subset: Subset | None = None
    """Which part of the shards' images it is; None for all."""

    def identity(self) -> dict[str, Any]:
        """Return what of them decides a result, under the user's key names. Shards count by name:
        what is in them is held against each completion record instead, so that a broken
        shard can be repaired."""
        of_subset = self.subset.identity() if self.subset else {}
        return {"data": [shard.name for shard in self.shards], **identity_of_columns(self.shards), **of_subset}

    def to_json(self) -> dict[str, Any]:
        """Return what `run.json` keeps of them beside the shards, which are its items: plain JSON values."""
        return {
            "class_labels": self.class_labels.to_json(),
            "revisions": dict(self.revisions),
            **({"subset": asdict(self.subset)} if self.subset else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PlannedImages:
        """Read them back from what `run.json` holds."""
        class_labels = ClassLabels.from_json(values["class_labels"])
        return cls(
            shards=[Shard.from_json(shard, class_labels.names) for shard in values["shards"]],
            class_labels=class_labels,
            revisions=values.get("revisions", {}),
            subset=Subset.from_json(values["subset"]) if values.get("subset") else None,
        )


def planned_images(
    data: Sequence[str],
    columns: Chosen,
    wanted: Wanted,
    class_labels: str | None,
    before: Mapping[str, Any],
) -> tuple[PlannedImages, list[str]]:
    """List and look at the images that the user names.

    Args:
        data: files, folders or globs, or data sets on the Hub, see `shards.discover`.
        columns: of images and labels, and the split, as the user names them.
        wanted: which part of them.
        class_labels: the file of their classes' names, if the user gives one.
        before: what `run.json` holds already: a branch may have moved since the job began; the job has not.

    Returns:
        The images, and what was noticed on the way, in lines.

    Raises:
        UsageError: the data or the file of class names cannot be had.
    """
    table = read_class_labels(class_labels) if class_labels else {}
    data, revisions = addressed(data, before.get("revisions", {}))
    listed, labels, notes = data_set(data, columns, table, revisions)
    shards, subset, of_choice = choose(listed, labels, wanted)
    return PlannedImages(shards, labels, revisions, subset), [*notes, *of_choice]
