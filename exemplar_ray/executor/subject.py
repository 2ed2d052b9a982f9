"""What a job about a network's channels is of: a finished run, or a network and layers by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from exemplar_ray.errors import UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.network.layers import Layer, parse_channels
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

    def with_channels(self, channels: str | None) -> Subject:
        """Return the same of some channels only; None for all that there are.

        Raises:
            UsageError: one of them is not in the run.
        """
        if channels is None:
            return self
        layers = tuple(_of_channels(layer, channels) for layer in self.network.layers)
        return replace(self, network=replace(self.network, layers=layers))


def _of_channels(layer: Layer, channels: str) -> Layer:
    wanted = parse_channels(channels, layer.channel_count)
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
    return Subject(network, tuple(spec["statistics"]), other_size, folder)


def of_model(asked: NetworkRequest, statistics: tuple[str, ...], cluster: Cluster, resolve: str) -> Subject:
    """Build and question a network that no run has.

    Args:
        resolve: the task that does so: `module:function`, from a NetworkRequest to a KnownNetwork.

    Raises:
        UsageError: it cannot be had, or is no function of the image.
    """
    if not cluster.brings_working_folder:
        asked = asked.with_whole_paths()
    known = cluster.call(resolve, asked, "the model cannot be built")
    return Subject(known.spec, statistics, known.answers.other_size)
