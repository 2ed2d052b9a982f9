"""What a job about a network's channels is of: a finished run, or a network and layers by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.network.classes import are_names, channels_of, known_classes
from exemplar_ray.network.layers import Layer
from exemplar_ray.network.spec import NetworkRequest, NetworkSpec
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder

_RUN_RESULT = "exemplars.parquet"


@dataclass(frozen=True)
class Subject:
    """What a job is of."""

    network: NetworkSpec
    statistics: tuple[str, ...]
    other_size: str | None
    """Why the network refuses images of another size than its own; None if it takes them."""
    run: RunFolder | None = None
    """The finished run that it is of."""
    classes: ClassLabels | None = None
    """What the network's outputs may be, channel i class i; None where nothing tells."""

    def with_channels(self, channels: str | None) -> Subject:
        """Return the same of some channels only; None for all that there are.

        Args:
            channels: as `network.classes.channels_of` reads them.

        Raises:
            UsageError: one of them is not in the run.
        """
        if channels is None:
            return self
        layers = tuple(_of_channels(layer, channels, self.classes) for layer in self.network.layers)
        return replace(self, network=replace(self.network, layers=layers))


def _of_channels(layer: Layer, channels: str, classes: ClassLabels | None) -> Layer:
    wanted = channels_of(channels, layer, classes)
    lacking = sorted({*wanted} - {*layer.channels})
    if lacking:
        raise UsageError(f"channel {lacking[0]} of '{layer.name}' is not in the run; leave it out of --channels")
    return replace(layer, channels=wanted)


def of_run(uri: str) -> Subject:
    """Take network, layers, channels and statistics from a finished run.

    Raises:
        UsageError: there is no run, it has no result, or it is of a job without a network.
    """
    folder = RunFolder(uri)
    values = folder.read_run()
    spec = values.get("spec")
    if not isinstance(spec, Mapping) or "weights_sha256" not in spec or not spec.get("statistics"):
        raise UsageError(f"'{uri}' ranks no channels of a network; give --model, --layer and --out instead of it")
    if not folder.exists(_RUN_RESULT) or folder.read_json(SUMMARY) is None:
        raise UsageError(f"'{uri}' has no result yet, that anything could be held against; finish it first")
    network = NetworkSpec.from_json(spec).kept_in(folder.full_uri)
    other_size = (values.get("questions") or {}).get("other_size")
    labels = values.get("class_labels")
    classes = ClassLabels.from_json(labels) if labels else None
    return Subject(network, tuple(spec["statistics"]), other_size, folder, classes)


def of_model(asked: NetworkRequest, statistics: tuple[str, ...], cluster: Cluster, resolve: str) -> Subject:
    """Build and question a network that no run has.

    Args:
        resolve: the task that does so: `module:function`, from a NetworkRequest to a KnownNetwork.

    Raises:
        UsageError: it cannot be had, or is no function of the image.
    """
    named = asked.channels if are_names(asked.channels) else None
    if named is not None:
        # Which these are, is known when it is known how many channels there are.
        asked = replace(asked, channels="all")
    if not cluster.brings_working_folder:
        asked = asked.with_whole_paths()
    known = cluster.call(resolve, asked, "the model cannot be built")
    classes = known_classes(asked.model, asked.weights)
    subject = Subject(known.spec, statistics, known.answers.other_size, classes=classes)
    return subject.with_channels(named)
