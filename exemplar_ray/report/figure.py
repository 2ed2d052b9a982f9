"""The figure for a paper: rows are channels, columns are ranks. It is a PDF, SVG or PNG. Needs no torch, no Ray.

Lengths are whole pixels of 300 an inch. PDF and SVG use them for positions only: their pictures keep every pixel that
the network saw, and their text stays text.
"""

from __future__ import annotations

import io
import posixpath
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

from exemplar_ray._version import __version__
from exemplar_ray.data.decode import decode_and_crop, picture_of
from exemplar_ray.data.imagenet_names import spelled_out
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.exemplars.sample_names import TOP
from exemplar_ray.network.layers import Layer, format_channels, parse_channels
from exemplar_ray.report.provenance import describe_preprocess
from exemplar_ray.results.exemplar import Exemplar
from exemplar_ray.results.run import Run, open_run
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.storage.hub_uri import refuse_writing

ENDINGS = (".pdf", ".png", ".svg")
DPI = 300
WIDTH = 7 * DPI
"""The widest that a figure gets: a page's text."""

_LABELS = 130
_GAP = 12
_CAPTION = 30
_WARNING = 45
_LARGEST_PICTURE = DPI
_SMALLEST_PICTURE = DPI // 5
_LEAST_WIDTH = 2 * DPI
_MOST_CHANNELS = 100
_USUAL_RANKS = 10
_FONT = "DejaVu Sans"  # comes with matplotlib
_LABEL_POINTS, _SMALL_POINTS = 7, 4.5
_INK, _FAINT, _ALARM = "#1c1c1e", "#6b6b70", "#b3261e"

SETTINGS: dict[Any, Any] = {
    "font.family": [_FONT, "sans-serif"],
    "pdf.fonttype": 42,  # TrueType: what journals ask for
    "svg.fonttype": "none",
    "svg.hashsalt": "exemplar_ray",
    "image.composite_image": False,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class _Shown:
    """What a figure shows of a run."""

    layer: Layer
    channels: Sequence[int]
    ranks: range
    statistic: str
    sample: str


def write_figure(
    run: str,
    which: str,
    out: str,
    ranks: str | None = None,
    statistic: str | None = None,
    sample: str = TOP,
    captions: bool = False,
) -> str:
    """Draw channels of a layer. Equal arguments give equal bytes.

    Args:
        run: a run folder with a result.
        which: layer and channels, such as "mixed4a:0-9", "mixed4a:3,476" or "mixed4a:all".
        out: the file, on any file system; its ending says which kind.
        ranks: such as "1-9" or "1"; the first ten if None.
        statistic: the run's first if None.
        captions: whether to write the class below each picture.

    Returns:
        The characters of captions that the font lacks, and boxes stand for.

    Raises:
        UsageError: the run has no result or not this, or the file cannot be of this kind.
    """
    ending = posixpath.splitext(out)[1].lower()
    if ending not in ENDINGS:
        raise UsageError(f"a figure is a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file, not '{out}'")
    refuse_writing(out)
    finished = open_run(run)
    shown = _shown(finished, which, ranks, statistic, sample)
    rows = finished.exemplars(
        layer=shown.layer.name,
        statistic=shown.statistic,
        sample=sample,
        channel=list(shown.channels),
        rank=shown.ranks,
    )
    if any(row["image"] is None for row in rows):
        raise UsageError(f"'{run}' holds no images: it was published without them")
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # The caller is told what the font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = _draw(finished, shown, rows, captions, as_vectors=ending != ".png")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending[1:], dpi=DPI, metadata=_metadata(finished, shown, ending))
    folder, name = posixpath.split(out)
    RunFolder(folder or ".").write(name, buffer.getvalue())
    # An SVG's text finds its font where it is shown.
    return _lacking(_caption(row) for row in rows) if captions and ending != ".svg" else ""


def _shown(run: Run, which: str, ranks: str | None, statistic: str | None, sample: str) -> _Shown:
    """Find out what is asked for, and whether the run has it."""
    spec = run.plan.spec
    name, colon, channels = which.rpartition(":")
    if not colon:
        raise UsageError(f"a figure is of LAYER:CHANNELS, such as {spec.layers[0].name}:0-9, not '{which}'")
    layers = {layer.name: layer for layer in spec.layers}
    if name not in layers:
        raise UsageError(f"this run has no layer '{name}'; {near_matches(name, layers)}")
    layer = layers[name]
    wanted = layer.channels if channels == "all" else parse_channels(channels, layer.channel_count)
    missing = sorted({*wanted} - {*layer.channels})
    if missing:
        raise UsageError(
            f"this run has no channel {format_channels(missing)} of {name}; it has {format_channels(layer.channels)}"
        )
    if len(wanted) > _MOST_CHANNELS:
        raise UsageError(f"a figure shows at most {_MOST_CHANNELS} channels, not {len(wanted)}; the pages show all")
    statistic = spec.statistics[0] if statistic is None else statistic
    for kind, value, offered in (("statistic", statistic, spec.statistics), ("sample", sample, spec.shown_samples)):
        if value not in offered:
            raise UsageError(f"this run has no {kind} '{value}'; {near_matches(value, offered)}")
    return _Shown(layer, wanted, _ranks(ranks, spec.top_k), statistic, sample)


def _ranks(text: str | None, top_k: int) -> range:
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text if text is not None else f"1-{min(top_k, _USUAL_RANKS)}")
    ranks = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not ranks or ranks[0] < 1 or ranks[-1] > top_k:
        raise UsageError(f"ranks are '1-{min(top_k, _USUAL_RANKS)}' or '1', from 1 to {top_k}, not '{text}'")
    if _picture_side(len(ranks)) < _SMALLEST_PICTURE:
        raise UsageError(f"{len(ranks)} pictures side by side are too small to see; show fewer --ranks")
    return ranks


