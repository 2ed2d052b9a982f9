"""Commands that show a result: pages, figures, a data set on the Hub."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from exemplar_ray.cli.common import COMPLETE, add_command, matplotlib_wanted
from exemplar_ray.config import add_keys
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.progress import say
from exemplar_ray.keys import Key

# As `config.RUN_KEYS`.
_FIGURE_KEYS = {
    "ranks": (Key("WHICH", "such as 1-9 (default: the first ten)"), str),
    "statistic": (Key("NAME", "default: the run's first"), str),
    "sample": (Key("NAME", "top (default), or another of the run's samples"), str),
    "captions": (Key("", "with the class below each picture"), bool),
    "with": (
        Key("WHAT", "visualization: beside each channel's exemplars; visualization,maps: all of one channel"),
        str,
    ),
}


def add_report(commands: Any) -> None:
    """Add them."""
    text = "pages to look at: every channel a tile and a page, from disk or any web server"
    sub = add_command(commands, "report", _report, text)
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


def add_publish(commands: Any) -> None:
    """Add them."""
    text = "put a result and its pages on the Hugging Face Hub as a data set, in one commit"
    sub = add_command(commands, "publish", _publish, text)
    sub.add_argument("run", metavar="RUN", help="a run folder with a result")
    sub.add_argument("repository", metavar="USER/NAME", help="the data set's name on the Hub; made if there is none")
    sub.add_argument("--dry-run", metavar="DIR", help="write what would be uploaded to a new or empty folder instead")
    sub.add_argument("--without-images", action="store_true", help="paths, rows and numbers only")
    sub.add_argument("--private", action="store_true", help="for nobody else to see")
    sub.add_argument("--licence", metavar="ID", help="such as cc-by-4.0, for the card (default: left open)")
    sub.add_argument("--message", metavar="TEXT", help="of the commit")


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
    with matplotlib_wanted():
        from exemplar_ray.report.asked_figure import FigureOptions
        from exemplar_ray.report.figure import write_figure

    if options.out is None:
        raise UsageError("--out is missing: the figure's file, such as figure.pdf")
    if options.without_images:
        raise UsageError("a figure is made of images; leave out --without-images")
    extras = tuple(extra.strip() for extra in settings.pop("with", "").split(",") if extra.strip())
    lacking = write_figure(options.run, options.figure, options.out, FigureOptions(**settings, extras=extras))
    if lacking:
        say(console, f"boxes stand for characters that the font lacks: {lacking[:40]}; an .svg shows them")
    say(console, f"figure: {options.out}")
    return COMPLETE


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
