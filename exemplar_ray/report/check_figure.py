"""The figure of a check: top-1 by preprocessing as bars, and images beside what the network takes them for.

It is a PDF, SVG or PNG, 7 inches wide. Needs no torch, no Ray.
"""

from __future__ import annotations

import io
import posixpath
import warnings
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from exemplar_ray._version import __version__
from exemplar_ray.check.findings import Findings, Guesses, Tried, short
from exemplar_ray.check.usual import IN_USE
from exemplar_ray.errors import UsageError
from exemplar_ray.report.sheet import DPI, ENDINGS, SETTINGS
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.storage.hub_uri import refuse_writing

_WIDTH = 7.0
# Inches.
_MARGIN, _LINE, _BAR, _PICTURE, _GAP = 0.08, 0.16, 0.2, 1.0, 0.32
_COLUMNS = 2
_NAMES = 2.95
_COUNTS = 1.25
_LONGEST_NAME = 30
_TITLE_POINTS, _POINTS, _SMALL_POINTS = 9, 7, 6
_INK, _FAINT, _ALARM, _BARS, _CHOSEN, _RIGHT = "#1c1c1e", "#6b6b70", "#b3261e", "#c9ccd3", "#5b86b8", "#4f8f43"


def ending_of(out: str) -> str:
    """Return which kind of file a figure is to be.

    Raises:
        UsageError: it cannot be of this kind, or cannot be written there.
    """
    ending = posixpath.splitext(out)[1].lower()
    if ending not in ENDINGS:
        raise UsageError(f"a figure is a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file, not '{out}'")
    refuse_writing(out)
    return ending


def write_check_figure(findings: Findings, pictures: Sequence[np.ndarray], out: str) -> None:
    """Draw what a check found. Equal findings give equal bytes.

    Args:
        pictures: uint8 [crop, crop, channels] each, of the images whose guesses are shown.
        out: the file, on any file system; its ending says which kind.

    Raises:
        UsageError: see `ending_of`.
    """
    ending = ending_of(out)
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = _draw(findings, pictures)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending[1:], dpi=DPI, metadata=_metadata(findings, ending))
    folder, name = posixpath.split(out)
    RunFolder(folder or ".").write(name, buffer.getvalue())