def _picture_side(columns: int) -> int:
    return min(_LARGEST_PICTURE, (WIDTH - _LABELS) // columns - _GAP)


def _draw(run: Run, shown: _Shown, rows: Sequence[Exemplar], captions: bool, as_vectors: bool) -> Figure:
    side = _picture_side(len(shown.ranks))
    warned = _warnings(run)
    top = _WARNING * len(warned)
    step = side + _GAP + (_CAPTION if captions else 0)
    width = max(_LABELS + len(shown.ranks) * (side + _GAP) - _GAP, _LEAST_WIDTH)
    height = top + len(shown.channels) * step - _GAP
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    for line, text in enumerate(warned):
        axes.text(0, line * _WARNING + 4, text, size=_LABEL_POINTS, weight="bold", color=_ALARM, va="top")
    unsettled = {
        ranking.channel
        for ranking in run.summary.unsettled
        if (ranking.layer, ranking.statistic, ranking.sample) == (shown.layer.name, shown.statistic, shown.sample)
    }
    row_at = {(row["channel"], row["rank"]): row for row in rows}
    for line, channel in enumerate(shown.channels):
        y = top + line * step
        beside: dict[str, Any] = {"x": _LABELS - _GAP, "ha": "right"}
        axes.text(y=y + side / 2, s=str(channel), size=_LABEL_POINTS, color=_INK, va="center", **beside)
        if channel in unsettled:
            axes.text(y=y + side / 2 + 18, s="not settled", size=_SMALL_POINTS, color=_ALARM, va="top", **beside)
        if not any((channel, rank) in row_at for rank in shown.ranks):
            axes.text(_LABELS, y + side / 2, "no exemplar", size=_SMALL_POINTS, color=_ALARM, va="center")
        for column, rank in enumerate(shown.ranks):
            row = row_at.get((channel, rank))
            if row is None:
                continue
            x = _LABELS + column * (side + _GAP)
            seen = picture_of(decode_and_crop(row["image"]["bytes"], run.plan.spec.network.preprocess)).convert("RGB")
            if not as_vectors:
                # The pixels are those that will stand there: matplotlib's own reduction is coarser.
                seen = seen.resize((side, side), Image.Resampling.LANCZOS)
            axes.imshow(np.asarray(seen), extent=(x, x + side, y + side, y), interpolation="none", aspect="auto")
            if captions:
                text = _shortened(_caption(row), side)
                axes.text(x, y + side + 3, text, size=_SMALL_POINTS, color=_FAINT, va="top")
    return figure


def _warnings(run: Run) -> list[str]:
    """Return what must be seen wherever the figure is."""
    untrained = [] if run.plan.spec.network.trained else ["UNTRAINED NETWORK"]
    return untrained + ([f"PARTIAL: only {run.partial}"] if run.partial else [])


def _caption(row: Exemplar) -> str:
    name = " ".join(spelled_out(row["class_name"] or "").split())
    return "".join(letter if letter.isprintable() else "�" for letter in name)


def _lacking(texts: Iterable[str]) -> str:
    drawable = get_font(findfont(FontProperties(family=_FONT))).get_charmap()
    return "".join(sorted({letter for text in texts for letter in text if ord(letter) not in drawable}))


def _shortened(text: str, width: int) -> str:
    """Cut a text to a picture's width."""
    font = get_font(findfont(FontProperties(family=_FONT)))
    font.set_size(_SMALL_POINTS, DPI)

    def fits(text: str) -> bool:
        font.set_text(text)
        return font.get_width_height()[0] / 64 <= width

    if fits(text):
        return text
    while text and not fits(text + "..."):
        text = text[:-1]
    return text.rstrip() + "..."


def _metadata(run: Run, shown: _Shown, ending: str) -> dict[str, str | None]:
    """Return what the file says of itself: where its pictures come from, and nothing of the machine it was made on."""
    spec, network, summary = run.plan.spec, run.plan.spec.network, run.summary
    channels, ranks = format_channels(shown.channels), format_channels(shown.ranks)
    unsettled = f"{len(summary.unsettled)} rankings of the run are NOT SETTLED"
    facts = [
        f"model: {network.model_title}",
        f"weights: {network.weights_title}, sha256 {network.weights_sha256}{'' if network.trained else ', UNTRAINED'}",
        f"preprocessing: {describe_preprocess(network.preprocess)}",
        f"layer: {shown.layer.name}, channels from top to bottom: {channels}",
        f"statistic: {shown.statistic}, sample: {shown.sample}, ranks from left to right: {ranks}",
        f"searched: {summary.scored} images in {len(summary.shards)} shards, {summary.skipped} skipped",
        *([f"a part of the data: {run.plan.subset.words}"] if run.plan.subset else []),
        *([f"PARTIAL: only {run.partial}"] if run.partial else []),
        unsettled if summary.unsettled else f"every top {spec.top_k} is settled",
        f"run: {run.plan.fingerprint}",
    ]
    title = f"{network.model_title}, {shown.layer.name}:{channels}, {shown.statistic}"
    program = f"exemplar_ray {__version__}"
    entries = {"Title": title, {".pdf": "Subject"}.get(ending, "Description"): "; ".join(facts)}
    if ending == ".png":
        return {**entries, "Software": program}
    # Dates are left out: equal figures are equal files.
    return {**entries, "Creator": program, {".pdf": "CreationDate"}.get(ending, "Date"): None}
