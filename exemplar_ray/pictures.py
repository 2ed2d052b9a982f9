"""The visualisations as the command and the function ask for them: from what the user sets to the job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from exemplar_ray.config import VISUALIZE_KEYS, pick
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.progress import say
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars.spec import RunOptions, RunSpec
from exemplar_ray.keys import keys_of
from exemplar_ray.network.spec import NetworkRequest
from exemplar_ray.visualize.spec import PictureOptions

if TYPE_CHECKING:
    from exemplar_ray.executor.cluster import Cluster
    from exemplar_ray.executor.driver import JobOutcome
    from exemplar_ray.executor.subject import Subject

SAID_BY_RUN = ("out", "model", "weights", "layer", "layout", "preprocess")
"""What a run says of itself to the jobs about its channels."""

PICTURE_KEYS = {
    key: VISUALIZE_KEYS[key]
    for key in (
        *("out", "model", "weights", "layer", "channels", "layout", "statistic", "preprocess"),
        *keys_of(PictureOptions),
        *keys_of(Resources),
        "log_level",
    )
}
"""What there is to be set, as `config.RUN_KEYS`."""


def refuse_said_already(run: str, keys: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Refuse what a run says of itself.

    Raises:
        UsageError: one of the keys is set.
    """
    for key in keys:
        if key in settings:
            raise UsageError(f"{run} says already what {key} is; leave out --{key.replace('_', '-')}")


def refuse_impossible(run: str | None, settings: Mapping[str, Any]) -> None:
    """Refuse what can be seen to be impossible without looking at a run or a network.

    Raises:
        UsageError: a value is none, or something is set that the run says.
    """
    if run is not None:
        refuse_said_already(run, SAID_BY_RUN, settings)
    asked = pick(RunSpec, settings)
    pick(RunOptions, settings), pick(Resources, settings), pick(PictureOptions, settings)
    if run is not None and "statistic" in settings and len(asked.statistic) > 1:
        raise UsageError("pictures are made for one statistic at a time; name one with --statistic")


def subject_of(run: str | None, settings: Mapping[str, Any], cluster: Cluster, resolve: str) -> Subject:
    """Return what a job about channels is of: a finished run, or a network that the settings name.

    Args:
        run: the run's folder; None for a network.
        resolve: see `executor.subject.of_model`.

    Raises:
        UsageError: it cannot be had, or a channel is not in the run.
    """
    from exemplar_ray.executor import subject as subjects

    asked = pick(RunSpec, settings)
    if run is not None:
        return subjects.of_run(run).with_channels(asked.channels if "channels" in settings else None)
    network = NetworkRequest(asked.model, asked.weights, asked.layer, asked.channels, asked.preprocess, asked.layout)
    return subjects.of_model(network, asked.statistic, cluster, resolve)


def make_pictures(run: str | None, settings: Mapping[str, Any], console: Console) -> tuple[JobOutcome, str]:
    """Make pictures of a finished run's channels, or of a network's.

    Args:
        run: the run's folder; None for a network, whose keys and `out` are among the settings then.

    Returns:
        How it ended, and where the pictures are.

    Raises:
        UsageError: something that was asked for cannot be done; nothing was computed.
    """
    from exemplar_ray.executor.cluster import Cluster
    from exemplar_ray.visualize import job

    refuse_impossible(run, settings)
    asked, log_level = pick(RunSpec, settings), pick(RunOptions, settings).log_level
    with Cluster(pick(Resources, settings), log_level, partial(say, console)) as cluster:
        subject = subject_of(run, settings, cluster, job.RESOLVE)
        out = settings["out"] if run is None else job.below(run)
        statistic = asked.statistic[0] if run is not None and "statistic" in settings else None
        options = pick(PictureOptions, settings)
        return job.visualize(subject, out, options, cluster, console, statistic), out
