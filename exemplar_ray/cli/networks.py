"""Commands that look at a network: its layers, whether it is the right one, what its channels look for."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from rich.console import Console

from exemplar_ray.check.options import CheckOptions
from exemplar_ray.circuits.spec import CircuitOptions
from exemplar_ray.cli.common import COMPLETE, INCOMPLETE, add_command, finish, matplotlib_wanted
from exemplar_ray.config import CHECK_KEYS, CIRCUITS_KEYS, RUN_KEYS, VISUALIZE_KEYS, add_keys, pick, settings_of
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.progress import say
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars.spec import RunOptions, RunSpec, columns_chosen
from exemplar_ray.keys import keys_of
from exemplar_ray.pictures import PICTURE_KEYS, SAID_BY_RUN, make_pictures, refuse_said_already, subject_of

# What a run folder says to `check`.
_OF_NETWORK = ("data", "model", "weights", "preprocess", "class_labels", "image_column", "label_column", "split")


def add_layers(commands: Any) -> None:
    """Add them."""
    text = "every module of a network that can be a layer: its output, channels, receptive field; and why others cannot"
    sub = add_command(commands, "layers", _layers, text)
    add_keys(sub, {key: RUN_KEYS[key] for key in ("model", "preprocess")})


def add_check(commands: Any) -> None:
    """Add them."""
    text = "is this network what we think: top-1 and top-5 on labelled images, whether another preprocessing is better"
    sub = add_command(commands, "check", _check, text)
    sub.add_argument("run", metavar="RUN", nargs="?", help="a run folder, instead of --model and --data")
    sub.add_argument("--config", metavar="FILE.yaml", help="a file with keys of a run, or of those below; a flag wins")
    unused = keys_of(RunSpec).keys() - set(_OF_NETWORK) | {"out", "max_skipped", "settle", "compile"}
    # What both have means something of its own here.
    unused -= keys_of(CheckOptions).keys()
    add_keys(sub, {key: value for key, value in CHECK_KEYS.items() if key not in unused})


def add_visualize(commands: Any) -> None:
    """Add them."""
    text = "what each channel looks for: the picture that an optimiser makes for it, beside what real images do"
    sub = add_command(commands, "visualize", _visualize, text)
    sub.add_argument("run", metavar="RUN", nargs="?", help="a finished run, instead of --model, --layer and --out")
    sub.add_argument("--config", metavar="FILE.yaml", help="a file with keys of a run, or of those below; a flag wins")
    add_keys(sub, PICTURE_KEYS)


def add_circuits(commands: Any) -> None:
    """Add them."""
    text = "what each channel is made of: which channels of the layer before feed it, and with which kernels"
    sub = add_command(commands, "circuits", _circuits, text)
    sub.add_argument("run", metavar="RUN", nargs="?", help="a finished run, instead of --model, --layer and --out")
    sub.add_argument("--config", metavar="FILE.yaml", help="a file with keys of a run, or of those below; a flag wins")
    of_network = ("out", "model", "weights", "layer", "channels", "layout", "statistic", "preprocess")
    keys = (*of_network, *keys_of(CircuitOptions), *keys_of(Resources), "log_level")
    add_keys(sub, {key: CIRCUITS_KEYS[key] for key in keys})


def _layers(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.executor.machine import cpus
    from exemplar_ray.network.list_layers import layers_of_model

    asked = pick(RunSpec, vars(options))
    for line in layers_of_model(asked.model, asked.preprocess, console.width, cpus()):
        say(console, line)
    return COMPLETE


def _check(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.check import job
    from exemplar_ray.check.looking import AskedNetwork
    from exemplar_ray.executor.cluster import Cluster

    settings = settings_of(options, required=() if options.run else ("data",), keys=CHECK_KEYS)
    asked, run_options = pick(RunSpec, settings), pick(RunOptions, settings)
    check_options = pick(CheckOptions, settings)
    if check_options.figure is not None:
        with matplotlib_wanted():
            from exemplar_ray.report import check_figure
        check_figure.ending_of(check_options.figure)
    if options.run is None:
        network = AskedNetwork(asked.model, asked.weights, asked.preprocess)
        subject = job.of_model(network, settings["data"], columns_chosen(asked), run_options.class_labels)
    else:
        refuse_said_already(options.run, _OF_NETWORK, settings)
        subject = job.of_run(options.run)
    with Cluster(pick(Resources, settings), run_options.log_level, partial(say, console)) as cluster:
        checked = job.check(subject, cluster, console, check_options)
    if check_options.figure is not None:
        check_figure.write_check_figure(checked.findings, checked.pictures, check_options.figure)
        say(console, f"figure: {check_options.figure}")
    return INCOMPLETE if checked.findings.failed else COMPLETE


def _visualize(options: argparse.Namespace, console: Console) -> int:
    settings = settings_of(options, required=() if options.run else ("layer", "out"), keys=VISUALIZE_KEYS)
    outcome, out = make_pictures(options.run, settings, console)
    return finish(outcome, out, options.invocation.again, options.invocation, console)


def _circuits(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.circuits import job
    from exemplar_ray.executor.cluster import Cluster
    from exemplar_ray.report.circuits_page import write_circuits_page

    settings = settings_of(options, required=() if options.run else ("layer", "out"), keys=CIRCUITS_KEYS)
    circuit_options, run_options = pick(CircuitOptions, settings), pick(RunOptions, settings)
    asked = pick(RunSpec, settings)
    if options.run is not None:
        refuse_said_already(options.run, SAID_BY_RUN, settings)
        if len(settings.get("statistic", [])) > 1:
            raise UsageError("circuits are made for one statistic at a time; name one with --statistic")
    with Cluster(pick(Resources, settings), run_options.log_level, partial(say, console)) as cluster:
        subject = subject_of(options.run, settings, cluster, job.RESOLVE)
        out = settings["out"] if options.run is None else job.below(options.run)
        statistic = asked.statistic[0] if "statistic" in settings else None
        outcome = job.circuits(subject, out, circuit_options, cluster, console, statistic)
    if options.run is None and outcome.complete:
        say(console, f"drawn: {write_circuits_page(out)}")
    return finish(outcome, out, options.invocation.again, options.invocation, console)
