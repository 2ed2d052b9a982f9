"""What a person sees while a run goes on.

On a terminal a live line with shards, images/s, time left and failures, and so in a notebook; elsewhere (a job's
log) one line a finished shard, with the time, the host that did it, images/s and an estimate of what is left.
"""

from __future__ import annotations

import html
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressDisplay:
    """Shows one phase (scan, merge or gather) at a time; use as a context manager.

    Args:
        steps: what is counted.
    """

    def __init__(self, console: Console, phase: str, total: int, steps: str = "shards") -> None:
        self._console = console
        self._phase = phase
        self._steps = steps
        self._total = total
        self._done = 0
        self._images = 0
        self._failures = 0
        self._started = time.monotonic()
        self._live: Progress | None = None
        self._cell: Any = None

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(f"{self._steps}  {{task.fields[rate]}}"),
                TimeRemainingColumn(),
                TextColumn("[red]{task.fields[failures]}[/red]"),
                console=self._console,
            )
            self._task = self._live.add_task(self._phase, total=self._total, rate="", failures="")
            self._live.start()
        elif _in_notebook():
            from IPython.display import display

            self._cell = display(self._in_cell(""), display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def finished(self, shard: str, images: int | None, notes: str = "", host: str | None = None) -> None:
        """A shard, or a group of them, is done.

        Args:
            shard: its name.
            images: how many images that took; None where images are not counted.
            notes: anything else worth a word.
            host: where it was done.
        """
        self._images += images or 0
        said = ", ".join(one for one in ("" if images is None else f"{images} images", notes) if one)
        self._advance(f"{shard}: {said}{f' on {host}' if host else ''}")

    def failed(self, shard: str, reason: str) -> None:
        """A shard failed for good."""
        self._failures += 1
        if self._live is not None:
            self._live.console.print(f"FAILED {shard}: {reason}", style="red", markup=False, highlight=False)
        if self._cell is not None:
            say(self._console, f"FAILED {shard}: {reason}")
        self._advance(f"FAILED {shard}: {reason}")

    def _advance(self, line: str) -> None:
        self._done += 1
        seconds = time.monotonic() - self._started
        rate = f"{self._images / max(seconds, 1e-9):.1f} images/s" if self._images else ""
        failures = f"{self._failures} failed" if self._failures else ""
        left = self._total - self._done
        about = about_left(seconds / self._done * left) if left else ""
        if self._live is not None:
            self._live.update(self._task, completed=self._done, rate=rate, failures=failures)
        elif self._cell is not None:
            self._cell.update(self._in_cell(", ".join(one for one in (rate, about, failures) if one)))
        else:
            speed = ", ".join(one for one in (rate, about) if one)
            at = time.strftime("%H:%M:%S")
            say(
                self._console,
                f"{self._phase} {self._done}/{self._total}  {line}{f'  ({speed})' if speed else ''}  {at}",
            )

    def _in_cell(self, facts: str) -> Any:
        """Return the line for a notebook's cell."""
        from IPython.display import HTML

        done = f"{self._done}/{self._total} {self._steps}" + (f", {facts}" if facts else "")
        bar = f'<progress value="{self._done}" max="{self._total}" aria-label="{html.escape(self._phase)}"></progress>'
        return HTML(f"{html.escape(self._phase)} {bar} {html.escape(done)}")


def console_here() -> Console:
    """Return a console for where this runs. A notebook's kernel calls itself a terminal, but shows lines only."""
    return Console(force_jupyter=False, force_terminal=False if _in_notebook() else None)


def _in_notebook() -> bool:
    """Whether this runs in a notebook's kernel."""
    # Without IPython there is none, so that it need not be installed.
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def about_left(seconds: float) -> str:
    """Say how long something still takes, as exactly as that can be known.

    >>> about_left(20), about_left(200), about_left(9000)
    ('less than a minute left', 'about 3 min left', 'about 2.5 h left')
    """
    if seconds < 60:
        return "less than a minute left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"


def say(console: Console, text: str, **style: Any) -> None:
    """Print a line as it is: no markup, no colours by guesswork, no wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True, **style)
