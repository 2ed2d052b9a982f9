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
    from exemplar_ray.executor.driver import JobOutcome

# What a run says of itself.
_SAID_BY_RUN = ("out", "model", "weights", "layer", "layout", "preprocess")

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
        refuse_said_already(run, _SAID_BY_RUN, settings)
    asked = pick(RunSpec, settings)
    pick(RunOptions, settings), pick(Resources, settings), pick(PictureOptions, settings)
    if run is not None and "statistic" in settings and len(asked.statistic) > 1:
        raise UsageError("pictures are made for one statistic at a time; name one with --statistic")


def make_pictures(run: str | None, settings: Mapping[str, Any], console: Console) -> tuple[JobOutcome, str]:
    """Make pictures of a finished run's channels, or of a network's.

    Args:
        run: the run's folder; None for a network, whose keys and `out` are among the settings then.

    Returns:
        How it ended, and where the pictures are.

    Raises:
        UsageError: something that was asked for cannot be done; nothing was computed.
    """
    from exemplar_ray.executor import subject as subjects
    from exemplar_ray.executor.cluster import Cluster
    from exemplar_ray.visualize import job

    refuse_impossible(run, settings)
    asked, log_level = pick(RunSpec, settings), pick(RunOptions, settings).log_level
    with Cluster(pick(Resources, settings), log_level, partial(say, console)) as cluster:
        statistic = None
        if run is not None:
            subject, out = subjects.of_run(run), job.below(run)
            subject = subject.with_channels(asked.channels if "channels" in settings else None)
            statistic = asked.statistic[0] if "statistic" in settings else None
        else:
            network = NetworkRequest(
                asked.model, asked.weights, asked.layer, asked.channels, asked.preprocess, asked.layout
            )
            subject, out = subjects.of_model(network, asked.statistic, cluster, job.RESOLVE), settings["out"]
        options = pick(PictureOptions, settings)
        return job.visualize(subject, out, options, cluster, console, statistic), out
