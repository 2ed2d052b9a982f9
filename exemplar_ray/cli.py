"""The command line. Imports what a command needs when it runs: `status` needs no torch or Ray."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import fsspec
import yaml
from rich.console import Console

import exemplar_ray
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.interruption import interruptible
from exemplar_ray.progress import say

COMPLETE, INCOMPLETE, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with near matches for a misspelt flag."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if message.startswith("unrecognized") and unknown:
            close = difflib.get_close_matches(unknown[0], self._flags(), n=1)
            message += f"; did you mean {close[0]}?" if close else f"; see {self.prog} --help"
        raise UsageError(message)

    def _flags(self) -> set[str]:
        """Return every flag of this parser and of its commands."""
        flags = {flag for action in self._actions for flag in action.option_strings}
        commands = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        return flags.union(*(command._flags() for choices in commands for command in choices.values()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0: complete; 1: finished but incomplete; 2: bad usage or a refused run folder;
    130: interrupted.
    """
    console = Console()
    errors = Console(stderr=True)
    try:
        with interruptible():
            options = _parser().parse_args(arguments)
            return options.command(options, console)
    except UsageError as error:
        say(errors, "exemplar-ray: error: " + " ".join(str(error).split()))
        return BAD_USAGE
    except PermissionError as error:
        say(
            errors,
            "exemplar-ray: error: access denied: "
            + " ".join(str(error).split())
            + "; check permissions or credentials",
        )
        return BAD_USAGE
    except OSError as error:
        # Not a bug: a folder that cannot be written, a full disk, a server that is gone.
        say(errors, f"exemplar-ray: error: {type(error).__name__}: " + " ".join(str(error).split()))
        return BAD_USAGE
    except Exception as error:
        # No credentials, no region: the user's, but no OSErrors. Not imported, as `status` of a local run needs no AWS.
        if type(error).__module__ != "botocore.exceptions":
            raise
        say(errors, "exemplar-ray: error: " + " ".join(str(error).split()) + "; check `aws configure`")
        return BAD_USAGE
    except KeyboardInterrupt:
        say(errors, "exemplar-ray: interrupted; finished shards are kept, run the same command to go on")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="exemplar-ray", description=exemplar_ray.__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"exemplar-ray {exemplar_ray.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=function)
        return sub

    sub = command("sample-data", _sample_data, "write the embedded default data set: parquet shards, offline")
    sub.add_argument("dir", metavar="DIR", help="a new or empty folder")

    sub = command("shard", _shard, "any image folder or Hugging Face data set -> parquet shards")
    sub.add_argument("source", metavar="SOURCE", help="a folder of images, or the name of a data set on the Hub")
    sub.add_argument("dir", metavar="DIR", help="a new or empty folder")
    sub.add_argument("--split", default="train", help="which split of a Hub data set (default: train)")
    sub.add_argument("--rows-per-shard", type=int, default=4000, metavar="N", help="default: 4000")

    sub = command("run", _run, "scan what is pending, merge, gather; running it again is the rerun")
    sub.add_argument("--config", metavar="FILE.yaml", help="a file with any of the keys below; a flag wins")
    _add_keys(sub, _RUN_KEYS)

    sub = command("plan", _plan, "what a run would do, how long it would take and cost; scans 200 images to find out")
    sub.add_argument("--config", metavar="FILE.yaml", help="a file with any of the keys below; a flag wins")
    sub.add_argument("--price", type=float, metavar="P", help="of one hour of all machines together")
    sub.add_argument(
        "--tasks", type=int, nargs="+", default=[], metavar="N", help="what so many tasks at once would do"
    )
    _add_keys(sub, {key: value for key, value in _RUN_KEYS.items() if key not in ("class_labels", "max_skipped")})

    sub = command("status", _status, "shards done, failed and pending, rows, skipped images, last errors")
    sub.add_argument("run", metavar="RUN", help="a run folder")

    sub = command("merge", _merge, "merge and gather what is there, without scanning")
    sub.add_argument("run", metavar="RUN", help="a run folder")
    sub.add_argument("--allow-partial", action="store_true", help="even if shards are missing; the result says so")
    _add_keys(sub, {key: _RUN_KEYS[key] for key in ("address", "retries", "settle")})

    sub = command("report", _report, "pages to look at: every channel a tile and a page, from disk or any web server")
    sub.add_argument("run", metavar="RUN", help="a run folder with a result")
    sub.add_argument(
        "--out", metavar="DIR", help="where to write the pages (default: RUN/report), or the figure's file"
    )
    sub.add_argument("--without-images", action="store_true", help="paths, rows and numbers only")
    of_figure = sub.add_argument_group("instead of pages, a figure for a paper: rows are channels, columns ranks")
    of_figure.add_argument(
        "--figure", metavar="LAYER:CHANNELS", help="such as mixed4a:0-9; --out is a .pdf, .svg or .png"
    )
    _add_keys(of_figure, _FIGURE_KEYS)

    sub = command(
        "publish", _publish, "put a result and its pages on the Hugging Face Hub as a data set, in one commit"
    )
    sub.add_argument("run", metavar="RUN", help="a run folder with a result")
    sub.add_argument("repository", metavar="USER/NAME", help="the data set's name on the Hub; made if there is none")
    sub.add_argument("--dry-run", metavar="DIR", help="write what would be uploaded to a new or empty folder instead")
    sub.add_argument("--without-images", action="store_true", help="paths, rows and numbers only")
    sub.add_argument("--private", action="store_true", help="for nobody else to see")
    sub.add_argument("--licence", metavar="ID", help="such as cc-by-4.0, for the card (default: left open)")
    sub.add_argument("--message", metavar="TEXT", help="of the commit")
    return parser


