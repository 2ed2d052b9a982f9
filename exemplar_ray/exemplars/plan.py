"""The plan of a run: everything that its `run.json` holds, and what its folder holds beside parts and records.

RUN/parts/000003.parquet          one shard's part: its candidates
RUN/parts/000003.moments.parquet  and its tallies, a file each
RUN/parts/000003.sampled.parquet  and images to draw samples from, if there are samples to draw
RUN/exemplars.parquet             the answer
RUN/channels.parquet              the distribution of every channel
RUN/histograms.parquet            and its histogram
RUN/classes.parquet               how much each class excites it
RUN/spectrum.parquet              the mean magnitude spectrum of the images
RUN/class_exemplars.parquet       the strongest images of each class, if asked for
RUN/images.parquet                the images of all samples but the top, if there are any
RUN/settling-*/                   a run inside the run: exact scans of channels that screening left in doubt
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.planned_images import PlannedImages
from exemplar_ray.data.shard import Shard
from exemplar_ray.data.subset import Subset, Wanted
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.spec import FORMAT_VERSION, ExemplarsSpec, RunSpec
from exemplar_ray.network.questions import Answers, KnownNetwork
from exemplar_ray.runs.identity import fingerprint
from exemplar_ray.runs.manifest import Manifest, job_of, refuse_other_format
from exemplar_ray.runs.records import CompletionRecord
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.runs.versions import Versions, kept
from exemplar_ray.storage.folder import Folder

JOB = "exemplars"

EXEMPLARS = "exemplars.parquet"
CHANNELS = "channels.parquet"
HISTOGRAMS = "histograms.parquet"
CLASSES = "classes.parquet"
CLASS_EXEMPLARS = "class_exemplars.parquet"
IMAGES = "images.parquet"
SPECTRUM = "spectrum.parquet"
RESCAN = "settling"


def images_wanted(spec: RunSpec) -> Wanted:
    """Return which images of the data the user wants."""
    return Wanted(spec.images, spec.per_class, spec.classes or (), spec.seed)


@dataclass(frozen=True)
class Plan:
    """What a run folder is for."""

    spec: ExemplarsSpec
    shards: list[Shard]
    class_labels: ClassLabels
    versions: dict[str, str]
    """Of the driver that began the run; what computed a part, its record says."""
    revisions: dict[str, str] = field(default_factory=dict)
    """The commits at which repositories on the Hub are read, as `hub.resolve_revisions` returns them."""
    answers: Answers | None = None
    """What the network answered when it was questioned; None in run folders from before that."""
    subset: Subset | None = None
    """Which part of the shards' images is searched; None for all."""

    @property
    def images(self) -> PlannedImages:
        """Return which images are searched."""
        return PlannedImages(self.shards, self.class_labels, self.revisions, self.subset)

    def identity(self) -> dict[str, Any]:
        """Return what decides the result, under the user's key names."""
        return {**self.spec.identity(), **self.images.identity()}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the identity."""
        return fingerprint(self.identity())

    def details(self) -> dict[str, Any]:
        """Return what `run.json` keeps beside identity and shards: plain JSON values."""
        return {
            "spec": replace(self.spec, network=self.spec.network.kept_in("")).to_json(),
            "versions": self.versions,
            **self.images.to_json(),
            "questions": self.answers.to_json() if self.answers else None,
        }

    def manifest(self) -> Manifest:
        """Return what the run folder is for."""
        return Manifest(JOB, self.identity(), self.shards, self.details())

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """Read back what its manifest wrote."""
        images = PlannedImages.from_json(values)
        return cls(
            spec=ExemplarsSpec.from_json(values["spec"]),
            shards=images.shards,
            class_labels=images.class_labels,
            versions=values["versions"],
            revisions=dict(images.revisions),
            answers=Answers.from_json(values["questions"]) if values.get("questions") else None,
            subset=images.subset,
        )

    def known_network(self) -> KnownNetwork | None:
        """Return the network as it was questioned."""
        return KnownNetwork(self.spec.network, self.answers) if self.answers else None

    @classmethod
    def read(cls, folder: RunFolder) -> Plan:
        """Read a run folder's plan.

        Raises:
            UsageError: there is none, it is of another job, or it was written by another version.
        """
        return cls.of_run(folder.read_run(), folder.uri)

    @classmethod
    def of_run(cls, values: Mapping[str, Any], uri: str) -> Plan:
        """Take the plan from what a run folder's `run.json` holds; see `read`."""
        if job_of(values) != JOB:
            raise UsageError(f"'{uri}' is a run folder of the job {job_of(values)}, which has no exemplars")
        refuse_other_format(values, FORMAT_VERSION, uri)
        plan = cls.from_json(values)
        if not plan.spec.network.is_in_hand:
            return plan
        network = plan.spec.network.kept_in(Folder(uri).full_uri)
        return replace(plan, spec=replace(plan.spec, network=network))


class ScannedShard(NamedTuple):
    """What the driver keeps of a shard's completion record: a run may have very many shards."""

    rows: int
    scored: int
    skipped: int
    seconds: float
    host: str
    device: str
    skipped_images: tuple[dict[str, Any], ...]
    not_finite: tuple[dict[str, Any], ...]
    versions: Versions | None = None
    """Of the worker that scanned it."""
    places: Sequence[int] | None = None
    """See `ShardReader.places`."""
    by_reference: bool = False
    """Whether it was scanned as gather recomputes, see `scan_job.scan_settings`."""

    @classmethod
    def of(cls, record: CompletionRecord) -> Self:
        """Take from a record what is kept of it."""
        facts = record.facts
        return cls(
            rows=facts["rows"],
            scored=facts["scored"],
            skipped=facts["skipped"],
            seconds=record.seconds,
            # There are few hosts and devices.
            host=sys.intern(record.host),
            device=sys.intern(facts["device"]),
            skipped_images=tuple(facts["skipped_images"]),
            not_finite=tuple(facts["not_finite"]),
            versions=kept(record.versions),
            places=array("I", facts["places"]) if "places" in facts else None,
            by_reference=facts.get("by_reference", False),
        )
