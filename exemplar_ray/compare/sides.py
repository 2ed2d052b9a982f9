"""What is compared: A and B, each a store of activations or a run, read by its folder."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from exemplar_ray.activations.job_names import WHOLE
from exemplar_ray.data.planned_images import PlannedImages
from exemplar_ray.data.shard import Shard
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.plan import HISTOGRAMS
from exemplar_ray.network.layers import Layer
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.results.run import Run, open_run
from exemplar_ray.results.store import Store, open_store
from exemplar_ray.runs.manifest import job_of
from exemplar_ray.runs.ranked import digests
from exemplar_ray.runs.run_folder import RunFolder

_STORE, _RUN = "activations", "exemplars"
_FLOAT32 = "float32"


class Readout(NamedTuple):
    """What a comparison has of each image: a layer, pooled."""

    layer: str
    pool: str


class Side:
    """A or B.

    Args:
        letter: which.
        uri: of its folder.

    Raises:
        UsageError: it is neither a store nor a run, or has no result yet.
    """

    def __init__(self, letter: str, uri: str) -> None:
        self.letter = letter
        self.folder = RunFolder(uri)
        values = self.folder.read_run()
        job = job_of(values)
        if job not in (_STORE, _RUN):
            raise UsageError(
                f"'{uri}' is a run folder of the job {job}; compare takes stores of activations, and runs of exemplars"
            )
        self.store: Store | None = open_store(uri) if job == _STORE else None
        self.run: Run | None = open_run(uri) if job == _RUN else None
        self.images = PlannedImages.from_json(values)
        self._values = values

    @property
    def uri(self) -> str:
        """Where it is, as it means the same in every process."""
        return self.folder.full_uri

    @cached_property
    def network(self) -> NetworkSpec:
        """Return which network it is of."""
        return self.store.network if self.store is not None else self._of_run.plan.spec.network

    @property
    def _of_run(self) -> Run:
        assert self.run is not None
        return self.run

    @property
    def shards(self) -> list[Shard]:
        """Return the shards whose images these are."""
        return self.images.shards

    @property
    def count(self) -> int:
        """Return how many images these are."""
        return len(self.store) if self.store is not None else self._of_run.summary.scored

    @property
    def skipped(self) -> int:
        """Return how many could not be decoded."""
        return int(self.store.summary["skipped"]) if self.store is not None else self._of_run.summary.skipped

    @property
    def readouts(self) -> list[Readout]:
        """Return what there is of each image, but for whole maps."""
        pools = self.store.pools if self.store is not None else self._of_run.plan.spec.statistics
        return [Readout(layer.name, pool) for layer in self.network.layers for pool in pools if pool != WHOLE]

    def layer(self, name: str) -> Layer:
        """Return one of its layers."""
        return next(layer for layer in self.network.layers if layer.name == name)

    @property
    def computed(self) -> dict[str, str]:
        """Return how its activations were computed, as far as that changes them."""
        if self.store is not None:
            return {"decode": self._values["spec"]["decode"], "precision": _FLOAT32}
        spec = self._of_run.plan.spec
        return {"decode": spec.decode, "precision": spec.precision}

    @property
    def rules(self) -> dict[str, Any]:
        """Return which images are left out of exemplars."""
        if self.store is not None:
            return {"distinct": False, "max_per_class": None}
        spec = self._of_run.plan.spec
        return {"distinct": spec.distinct, "max_per_class": spec.max_per_class}

    @property
    def most_exemplars(self) -> int | None:
        """Return how many a channel has; None for as many as are asked for."""
        return None if self.store is not None else self._of_run.plan.spec.top_k

    def digest(self, readout: Readout) -> str:
        """Return a SHA-256 (hex) of all that is compared of a layer."""
        if self.store is not None:
            return self.store.digest(*readout)
        histograms = self.folder.read(HISTOGRAMS) if self.folder.exists(HISTOGRAMS) else b""
        said = (self._of_run.plan.fingerprint, hashlib.sha256(histograms).hexdigest(), digests(self.folder, *readout))
        return hashlib.sha256(repr(said).encode()).hexdigest()

    @property
    def warnings(self) -> list[str]:
        """Return what must be in plain sight of it."""
        found = []
        if not self.network.trained:
            found.append(f"{self.letter} is an UNTRAINED NETWORK: random weights")
        partial = self._of_run.partial if self.store is None else self.store.summary.get("partial")
        if partial:
            found.append(f"{self.letter} is a PARTIAL RESULT: only {partial}")
        if self.images.subset is not None:
            found.append(f"{self.letter} is A PART OF THE DATA: {self.images.subset.words}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return what pages say of it: plain JSON values."""
        skipped = f", {self.skipped:,} skipped" if self.skipped else ""
        return {
            "uri": self.folder.uri,
            "is_store": self.store is not None,
            "network": self.network.kept_in("").to_json(),
            "title": self.network.title,
            "said": f"{self.count:,} images{skipped}, {'store' if self.store is not None else 'run'} {self.folder.uri}",
            "warnings": self.warnings,
            "fingerprint": self._values["fingerprint"],
        }


def ids_of(store: Store, by: str) -> pa.Table:
    """Return the columns that name a store's images."""
    return store.rows.select(["image_path"] if by == "image_path" else ["shard", "row"])
