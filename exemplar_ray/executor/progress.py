"""What a person sees while a run goes on.

On a terminal a live line with shards, images/s, time left and failures, and so in a notebook; elsewhere (a job's
log) one line a finished shard, with the time, the host that did it, images/s and an estimate of what is left.
"""

from __future__ import annotations

import base64
import html
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

# Workers import what a job is, and show nothing.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

IMAGES = "images"
"""What most jobs count."""

_log = logging.getLogger(__name__)

_MOST_GLIMPSED = 8
_GLIMPSE_PIXELS = 72
# So long a glimpse stays at least; and it never takes more than a tenth of the time.
_GLIMPSE_SECONDS, _GLIMPSE_SHARE = 1.0, 0.1


class ProgressDisplay:
    """Shows one phase (scan, merge or gather) at a time; use as a context manager.

    Args:
        steps: what the line counts.
        counted: what the speed is of.
    """

    def __init__(self, console: Console, phase: str, total: int, steps: str = "shards", counted: str = IMAGES) -> None:
        self._console = console
        self._phase = phase
        self._steps, self._counted = steps, counted
        self._total = total
        self._done = 0
        self._images = 0
        self._failures = 0
        self._started = time.monotonic()
        self._live: Progress | None = None
        self._cell: Any = None
        self._glimpsed: list[tuple[str, bytes]] = []
        self._glimpses: Any = None
        self._next_glimpse = 0.0

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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

    def finished(
        self, shard: str, images: int | None, notes: str = "", host: str | None = None, steps: int = 1
    ) -> None:
        """A shard, or a group of them, is done.

        Args:
            shard: its name.
            images: how many images, or what else is counted, that took; None where nothing is.
            notes: anything else worth a word.
            host: where it was done.
            steps: how many steps of the line it is.
        """
        self._images += images or 0
        said = ", ".join(one for one in ("" if images is None else f"{images} {self._counted}", notes) if one)
        where = f"on {host}" if host else ""
        self._advance(f"{shard}: {' '.join(one for one in (said, where) if one)}", steps)

    def failed(self, shard: str, reason: str, steps: int = 1) -> None:
        """A shard failed for good."""
        self._failures += 1
        if self._live is not None:
            self._live.console.print(f"FAILED {shard}: {reason}", style="red", markup=False, highlight=False)
        if self._cell is not None:
            say(self._console, f"FAILED {shard}: {reason}")
        self._advance(f"FAILED {shard}: {reason}", steps)

    def glimpse(self, pictures: Callable[[], Sequence[tuple[str, bytes]]]) -> None:
        """Show, in a notebook, the last pictures that are finished. Whatever goes wrong there does not stop the job.

        Args:
            pictures: gives small pictures, JPEG, with their names; called only where they will be shown.
        """
        began = time.monotonic()
        if self._cell is None or began < self._next_glimpse:
            return
        try:
            self._show(pictures())
        except Exception:  # what a part holds, and what a notebook can show, is nothing that a job depends on
            _log.warning("finished pictures are not shown", exc_info=True)
            self._next_glimpse = float("inf")
            return
        now = time.monotonic()
        self._next_glimpse = now + max(_GLIMPSE_SECONDS, (now - began) / _GLIMPSE_SHARE)

    def _show(self, pictures: Sequence[tuple[str, bytes]]) -> None:
        if not pictures:
            return
        from IPython.display import HTML, display

        self._glimpsed = [*self._glimpsed, *pictures][-_MOST_GLIMPSED:]
        shown = HTML(f'<div style="display:flex;gap:4px">{"".join(map(_small, self._glimpsed))}</div>')
        if self._glimpses is None:
            self._glimpses = display(shown, display_id=True)
        else:
            self._glimpses.update(shown)

    def _advance(self, line: str, steps: int) -> None:
        self._done += steps
        seconds = time.monotonic() - self._started
        rate = rate_of(self._images / max(seconds, 1e-9), self._counted) if self._images else ""
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


def _small(named: tuple[str, bytes]) -> str:
    """Return a picture with its name, for a notebook's cell."""
    name, content = html.escape(named[0]), base64.b64encode(named[1]).decode()
    size = f'width="{_GLIMPSE_PIXELS}" height="{_GLIMPSE_PIXELS}" style="margin:0"'
    return f'<img {size} title="{name}" alt="{name}" src="data:image/jpeg;base64,{content}">'


def rate_of(per_second: float, counted: str) -> str:
    """Say how fast something goes.

    >>> rate_of(86.23, "images"), rate_of(0.2, "pictures")
    ('86.2 images/s', '12.0 pictures/min')
    """
    return f"{per_second:.1f} {counted}/s" if per_second >= 1 else f"{60 * per_second:.1f} {counted}/min"


def console_here() -> Console:
    """Return a console for where this runs. A notebook's kernel calls itself a terminal, but shows lines only."""
    from rich.console import Console

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
