"""The command that maps a store's activations."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from rich.console import Console

from exemplar_ray.cli.common import add_command, finish
from exemplar_ray.config import EXPLORE_KEYS, add_keys, pick, settings_of
from exemplar_ray.executor.progress import say
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars.spec import RunOptions
from exemplar_ray.explore.spec import ExploreOptions
from exemplar_ray.keys import keys_of


def add_explore(commands: Any) -> None:
    """Add it."""
    text = "map a store's activations: a projection, clusters, what both are worth, and a page of all images"
    sub = add_command(commands, "explore", _explore, text)
    sub.add_argument("store", metavar="STORE", help="a finished store of activations")
    sub.add_argument(
        "--project", nargs="+", default=[], metavar="STORE", help="other images' stores, placed in the same map"
    )
    other = sub.add_mutually_exclusive_group()
    other.add_argument("--beside", metavar="STORE", help="the same images in another network, with a map of their own")
    other.add_argument(
        "--untrained", type=int, metavar="SEED", help="the same, with random weights, which are stored below STORE"
    )
    sub.add_argument("--config", metavar="FILE.yaml", help="a file with any of the keys below; a flag wins")
    # Only what an untrained network answers is computed on GPUs.
    names = ("out", *keys_of(ExploreOptions), "address", "cpus_per_task", "gpus_per_task", "retries", "log_level")
    add_keys(sub, {name: EXPLORE_KEYS[name] for name in names})


def _explore(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.executor.cluster import Cluster
    from exemplar_ray.explore import job
    from exemplar_ray.explore.untrained import store_untrained

    settings = settings_of(options, required=(), keys=EXPLORE_KEYS)
    wanted, log_level = pick(ExploreOptions, settings), pick(RunOptions, settings).log_level
    with Cluster(pick(Resources, settings), log_level, partial(say, console)) as cluster:
        beside = options.beside
        if options.untrained is not None:
            outcome, beside = store_untrained(
                options.store, wanted.layer, wanted.pool, options.untrained, cluster, console
            )
            if not outcome.complete:
                return finish(outcome, beside, options.invocation.again, options.invocation, console)
        outcome, out = job.explore(
            options.store, settings.get("out"), wanted, cluster, console, options.project, beside
        )
    return finish(outcome, out, options.invocation.again, options.invocation, console)
