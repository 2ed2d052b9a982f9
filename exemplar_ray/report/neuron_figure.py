"""The figure of one neuron: its visualisations on top with what they are worth, its exemplars beside their maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from PIL import Image

from exemplar_ray.data.decode import decode_and_crop, picture_of, size_of
from exemplar_ray.data.framing import Framing
from exemplar_ray.report.asked_figure import MAPS, Shown, class_of, unsettled_of, warnings_of
from exemplar_ray.report.channel_page import title_of_sample
from exemplar_ray.report.pictures import darkened, map_overlay
from exemplar_ray.report.sheet import (
    ALARM,
    DPI,
    FAINT,
    INK,
    LABEL_POINTS,
    SMALL_POINTS,
    WARNING,
    WIDTH,
    Sheet,
    wrapped,
)
from exemplar_ray.report.visualizations import title_of, warning_of, worth_of
from exemplar_ray.results.exemplar import Exemplar
from exemplar_ray.results.run import Run
from exemplar_ray.results.visualization import Visualization

_GAP, _INNER_GAP = 24, 4
_LARGE = 2 * DPI
_LARGEST_PICTURE = DPI
_MOST_SIDE_BY_SIDE = 10
_NAME_POINTS = 11
# From one line of text to the next, in pixels a point.
_LEADING = 6.0
_ABOVE = 4


@dataclass(frozen=True)
class _Line:
    """A line of text."""

    text: str
    points: float = LABEL_POINTS
    color: str = INK
    weight: str = "normal"

    @property
    def height(self) -> int:
        return round(_LEADING * self.points)


@dataclass(frozen=True)
class _Placed:
    """Pictures with lines below them, in rows of as equal length as can be."""

    legend: _Line | None
    """What stands above all of them."""
    pictures: Sequence[Sequence[Image.Image]]
    """Of each place: one picture, or several close together; of all places as many."""
    lines: Sequence[Sequence[_Line]]
    """Of each place."""

    @property
    def columns(self) -> int:
        most = _MOST_SIDE_BY_SIDE // len(self.pictures[0])
        return math.ceil(len(self.pictures) / math.ceil(len(self.pictures) / most))

    @property
    def side(self) -> int:
        """Of a picture."""
        each = len(self.pictures[0])
        room = (WIDTH + _GAP) // self.columns - _GAP - (each - 1) * _INNER_GAP
        return min(_LARGEST_PICTURE, room // each)

    @property
    def place_width(self) -> int:
        each = len(self.pictures[0])
        return each * self.side + (each - 1) * _INNER_GAP

    @property
    def width(self) -> int:
        return self.columns * (self.place_width + _GAP) - _GAP

    @property
    def _above(self) -> list[_Line]:
        return _wrapped([self.legend], self.width) if self.legend else []

    @cached_property
    def _fitting(self) -> list[list[_Line]]:
        return [_wrapped(lines, self.place_width) for lines in self.lines]

    @property
    def _step(self) -> int:
        return self.side + _INNER_GAP + max(_height(lines) for lines in self._fitting) + _GAP // 2

    @property
    def height(self) -> int:
        return _height(self._above) + math.ceil(len(self.pictures) / self.columns) * self._step

    def draw(self, sheet: Sheet, y: int) -> None:
        """Draw it from `y` down."""
        _write(sheet, self._above, 0, y)
        y += _height(self._above)
        for number, (pictures, lines) in enumerate(zip(self.pictures, self._fitting, strict=True)):
            row, column = divmod(number, self.columns)
            left, top = column * (self.place_width + _GAP), y + row * self._step
            for place, picture in enumerate(pictures):
                sheet.picture(picture, left + place * (self.side + _INNER_GAP), top, self.side)
            _write(sheet, lines, left, top + self.side + _INNER_GAP)


def draw(
    run: Run,
    shown: Shown,
    rows: Sequence[Exemplar],
    pictures: Mapping[int, Sequence[Visualization]],
    as_vectors: bool,
) -> Sheet:
    """Draw all of one channel: its first visualisation large, its other ones, its exemplars."""
    of_channel = pictures.get(shown.channels[0], [])
    first = of_channel[0] if of_channel else None
    left = _LARGE + _GAP if first else 0
    parts = [*_others(of_channel[1:]), *_exemplars(run, shown, rows)]
    width = max([WIDTH if first else _LARGE, *(part.width for part in parts)])
    words = _wrapped(_said_of(run, shown, first, bool(rows)), width - left)
    warned = warnings_of(run)
    top = WARNING * len(warned)
    head = max(_LARGE if first else 0, _height(words)) + _GAP
    sheet = Sheet(width, top + head + sum(part.height for part in parts), as_vectors)
    sheet.warn(warned)
    if first:
        sheet.picture(first.picture, 0, top, _LARGE)
    _write(sheet, words, left, top)
    y = top + head
    for part in parts:
        part.draw(sheet, y)
        y += part.height
    return sheet


def _said_of(run: Run, shown: Shown, first: Visualization | None, any_exemplar: bool) -> list[_Line]:
    """Return what is said of a channel and of its first visualisation."""
    channel, network = shown.channels[0], run.plan.spec.network
    which: dict[str, Any] = {"layer": shown.layer.name, "statistic": shown.statistic, "channel": channel}
    [known] = run.channels(**which).to_pylist()
    said = [
        _Line(f"{shown.layer.name}:{channel}", _NAME_POINTS, weight="bold"),
        _Line(f"{network.model_title}, {network.weights_title}", color=FAINT),
        _Line(
            f"{shown.statistic} over {known['images']:,} images: active on {100 * known['active_fraction']:.3g} %, "
            f"median {known['q50']:.4g}, 99th percentile {known['q99']:.4g}, strongest {known['max']:.4g}"
        ),
    ]
    if channel in unsettled_of(run, shown):
        said.append(_Line(f"not settled: the scan's error may hide an exemplar of {shown.sample}", color=ALARM))
    if not any_exemplar:
        said.append(_Line("no exemplar", color=ALARM))
    return [*said, _Line(""), *_worth(first)] if first else said


def _worth(row: Visualization) -> list[_Line]:
    """Say what a visualisation is worth, and what it looks like."""
    worth, warning, patterns = worth_of(row), warning_of(row), ", ".join(row["patterns"])
    beside = [] if row["ratio_to_q99"] is None else [f"{row['ratio_to_q99']:.3g} times the images' 99th percentile"]
    beside += [f"before its ReLU {row['activation_pre_relu']:.4g}"]
    beside += [f"{row['robust_activation']:.4g} of that once moved and turned"]
    colours = ", ".join(f"{value:.0f}" for value in row["mean_rgb"])
    looks = [f"mean colour {colours}", f"contrast {row['contrast']:.0f}"]
    # There is none where there is nothing to be seen.
    looks += [] if math.isnan(row["spectral_slope"]) else [f"spectral slope {row['spectral_slope']:.2g}"]
    looks += [patterns] if patterns else []
    return [
        _Line(title_of(row), weight="bold"),
        _Line(f"activation {row['activation']:.4g}" + (f": {worth}" if worth else "")),
        *([_Line(warning, color=ALARM)] if warning else []),
        _Line("; ".join(beside)),
        _Line("; ".join(looks)),
        _Line(row.how_made, color=FAINT),
    ]


def _others(rows: Sequence[Visualization]) -> Iterator[_Placed]:
    """Yield a channel's other visualisations, small."""
    said = []
    for row in rows:
        warning = warning_of(row)
        lines = [
            _Line(title_of(row), SMALL_POINTS, weight="bold"),
            _Line(f"activation {row['activation']:.4g}", SMALL_POINTS),
        ]
        said.append([*lines, _Line(warning, SMALL_POINTS, ALARM)] if warning else lines)
    if rows:
        yield _Placed(None, [[row.picture] for row in rows], said)


