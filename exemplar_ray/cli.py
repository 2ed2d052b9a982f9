"""The command line. Imports what a command needs when it runs: `status` needs no torch or Ray."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

import exemplar_ray
from exemplar_ray.check.options import CheckOptions
from exemplar_ray.config import CHECK_KEYS, RUN_KEYS, add_keys, pick, settings_of
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.interruption import interruptible
from exemplar_ray.executor.invocation import Invocation, invocation_of
from exemplar_ray.executor.progress import say
from exemplar_ray.executor.resources import Resources
from exemplar_ray.executor.terminal import printable, said_of
from exemplar_ray.exemplars.spec import RunOptions, RunSpec, columns_chosen
from exemplar_ray.keys import Key, keys_of
from exemplar_ray.storage.hub_uri import is_on_hub

if TYPE_CHECKING:
    from exemplar_ray.executor.driver import JobOutcome

Command = Callable[[argparse.Namespace, Console], int]

COMPLETE, INCOMPLETE, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with near matches for a misspelt flag."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if message.startswith("unrecognized") and unknown:
            close = difflib.get_close_matches(unknown[0], self._flags(), n=1)
            message += (
                f"; did you mean {close[0]}?" if close and close[0] != unknown[0] else f"; see {self.prog} --help"
            )
        raise UsageError(message)

    def _flags(self) -> set[str]:
        """Return every flag of this parser and of its commands."""
        flags = {flag for action in self._actions for flag in action.option_strings}
        commands = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        return flags.union(*(command._flags() for choices in commands for command in choices.values()))


def main(arguments: Sequence[str] | None = None, script: Sequence[str] = ()) -> int:
    """Run one command and return the exit status.

    0: complete; 1: finished but incomplete; 2: bad usage or a refused run folder;
    130: interrupted.

    Args:
        arguments: those of the command line if None.
        script: where a program of its own gives the arguments, the words that it was started with; without them the
            commands that are printed are calls of this function.
    """
    invocation = invocation_of(arguments, script)
    with printable(sys.stdout, sys.stderr):
        console = Console()
        errors = Console(stderr=True)
        try:
            with interruptible():
                options = build_parser().parse_args(invocation.arguments)
                options.invocation = invocation
                return options.command(options, console)
        except KeyboardInterrupt:
            # Who submitted a job reads this elsewhere, and later, than where it was submitted.
            which = f"{invocation.beside}: {invocation.again}" if invocation.is_submitted else ""
            say(errors, f"exemplar-ray: interrupted; finished shards are kept, run the same command to go on{which}")
            return INTERRUPTED
        except Exception as error:
            line = said_of(error)
            if line is None:
                raise
            say(errors, f"exemplar-ray: error: {line}")
            return BAD_USAGE


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command; the options it gives have the command's function as `command`."""
    parser = _Parser(prog="exemplar-ray", description=exemplar_ray.__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"exemplar-ray {exemplar_ray.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_data_commands, _add_run_commands, _add_layers, _add_check, _add_report, _add_publish):
        add(commands)
    return parser


def _add(commands: Any, name: str, function: Command, text: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    sub.set_defaults(command=function)
    return sub


def _add_data_commands(commands: Any) -> None:
    sub = _add(commands, "sample-data", _sample_data, "write the embedded default data set: parquet shards, offline")
    sub.add_argument("dir", metavar="DIR", help="a new or empty folder")

    sub = _add(commands, "shard", _shard, "any image folder or Hugging Face data set -> parquet shards")
    sub.add_argument("source", metavar="SOURCE", help="a folder of images, or the name of a data set on the Hub")
    sub.add_argument("dir", metavar="DIR", help="a new or empty folder")
    sub.add_argument("--split", default="train", help="which split of a Hub data set (default: train)")
    sub.add_argument("--rows-per-shard", type=int, default=4000, metavar="N", help="default: 4000")
    sub.add_argument("--image-column", metavar="NAME", help="of a Hub data set (default: as of run)")
    sub.add_argument("--label-column", metavar="NAME", help="of a Hub data set (default: as of run); none: no labels")


def _add_run_commands(commands: Any) -> None:
    config: dict[str, Any] = {"metavar": "FILE.yaml", "help": "a file with any of the keys below; a flag wins"}
    sub = _add(commands, "run", _run, "scan what is pending, merge, gather; running it again is the rerun")
    sub.add_argument("--config", **config)
    add_keys(sub, RUN_KEYS)

    text = "what a run would do, how long it would take and cost; scans up to 200 images a task to find out"
    sub = _add(commands, "plan", _plan, text)
    sub.add_argument("--config", **config)
    sub.add_argument("--price", type=float, metavar="P", help="of one hour of all machines together")
    sub.add_argument(
        "--tasks", type=int, nargs="+", default=[], metavar="N", help="what so many tasks at once would do"
    )
    unused = ("class_labels", "max_skipped")
    add_keys(sub, {key: value for key, value in RUN_KEYS.items() if key not in unused})

    sub = _add(
        commands, "status", _status, "items (shards) done, failed and pending, rows, skipped images, last errors"
    )
    sub.add_argument("run", metavar="RUN", help="a run folder, of whichever job")

    sub = _add(commands, "merge", _merge, "merge and gather what is there, without scanning")
    sub.add_argument("run", metavar="RUN", help="a run folder")
    sub.add_argument("--allow-partial", action="store_true", help="even if shards are missing; the result says so")
    add_keys(sub, {key: RUN_KEYS[key] for key in ("address", "retries", "settle", "log_level")})


def _add_layers(commands: Any) -> None:
    text = "every module of a network that can be a layer: its output, channels, receptive field; and why others cannot"
    sub = _add(commands, "layers", _layers, text)
    add_keys(sub, {key: RUN_KEYS[key] for key in ("model", "preprocess")})


def _add_check(commands: Any) -> None:
    text = "is this network what we think: top-1 and top-5 on labelled images, whether another preprocessing is better"
    sub = _add(commands, "check", _check, text)
    sub.add_argument("run", metavar="RUN", nargs="?", help="a run folder, instead of --model and --data")
    sub.add_argument("--config", metavar="FILE.yaml", help="a file with keys of a run, or of those below; a flag wins")
    unused = keys_of(RunSpec).keys() - set(_OF_NETWORK) | {"out", "max_skipped", "settle", "compile"}
    # What both have means something of its own here.
    unused -= keys_of(CheckOptions).keys()
    add_keys(sub, {key: value for key, value in CHECK_KEYS.items() if key not in unused})


def _add_report(commands: Any) -> None:
    text = "pages to look at: every channel a tile and a page, from disk or any web server"
    sub = _add(commands, "report", _report, text)
    sub.add_argument("run", metavar="RUN", help="a run folder with a result")
    sub.add_argument(
        "--out", metavar="DIR", help="where to write the pages (default: RUN/report), or the figure's file"
    )
    sub.add_argument("--without-images", action="store_true", help="paths, rows and numbers only")
    of_figure = sub.add_argument_group("instead of pages, a figure for a paper: rows are channels, columns ranks")
    of_figure.add_argument(
        "--figure", metavar="LAYER:CHANNELS", help="such as mixed4a:0-9; --out is a .pdf, .svg or .png"
    )
    add_keys(of_figure, _FIGURE_KEYS)


def _add_publish(commands: Any) -> None:
    text = "put a result and its pages on the Hugging Face Hub as a data set, in one commit"
    sub = _add(commands, "publish", _publish, text)
    sub.add_argument("run", metavar="RUN", help="a run folder with a result")
    sub.add_argument("repository", metavar="USER/NAME", help="the data set's name on the Hub; made if there is none")
    sub.add_argument("--dry-run", metavar="DIR", help="write what would be uploaded to a new or empty folder instead")
    sub.add_argument("--without-images", action="store_true", help="paths, rows and numbers only")
    sub.add_argument("--private", action="store_true", help="for nobody else to see")
    sub.add_argument("--licence", metavar="ID", help="such as cc-by-4.0, for the card (default: left open)")
    sub.add_argument("--message", metavar="TEXT", help="of the commit")


# What a run folder says to `check`.
_OF_NETWORK = ("data", "model", "weights", "preprocess", "class_labels", "image_column", "label_column", "split")

# As `config.RUN_KEYS`.
_FIGURE_KEYS = {
    "ranks": (Key("WHICH", "such as 1-9 (default: the first ten)"), str),
    "statistic": (Key("NAME", "default: the run's first"), str),
    "sample": (Key("NAME", "top (default), or another of the run's samples"), str),
    "captions": (Key("", "with the class below each picture"), bool),
}


def _run(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.exemplars import job

    settings = settings_of(options)
    outcome = job.run(
        pick(RunSpec, settings),
        settings["data"],
        settings["out"],
        pick(Resources, settings),
        console,
        pick(RunOptions, settings),
    )
    return _finish(outcome, settings["out"], options.invocation.again, options.invocation, console)


def _plan(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.exemplars.forecast import forecast

    settings = settings_of(options, required=("data",))
    if options.price is not None and options.price < 0:
        raise UsageError(f"price is a number from 0, not {options.price:g}")
    if any(tasks < 1 for tasks in options.tasks):
        raise UsageError(f"tasks is a whole number from 1, not {min(options.tasks)}")
    spec, resources = pick(RunSpec, settings), pick(Resources, settings)
    for line in forecast(spec, settings["data"], resources, options.price, options.tasks):
        say(console, line)
    return COMPLETE


def _merge(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.exemplars import job

    run_options = pick(RunOptions, vars(options))
    outcome = job.merge(options.run, pick(Resources, vars(options)), console, options.allow_partial, run_options)
    rerun = "" if outcome.complete else _run_command(options)
    return _finish(outcome, options.run, rerun, options.invocation, console)


def _run_command(options: argparse.Namespace) -> str:
    """Return the command that scans what a run folder lacks, as far as its `run.json` tells."""
    from exemplar_ray.exemplars.plan import Plan
    from exemplar_ray.report.provenance import arguments_of
    from exemplar_ray.runs.run_folder import RunFolder

    given = vars(options)
    resources = [word for key in ("address", "retries") if key in given for word in (f"--{key}", str(given[key]))]
    arguments = arguments_of(Plan.read(RunFolder(options.run)), options.run)
    return options.invocation.command([*arguments, *resources])


def _finish(outcome: JobOutcome, run_folder: str, rerun: str, invocation: Invocation, console: Console) -> int:
    if outcome.failed:
        say(console, f"INCOMPLETE: {len(outcome.failed)} of {outcome.items} {outcome.items_name} have no result:")
        for item, reason in outcome.failed.items():
            say(console, f"  {item}: {reason}")
        partial = invocation.command(["merge", run_folder, "--allow-partial"])
        say(console, f"to scan only these again{invocation.beside}: {rerun}")
        say(console, f"or to merge what is there{invocation.beside}: {partial}")
    return COMPLETE if outcome.complete else INCOMPLETE


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
        with _matplotlib():
            from exemplar_ray.report import check_figure
        check_figure.ending_of(check_options.figure)
    if options.run is None:
        network = AskedNetwork(asked.model, asked.weights, asked.preprocess)
        subject = job.of_model(network, settings["data"], columns_chosen(asked), run_options.class_labels)
    else:
        for key in _OF_NETWORK:
            if key in settings:
                raise UsageError(f"{options.run} says already what {key} is; leave out --{key.replace('_', '-')}")
        subject = job.of_run(options.run)
    with Cluster(pick(Resources, settings), run_options.log_level, partial(say, console)) as cluster:
        checked = job.check(subject, cluster, console, check_options)
    if check_options.figure is not None:
        check_figure.write_check_figure(checked.findings, checked.pictures, check_options.figure)
        say(console, f"figure: {check_options.figure}")
    return INCOMPLETE if checked.findings.failed else COMPLETE


def _status(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.exemplars.plan import JOB
    from exemplar_ray.results.status import describe
    from exemplar_ray.runs.manifest import job_of
    from exemplar_ray.runs.run_folder import RunFolder

    lines, complete = describe(options.run)
    for line in lines:
        say(console, line)
    # What starts another job is not in its run folder; and on the Hub a run does not go on.
    if not complete and not is_on_hub(options.run) and job_of(RunFolder(options.run).read_run()) == JOB:
        say(console, f"to go on, as far as run.json tells{options.invocation.beside}: {_run_command(options)}")
    return COMPLETE if complete else INCOMPLETE


def _report(options: argparse.Namespace, console: Console) -> int:
    of_figure = {key: value for key, value in vars(options).items() if key in _FIGURE_KEYS}
    if options.figure is not None:
        return _figure(options, of_figure, console)
    if of_figure:
        raise UsageError(f"--{next(iter(of_figure))} is of a figure; say of which channels with --figure")
    from exemplar_ray.report.pages import write_report

    index = write_report(options.run, options.out, images=not options.without_images)
    say(console, f"pages: {index}")
    return COMPLETE


def _figure(options: argparse.Namespace, settings: dict[str, Any], console: Console) -> int:
    with _matplotlib():
        from exemplar_ray.report.figure import write_figure

    if options.out is None:
        raise UsageError("--out is missing: the figure's file, such as figure.pdf")
    if options.without_images:
        raise UsageError("a figure is made of images; leave out --without-images")
    lacking = write_figure(options.run, options.figure, options.out, **settings)
    if lacking:
        say(console, f"boxes stand for characters that the font lacks: {lacking[:40]}; an .svg shows them")
    say(console, f"figure: {options.out}")
    return COMPLETE


@contextmanager
def _matplotlib() -> Iterator[None]:
    """Say what is missing where figures cannot be drawn."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise UsageError("figures need one more package: pip install matplotlib") from error


def _publish(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.report.publish import prepare, publish

    images = not options.without_images
    if options.dry_run is not None:
        files, size = prepare(options.run, options.repository, options.dry_run, images, options.licence)
        say(console, f"to be uploaded to {options.repository}: {files} files, {size / 1e6:.1f} MB: {options.dry_run}")
        return COMPLETE
    commit = publish(options.run, options.repository, images, options.private, options.licence, options.message)
    say(console, f"published: {commit}")
    return COMPLETE


def _sample_data(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.data.sample_data import write_sample_data

    paths, images = write_sample_data(options.dir)
    say(console, f"{images} images in {len(paths)} shards: {options.dir}")
    return COMPLETE


def _shard(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.data.columns import Chosen
    from exemplar_ray.data.write_shards import write_shards

    notes: list[str] = []
    chosen = Chosen(options.image_column, options.label_column)
    paths, images = write_shards(options.source, options.dir, options.split, options.rows_per_shard, chosen, notes)
    for line in notes:
        say(console, line)
    say(console, f"{images} images in {len(paths)} shards: {options.dir}")
    return COMPLETE
