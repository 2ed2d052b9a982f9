"""What all commands have in common: how they are added, and how they end."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from exemplar_ray.errors import UsageError
from exemplar_ray.executor.invocation import Invocation
from exemplar_ray.executor.progress import say

if TYPE_CHECKING:
    from exemplar_ray.executor.driver import JobOutcome

Command = Callable[[argparse.Namespace, Console], int]

COMPLETE, INCOMPLETE, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with near matches for a misspelt flag."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
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


def add_command(commands: Any, name: str, function: Command, text: str) -> argparse.ArgumentParser:
    """Add a command whose options have its function as `command`."""
    sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    sub.set_defaults(command=function)
    return sub


def finish(
    outcome: JobOutcome, run_folder: str, rerun: str, invocation: Invocation, console: Console, merges: bool = False
) -> int:
    """Say what a job lacks, and with which commands to go on; return the exit status.

    Args:
        merges: whether `merge` makes a result of what is there.
    """
    if outcome.failed:
        say(console, f"INCOMPLETE: {len(outcome.failed)} of {outcome.items} {outcome.items_name} have no result:")
        for item, reason in outcome.failed.items():
            say(console, f"  {item}: {reason}")
        say(console, f"to scan only these again{invocation.beside}: {rerun}")
        if merges:
            partial = invocation.command(["merge", run_folder, "--allow-partial"])
            say(console, f"or to merge what is there{invocation.beside}: {partial}")
    return COMPLETE if outcome.complete else INCOMPLETE


@contextmanager
def matplotlib_wanted() -> Iterator[None]:
    """Say what is missing where figures cannot be drawn."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise UsageError("figures need one more package: pip install matplotlib") from error