def _exemplars(run: Run, shown: Shown, rows: Sequence[Exemplar]) -> Iterator[_Placed]:
    """Yield a channel's exemplars, each beside its map where maps are asked for."""
    preprocess, with_maps = run.plan.spec.network.preprocess, MAPS in shown.extras
    pictures, said = [], []
    for row in rows:
        image = row["image"]["bytes"]
        seen = picture_of(decode_and_crop(image, preprocess)).convert("RGB")
        overlay = map_overlay(row, shown.layer, Framing.of(*size_of(image), preprocess)) if with_maps else None
        pictures.append([seen, darkened(seen, overlay, row["view_box"])] if overlay else [seen])
        name = class_of(row) if shown.captions else ""
        said.append([_Line(f"{row['rank']}: {row['activation']:.4g}" + (f", {name}" if name else ""), SMALL_POINTS)])
    legend = f"{title_of_sample(shown.sample)}, as the network saw them"
    if with_maps:
        legend += ", each beside its activation map: dark where that is at its lowest or 0"
    if rows:
        yield _Placed(_Line(legend, SMALL_POINTS, FAINT), pictures, said)


def _wrapped(lines: Sequence[_Line], width: int) -> list[_Line]:
    """Break lines that are wider than a width; an empty one stays one."""
    return [replace(line, text=text) for line in lines for text in wrapped(line.text, width, line.points) or [""]]


def _height(lines: Sequence[_Line]) -> int:
    return sum(line.height for line in lines)


def _write(sheet: Sheet, lines: Sequence[_Line], x: int, y: int) -> None:
    """Write lines one below the other."""
    for line in lines:
        sheet.text(x, y + _ABOVE, line.text, size=line.points, color=line.color, weight=line.weight)
        y += line.height