def _yaml_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no YAML: {' '.join(str(error).split())}") from error


# key -> (type, metavar, help); a type of `list` takes several values, of `bool` none.
_RUN_KEYS: dict[str, tuple[Any, str, str]] = {
    "data": (list, "URI", "parquet shards: files, folders or globs, local, s3://, hf://, ..."),
    "out": (str, "RUN", "the run folder, local or remote"),
    "model": (
        str,
        "NAME",
        "inceptionv1 (default), inceptionv1-tf, efficientnet-lite0, torchvision:NAME, or file.py:factory",
    ),
    "weights": (str, "WHICH", "pretrained (default), random:SEED, or the path of a state dict"),
    "layer": (list, "NAME", "one or several module names (default: mixed4a)"),
    "channels": (str, "WHICH", "all (default), 0-9, or 0,3,7"),
    "statistic": (list, "NAME", "one or several of mean (default), max, center"),
    "top_k": (int, "K", "exemplars a channel (default: 10)"),
    "sample": (list, "NAME", "beside top, the strongest: bottom, random, and percentiles: q99, q95, q90, q50, ..."),
    "distinct": (bool, "", "also a sample `distinct`: the strongest without near-duplicates"),
    "max_per_class": (int, "N", "at most N of a class in the sample `distinct` (default: any number)"),
    "class_top_k": (int, "K", "also the K strongest images of every class (default: 0)"),
    "seed": (int, "N", "of the images that samples draw (default: 0)"),
    "preprocess": (
        _yaml_value,
        "MAP",
        "over the model's own, such as '{resize: 256, mean: [123, 117, 104]}'",
    ),
    "class_labels": (str, "FILE", 'names of the classes: {"0": ["n01440764", "tench"], ...}'),
    "precision": (str, "TYPE", "of the scan: float32 (default), bfloat16, float16; exemplars are exact all the same"),
    "decode": (str, "HOW", "in the scan: reference (default), fast: off by a level of 255 at most, or gpu"),
    "margin": (int, "N", "candidates a channel that the scan keeps beyond K (default: as many as K; 3 K if screened)"),
    "settle": (bool, "", "scan once more for channels that screening leaves in doubt (default: yes)"),
    "max_skipped": (int, "N", "undecodable images a shard may have before it fails (default: 0)"),
    "address": (str, "ADDRESS", "the Ray cluster (default: RAY_ADDRESS, or a Ray of its own on this machine)"),
    "batch_size": (int, "N", "images a forward pass (default: 8 a CPU, 128 on a GPU)"),
    "compile": (str, "WHEN", "the network, for CPUs: auto (default: from 5,000 images), always, never"),
    "cpus_per_task": (int, "N", "default: 1 without a GPU, the GPU's share of the CPUs with one"),
    "gpus_per_task": (float, "N", "default: 1 where the cluster has GPUs, else 0"),
    "retries": (int, "N", "attempts after a lost worker or a time-out (default: 3)"),
}


# As above.
_FIGURE_KEYS: dict[str, tuple[Any, str, str]] = {
    "ranks": (str, "WHICH", "such as 1-9 (default: the first ten)"),
    "statistic": (str, "NAME", "default: the run's first"),
    "sample": (str, "NAME", "top (default), or another of the run's samples"),
    "captions": (bool, "", "with the class below each picture"),
}


def _add_keys(parser: argparse._ActionsContainer, keys: dict[str, tuple[Any, str, str]]) -> None:
    for key, (kind, metavar, text) in keys.items():
        flag = "--" + key.replace("_", "-")
        if kind is bool:
            parser.add_argument(flag, help=text, default=argparse.SUPPRESS, action=argparse.BooleanOptionalAction)
            continue
        several = {"nargs": "+"} if kind is list else {"type": kind}
        parser.add_argument(flag, metavar=metavar, help=text, default=argparse.SUPPRESS, **several)


