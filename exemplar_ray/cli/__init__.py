"""The command line. Imports what a command needs when it runs: `status` needs no torch or Ray."""

from __future__ import annotations

import argparse
import atexit
import gc
import sys
from collections.abc import Sequence

from rich.console import Console

import exemplar_ray
from exemplar_ray.cli.activations import add_activations
from exemplar_ray.cli.common import BAD_USAGE, INTERRUPTED, Parser
from exemplar_ray.cli.comparing import add_compare
from exemplar_ray.cli.data import add_data_commands
from exemplar_ray.cli.explore import add_explore
from exemplar_ray.cli.networks import add_check, add_circuits, add_layers, add_visualize
from exemplar_ray.cli.pages import add_publish, add_report
from exemplar_ray.cli.runs import add_run_commands
from exemplar_ray.executor.interruption import interruptible
from exemplar_ray.executor.invocation import invocation_of
from exemplar_ray.executor.progress import say
from exemplar_ray.executor.terminal import printable, said_of

__all__ = ["build_parser", "main"]


def main(arguments: Sequence[str] | None = None, script: Sequence[str] = ()) -> int:
    """Run one command and return the exit status.

    0: complete; 1: finished but incomplete; 2: bad usage or a refused run folder;
    130: interrupted.

    Args:
        arguments: those of the command line if None.
        script: where a program of its own gives the arguments, the words that it was started with; without them the
            commands that are printed are calls of this function.
    """
    _collect_garbage_seldom()
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


def _collect_garbage_seldom() -> None:
    """Look for garbage among 100,000 new objects, not 700, and for none at the end, when all goes with the process.

    Nearly all that a command makes stays: modules, tables. Looking through that takes a fifth of a second of a small
    run's five.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command; the options it gives have the command's function as `command`."""
    parser = Parser(prog="exemplar-ray", description=exemplar_ray.__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"exemplar-ray {exemplar_ray.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        add_data_commands,
        add_run_commands,
        add_layers,
        add_check,
        add_visualize,
        add_circuits,
        add_activations,
        add_explore,
        add_compare,
        add_report,
        add_publish,
    ):
        add(commands)
    return parser
