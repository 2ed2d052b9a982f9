"""How a circuit shows itself in a notebook: HTML that needs nothing else, in the notebook's own colours."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from exemplar_ray.results.kernels import kernel_picture

if TYPE_CHECKING:
    from exemplar_ray.results.circuit import Circuit, Edge

_SIDE = 56
_EACH_WAY = 10
_FAINT = "opacity:.7;font-size:.85em"
# The notebook's background is not known. This is readable on white and on black.
_ALARM = "color:#e0432f;font-weight:bold"


def circuit_html(circuit: Circuit) -> str:
    """Return how a circuit shows itself: its inputs by their expanded kernels, and whether these explain it."""
    row, edges = circuit.row, circuit.inputs("expanded") or circuit.inputs("literal")
    title = f"<strong>{_text(circuit.layer)}:{circuit.channel}</strong>"
    if not edges:
        return f"<div>{title} is made of nothing</div>"
    said = [f"made of {_text(edges[0]['from_layer'])}"]
    if row:
        said += [f"after {_text(', '.join(row['through']))}"] if row["through"] else []
        said += [f"{row['inputs']} inputs, {row['nearly_zero']} of them nearly nothing"]
        if row["activation_left"] is not None:
            removed, left = len(row["removed"]), 100 * row["activation_left"]
            said.append(f"without its {removed} strongest {left:.0f} % of the activation is left")
    doubt = f'<div style="{_ALARM}">{_text(circuit.doubt)}</div>' if circuit.doubt else ""
    excite = [edge for edge in edges if edge["sum"] > 0][:_EACH_WAY]
    inhibit = [edge for edge in edges if edge["sum"] <= 0][:_EACH_WAY]
    strongest = max(float(np.abs(edge.kernel).max()) for edge in (*excite, *inhibit))
    rows = _row("excite it", excite, strongest) + _row("inhibit it", inhibit, strongest)
    return f"<div>{title}<div>{'; '.join(said)}</div>{doubt}{rows}</div>"


def _row(title: str, edges: Sequence[Edge], strongest: float) -> str:
    figures = "".join(_figure(edge, strongest) for edge in edges)
    return f'<div style="{_FAINT}">{title}</div><div style="display:flex;flex-wrap:wrap;gap:8px">{figures}</div>'


def _figure(edge: Edge, strongest: float) -> str:
    size = f'width="{_SIDE}" height="{_SIDE}" style="image-rendering:pixelated;display:block;margin:0"'
    said = f"{edge['from_channel']}: {edge['sum']:+.3g}"
    picture = f'<img {size} src="{kernel_picture(edge.kernel, strongest)}" alt="{_text(edge["sign"])}">'
    return f'<div style="width:{_SIDE + 24}px">{picture}<div style="font-size:.85em">{said}</div></div>'


def _text(words: str) -> str:
    return html.escape(words)