def _settings(options: argparse.Namespace, required: Sequence[str] = ("data", "out")) -> dict[str, Any]:
    """Lay the flags over the config file's keys."""
    settings: dict[str, Any] = {}
    if options.config:
        settings = _read_config(options.config)
    settings.update({key: value for key, value in vars(options).items() if key in _RUN_KEYS})
    for key in required:
        if not settings.get(key):
            raise UsageError(f"--{key} is missing: give it as a flag or as a key of --config")
    if isinstance(settings["data"], str):
        settings["data"] = [settings["data"]]
    for key in ("out", "class_labels", "address"):
        if settings.get(key) is not None and not isinstance(settings[key], str):
            raise UsageError(f"{key} is a text, not {settings[key]!r}")
    if not isinstance(settings["data"], list) or not all(isinstance(uri, str) for uri in settings["data"]):
        raise UsageError(f"data is one URI or several, not {settings['data']!r}")
    if not isinstance(settings.get("settle", True), bool):
        raise UsageError(f"settle is true or false, not {settings['settle']!r}")
    skipped = settings.get("max_skipped", 0)
    if not isinstance(skipped, int) or skipped < 0:
        raise UsageError(f"max_skipped is a whole number from 0, not {skipped!r}")
    return settings


def _read_config(uri: str) -> dict[str, Any]:
    try:
        with fsspec.open(uri, "rb") as file:
            config = yaml.safe_load(file) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"config '{uri}' cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"config '{uri}' is a mapping of keys to values, not a {type(config).__name__}")
    for key in config:
        if key not in _RUN_KEYS:
            raise UsageError(f"config '{uri}' has an unknown key '{key}'; {near_matches(str(key), _RUN_KEYS)}")
    return config


def _pick(cls: type, settings: dict[str, Any]) -> Any:
    """Make a dataclass from those settings that are its fields."""
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{key: value for key, value in settings.items() if key in names})


def _run(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray import job
    from exemplar_ray.cluster import Resources
    from exemplar_ray.spec import RunSpec

    settings = _settings(options)
    outcome = job.run(
        _pick(RunSpec, settings),
        settings["data"],
        settings["out"],
        _pick(Resources, settings),
        console,
        class_labels=settings.get("class_labels"),
        max_skipped=settings.get("max_skipped", 0),
        settle=settings.get("settle", True),
    )
    return _finish(outcome, settings["out"], "exemplar-ray " + shlex.join(sys.argv[1:]), console)


def _plan(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.cluster import Resources
    from exemplar_ray.forecast import forecast
    from exemplar_ray.spec import RunSpec

    settings = _settings(options, required=("data",))
    if options.price is not None and options.price < 0:
        raise UsageError(f"price is a number from 0, not {options.price:g}")
    if any(tasks < 1 for tasks in options.tasks):
        raise UsageError(f"tasks is a whole number from 1, not {min(options.tasks)}")
    spec, resources = _pick(RunSpec, settings), _pick(Resources, settings)
    for line in forecast(spec, settings["data"], resources, options.price, options.tasks):
        say(console, line)
    return COMPLETE


def _merge(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray import job
    from exemplar_ray.cluster import Resources

    outcome = job.merge(
        options.run, _pick(Resources, vars(options)), console, options.allow_partial, getattr(options, "settle", True)
    )
    return _finish(outcome, options.run, "the run command", console)


def _finish(outcome: Any, run_folder: str, rerun: str, console: Console) -> int:
    if outcome.failed:
        say(console, f"INCOMPLETE: {len(outcome.failed)} of {len(outcome.plan.shards)} shards have no result:")
        for shard, reason in outcome.failed.items():
            say(console, f"  {shard}: {reason}")
        say(console, f"to scan only these again: {rerun}")
        say(console, f"or to merge what is there: exemplar-ray merge {shlex.quote(run_folder)} --allow-partial")
    return COMPLETE if outcome.complete else INCOMPLETE


def _status(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.status import describe

    lines, complete = describe(options.run)
    for line in lines:
        say(console, line)
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


def _publish(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.publish import prepare, publish

    images = not options.without_images
    if options.dry_run is not None:
        files, size = prepare(options.run, options.repository, options.dry_run, images, options.licence)
        say(console, f"to be uploaded to {options.repository}: {files} files, {size / 1e6:.1f} MB: {options.dry_run}")
        return COMPLETE
    commit = publish(options.run, options.repository, images, options.private, options.licence, options.message)
    say(console, f"published: {commit}")
    return COMPLETE


def _sample_data(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.sample_data import write_sample_data

    paths, images = write_sample_data(options.dir)
    say(console, f"{images} images in {len(paths)} shards: {options.dir}")
    return COMPLETE


def _shard(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.sharding import write_shards

    paths, images = write_shards(options.source, options.dir, options.split, options.rows_per_shard)
    say(console, f"{images} images in {len(paths)} shards: {options.dir}")
    return COMPLETE
