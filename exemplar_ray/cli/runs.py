"""Commands of the main job: run, plan, status, merge."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from exemplar_ray.cli.common import COMPLETE, INCOMPLETE, add_command, finish
from exemplar_ray.config import RUN_KEYS, add_keys, pick, settings_of
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.progress import say
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars.spec import RunOptions, RunSpec
from exemplar_ray.storage.hub_uri import is_on_hub


def add_run_commands(commands: Any) -> None:
    """Add them."""
    config: dict[str, Any] = {"metavar": "FILE.yaml", "help": "a file with any of the keys below; a flag wins"}
    sub = add_command(commands, "run", _run, "scan what is pending, merge, gather; running it again is the rerun")
    sub.add_argument("--config", **config)
    add_keys(sub, RUN_KEYS)

    text = "what a run would do, how long it would take and cost; scans up to 200 images a task to find out"
    sub = add_command(commands, "plan", _plan, text)
    sub.add_argument("--config", **config)
    sub.add_argument("--price", type=float, metavar="P", help="of one hour of all machines together")
    sub.add_argument(
        "--tasks", type=int, nargs="+", default=[], metavar="N", help="what so many tasks at once would do"
    )
    unused = ("class_labels", "max_skipped")
    add_keys(sub, {key: value for key, value in RUN_KEYS.items() if key not in unused})

    sub = add_command(
        commands, "status", _status, "items (shards) done, failed and pending, rows, skipped images, last errors"
    )
    sub.add_argument("run", metavar="RUN", help="a run folder, of whichever job")

    sub = add_command(commands, "merge", _merge, "merge and gather what is there, without scanning")
    sub.add_argument("run", metavar="RUN", help="a run folder")
    sub.add_argument("--allow-partial", action="store_true", help="even if shards are missing; the result says so")
    add_keys(sub, {key: RUN_KEYS[key] for key in ("address", "retries", "settle", "log_level")})


def _run(options: argparse.Namespace, console: Console) -> int:
    from exemplar_ray.arrow_without_pandas import leave_pandas_out
    from exemplar_ray.exemplars import job

    leave_pandas_out()
    settings = settings_of(options)
    outcome = job.run(
        pick(RunSpec, settings),
        settings["data"],
        settings["out"],
        pick(Resources, settings),
        console,
        pick(RunOptions, settings),
    )
    return finish(outcome, settings["out"], options.invocation.again, options.invocation, console, merges=True)


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
    return finish(outcome, options.run, rerun, options.invocation, console, merges=True)


def _run_command(options: argparse.Namespace) -> str:
    """Return the command that scans what a run folder lacks, as far as its `run.json` tells."""
    from exemplar_ray.exemplars.plan import Plan
    from exemplar_ray.report.provenance import arguments_of
    from exemplar_ray.runs.run_folder import RunFolder

    given = vars(options)
    resources = [word for key in ("address", "retries") if key in given for word in (f"--{key}", str(given[key]))]
    arguments = arguments_of(Plan.read(RunFolder(options.run)), options.run)
    return options.invocation.command([*arguments, *resources])


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