def _draw(findings: Findings, pictures: Sequence[np.ndarray]) -> Figure:
    title = _title(findings)
    bars = sorted(findings.tried, key=lambda one: one.count.share) if findings.trained else findings.tried
    head = _MARGIN + len(title) * _LINE + (_LINE if bars else 0)
    bars_height = len(bars) * _BAR + _GAP if bars else 0
    rows = -(-len(findings.guesses) // _COLUMNS)
    height = head + bars_height + rows * (_PICTURE + _GAP) + _MARGIN
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def axes_at(left: float, top: float, width: float, tall: float) -> Axes:
        return figure.add_axes((left / _WIDTH, 1 - (top + tall) / height, width / _WIDTH, tall / height))

    for line, (text, colour, points) in enumerate(title):
        y = 1 - (_MARGIN + line * _LINE) / height
        figure.text(_MARGIN / _WIDTH, y, text, size=points, color=colour, va="top")
    if bars:
        width = _WIDTH - _NAMES - _COUNTS
        _draw_bars(axes_at(_NAMES, head, width, len(bars) * _BAR), bars, findings)
    cell = (_WIDTH - 2 * _MARGIN) / _COLUMNS
    for place, (guesses, picture) in enumerate(zip(findings.guesses, pictures, strict=True)):
        left = _MARGIN + place % _COLUMNS * cell
        top = head + bars_height + place // _COLUMNS * (_PICTURE + _GAP) + _LINE
        shown = axes_at(left, top, _PICTURE, _PICTURE)
        # What has three channels has its colours.
        shown.imshow(picture, interpolation="none", aspect="auto", cmap="gray", vmin=0, vmax=255)
        shown.set_axis_off()
        name = _cut(short(guesses.class_name) if guesses.class_name else "no label")
        shown.set_title(name, size=_POINTS, color=_INK, loc="left", pad=2)
        _draw_guesses(axes_at(left + _PICTURE + 0.08, top, cell - _PICTURE - 0.2, _PICTURE), guesses)
    return figure


def _title(findings: Findings) -> list[tuple[str, str, float]]:
    """Return the lines at the top: (text, colour, points)."""
    lines = [(f"{findings.model_title}, {findings.weights_title}", _INK, float(_TITLE_POINTS))]
    if not findings.trained:
        lines.append(("UNTRAINED NETWORK", _ALARM, _POINTS))
    lines.append((findings.preprocess.in_words(), _FAINT, _SMALL_POINTS))
    lines.append((findings.in_short(), _ALARM if findings.found() else _INK, _POINTS))
    return lines


def _draw_bars(axes: Axes, bars: Sequence[Tried], findings: Findings) -> None:
    """Draw the share of right first guesses of each preprocessing, the best on top."""
    better = {one.name for one in findings.better}
    places = range(len(bars))
    colours = [_CHOSEN if one.name == IN_USE else _ALARM if one.name in better else _BARS for one in bars]
    axes.barh(places, [100 * one.count.share for one in bars], height=0.72, color=colours)
    axes.set(xlim=(0, 100), ylim=(-0.6, len(bars) - 0.4))
    axes.set_yticks(places, [f"{one.name}" for one in bars], size=_SMALL_POINTS)
    for label, one in zip(axes.get_yticklabels(), bars, strict=True):
        label.set_color(_INK if one.name == IN_USE or one.name in better else _FAINT)
        label.set_fontweight("bold" if one.name == IN_USE else "normal")
    for place, one in zip(places, bars, strict=True):
        count = f"{100 * one.count.share:.1f} %  ({one.count.top1:,} of {one.count.images:,})"
        axes.text(101, place, count, size=_SMALL_POINTS, color=_INK, va="center", clip_on=False)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.tick_params(axis="x", labelsize=_SMALL_POINTS, colors=_FAINT, length=2, pad=1)
    axes.tick_params(axis="y", length=0, pad=3)
    axes.set_title("first guess right, % of the images, by preprocessing", size=_POINTS, color=_INK, loc="left", pad=3)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(side == "left")
        axes.spines[side].set_color(_FAINT)


def _draw_guesses(axes: Axes, guesses: Guesses) -> None:
    """Draw the first guesses for an image as bars, the likeliest on top, their names on them."""
    places = range(len(guesses.guesses))[::-1]
    right = [guess.name == guesses.class_name for guess in guesses.guesses]
    colours = [_RIGHT if is_right else _BARS for is_right in right]
    axes.barh(places, [guess.probability for guess in guesses.guesses], height=0.34, color=colours)
    for place, guess, is_right in zip(places, guesses.guesses, right, strict=True):
        ink = _RIGHT if is_right else _INK
        axes.text(0, place + 0.24, _cut(short(guess.name)), size=_SMALL_POINTS, color=ink, va="bottom")
        axes.text(1, place + 0.24, f"{guess.probability:.2f}", size=_SMALL_POINTS, color=ink, va="bottom", ha="right")
    axes.set(xlim=(0, 1), ylim=(-0.25, max(len(places), 1) - 0.15))
    axes.set_axis_off()


def _cut(text: str) -> str:
    text = "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 3].rstrip() + "..."


def _metadata(findings: Findings, ending: str) -> dict[str, str | None]:
    """Return what the file says of itself, and nothing of the machine it was made on."""
    facts = [
        f"weights: {findings.weights_title}, sha256 {findings.weights_sha256}",
        f"preprocessing: {findings.preprocess.in_words()}",
        findings.looked_at(),
        *findings.counted(),
        *findings.found(),
    ]
    entries = {"Title": f"check of {findings.model_title}"}
    entries[{".pdf": "Subject"}.get(ending, "Description")] = "; ".join(facts)
    program = f"exemplar_ray {__version__}"
    if ending == ".png":
        return {**entries, "Software": program}
    # Dates are left out: equal figures are equal files.
    return {**entries, "Creator": program, {".pdf": "CreationDate"}.get(ending, "Date"): None}
