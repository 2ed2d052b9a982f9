"""A network's survey as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from exemplar_ray.network.layers import TOKENS, Axis, Layer
from exemplar_ray.network.survey import Survey

_MOST_NAMED = 6


def survey_lines(survey: Survey, width: int = 80) -> list[str]:
    """Say in lines what a network's modules give, in its own order, and why others cannot be layers.

    Args:
        width: of the terminal, in characters. A module's name stands last: it is never cut.
    """
    rows = [("output", "chan", "sees", "layer")]
    rows += [(_output(layer), str(layer.channel_count), _sees(layer), layer.name) for layer in survey.layers]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{o:<{widths[0]}}  {c:>{widths[1]}}  {s:<{widths[2]}}  {name}" for o, c, s, name in rows]
    return [*lines, *_why_not(survey.not_layers, width)]


def _output(layer: Layer) -> str:
    """Say how a layer's output lies.

    >>> _output(Layer("a", 8, (14, 14), ())), _output(Layer("b", 8, (7, 7), (), layout="tokens", prefix_tokens=1))
    ('nchw 14x14', 'tokens 1+7x7')
    """
    if layer.map_size is None:
        return layer.layout
    before = f"{layer.prefix_tokens}+" if layer.layout == TOKENS else ""
    return f"{layer.layout} {before}{layer.map_size[0]}x{layer.map_size[1]}"


def _sees(layer: Layer) -> str:
    """Say how many pixels a unit sees, and how far apart units are.

    >>> from exemplar_ray.network.layers import ReceptiveField
    >>> axis = Axis(-70, 171, 16)
    >>> _sees(Layer("a", 8, (14, 14), (), ReceptiveField(axis, axis))), _sees(Layer("b", 8, (1, 1), ()))
    ('171/16', '?')
    """
    if layer.map_size is None:
        return "all"
    if layer.field is None:
        return "?"
    y, x = layer.field.y, layer.field.x
    return _pixels(y) if y == x else f"{_pixels(y)} x {_pixels(x)}"


def _pixels(axis: Axis | None) -> str:
    return "all" if axis is None else f"{axis.size}/{axis.stride}"


def _why_not(not_layers: Mapping[str, str], width: int) -> list[str]:
    """Say which modules cannot be layers, those with one reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in not_layers.items():
        by_reason.setdefault(reason, []).append(name)
    if not by_reason:
        return []
    lines = ["", "these cannot be layers:"]
    for reason, names in by_reason.items():
        lines += textwrap.wrap(
            f"{reason}: {_some(names)}",
            max(width, 40),
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
