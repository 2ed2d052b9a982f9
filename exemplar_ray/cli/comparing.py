"""The command that compares two sets of images, or two networks."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

from rich.console import Console

from exemplar_ray.cli.common import add_command, finish
from exemplar_ray.compare.options import CompareOptions
from exemplar_ray.config import COMPARE_KEYS, add_keys, pick, settings_of
from exemplar_ray.executor.progress import say
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars.spec import RunOptions


def add_compare(commands: Any) -> None:
    """Add it."""
    text = (
        "two sets of images in one network, of which A is the reference (real images) and B is held against it "
        "(generated ones), or two networks over the same images: numbers and pages; running it again is the rerun"
    )
    sub = add_command(commands, "compare", _compare, text)
    sub.add_argument("a", metavar="A", help="a store of activations, or a run: the reference")
    sub.add_argument("b", metavar="B", help="another")
    sub.add_argument("--config", metavar="FILE.yaml", help="a file with keys of those below; a flag wins")
    add_keys(sub, COMPARE_KEYS)


def _compare(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.compare import job
    from exemplar_ray.executor.cluster import Cluster

    settings = settings_of(options, required=("out",), keys=COMPARE_KEYS)
    run_options = pick(RunOptions, settings)
    given = job.asked(options.a, options.b, pick(CompareOptions, settings))
    # Nothing of it runs a network.
    resources = replace(pick(Resources, settings), gpus_per_task=0)
    with Cluster(resources, run_options.log_level, partial(say, console)) as cluster:
        outcome = job.compare(given, settings["out"], cluster, console)
    return finish(outcome, settings["out"], options.invocation.again, options.invocation, console)
