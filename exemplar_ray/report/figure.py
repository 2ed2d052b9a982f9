"""The figure for a paper: rows are channels, columns are ranks; or all of one channel (`neuron_figure`).

It is a PDF, SVG or PNG. Needs no torch, no Ray.
"""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Mapping, Sequence

import matplotlib

from exemplar_ray._version import __version__
from exemplar_ray.data.decode import decode_and_crop, picture_of
from exemplar_ray.errors import UsageError
from exemplar_ray.network.layers import format_channels
from exemplar_ray.report import neuron_figure
from exemplar_ray.report.asked_figure import (
    USUAL,
    FigureOptions,
    Shown,
    class_of,
    exemplars_of,
    shown_of,
    unsettled_of,
    visualizations_of,
    warnings_of,
)
from exemplar_ray.report.provenance import describe_preprocess
from exemplar_ray.report.sheet import (
    ALARM,
    DPI,
    ENDINGS,
    FAINT,
    INK,
    LABEL_POINTS,
    SETTINGS,
    SMALL_POINTS,
    WARNING,
    WIDTH,
    Sheet,
    lacking,
    shortened,
)
from exemplar_ray.results.exemplar import Exemplar
from exemplar_ray.results.run import Run, open_run
from exemplar_ray.results.visualization import Visualization
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.storage.hub_uri import refuse_writing

_LABELS = 130
_GAP = 12
_CAPTION = 30
_LARGEST_PICTURE = DPI
_SMALLEST_PICTURE = DPI // 5
_LEAST_WIDTH = 2 * DPI


def write_figure(run: str, which: str, out: str, options: FigureOptions = USUAL) -> str:
    """Draw channels of a layer. Equal arguments give equal bytes.

    Args:
        run: a run folder with a result.
        which: layer and channels, such as "mixed4a:0-9", "mixed4a:3,476" or "mixed4a:all".
        out: the file, on any file system; its ending says which kind.
        options: how they are drawn.

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
    shown = shown_of(finished, which, options)
    if not shown.one_neuron and _picture_side(shown.columns) < _SMALLEST_PICTURE:
        raise UsageError(f"{shown.columns} pictures side by side are too small to see; show fewer --ranks")
    pictures, rows = visualizations_of(finished, shown), exemplars_of(finished, shown)
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # The caller is told what the font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        draw = neuron_figure.draw if shown.one_neuron else _draw_grid
        content = draw(finished, shown, rows, pictures, ending != ".png").saved(
            ending, _metadata(finished, shown, pictures, ending)
        )
    folder, name = posixpath.split(out)
    RunFolder(folder or ".").write(name, content)
    # An SVG's text finds its font where it is shown.
    return lacking(class_of(row) for row in rows) if shown.captions and ending != ".svg" else ""


def _picture_side(columns: int) -> int:
    return min(_LARGEST_PICTURE, (WIDTH - _LABELS) // columns - _GAP)


def _draw_grid(
    run: Run,
    shown: Shown,
    rows: Sequence[Exemplar],
    pictures: Mapping[int, Sequence[Visualization]],
    as_vectors: bool,
) -> Sheet:
    """Draw a row of exemplars for each channel, beside its first visualisation where there are any."""
    side = _picture_side(shown.columns)
    warned = warnings_of(run)
    top = WARNING * len(warned)
    step = side + _GAP + (_CAPTION if shown.captions else 0)
    # What an optimiser made stands a little apart from what is real.
    left = _LABELS + (side + 2 * _GAP if pictures else 0)
    width = max(left + len(shown.ranks) * (side + _GAP) - _GAP, _LEAST_WIDTH)
    sheet = Sheet(width, top + len(shown.channels) * step - _GAP, as_vectors)
    sheet.warn(warned)
    unsettled = unsettled_of(run, shown)
    row_at = {(row["channel"], row["rank"]): row for row in rows}
    for line, channel in enumerate(shown.channels):
        y = top + line * step
        beside = _LABELS - _GAP
        sheet.text(beside, y + side / 2, str(channel), size=LABEL_POINTS, color=INK, va="center", ha="right")
        if channel in unsettled:
            sheet.text(beside, y + side / 2 + 18, "not settled", size=SMALL_POINTS, color=ALARM, ha="right")
        if pictures:
            sheet.picture(pictures[channel][0].picture, _LABELS, y, side)
        if not any((channel, rank) in row_at for rank in shown.ranks):
            sheet.text(left, y + side / 2, "no exemplar", size=SMALL_POINTS, color=ALARM, va="center")
        for column, rank in enumerate(shown.ranks):
            row = row_at.get((channel, rank))
            if row is None:
                continue
            x = left + column * (side + _GAP)
            seen = picture_of(decode_and_crop(row["image"]["bytes"], run.plan.spec.network.preprocess)).convert("RGB")
            sheet.picture(seen, x, y, side)
            if shown.captions:
                sheet.text(x, y + side + 3, shortened(class_of(row), side), size=SMALL_POINTS, color=FAINT)
    return sheet


def _metadata(
    run: Run, shown: Shown, pictures: Mapping[int, Sequence[Visualization]], ending: str
) -> dict[str, str | None]:
    """Return what the file says of itself: where its pictures come from, and nothing of the machine it was made on."""
    spec, network, summary = run.plan.spec, run.plan.spec.network, run.summary
    channels, ranks = format_channels(shown.channels), format_channels(shown.ranks)
    unsettled = f"{len(summary.unsettled)} rankings of the run are NOT SETTLED"
    made = next(iter(pictures.values()))[0] if pictures else None
    facts = [
        f"model: {network.model_title}",
        f"weights: {network.weights_title}, sha256 {network.weights_sha256}{'' if network.trained else ', UNTRAINED'}",
        f"preprocessing: {describe_preprocess(network.preprocess)}",
        f"layer: {shown.layer.name}, channels from top to bottom: {channels}",
        f"statistic: {shown.statistic}, sample: {shown.sample}, ranks from left to right: {ranks}",
        *([f"with: {', '.join(shown.extras)}"] if shown.extras else []),
        *([f"visualisations: {made.how_made}"] if made else []),
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
