"""How runs and channels show themselves in a notebook: HTML that needs nothing else, in the notebook's own colours."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from exemplar_ray.data.imagenet_names import spelled_out
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.exemplars.summary import Summary
from exemplar_ray.network.layers import format_channels
from exemplar_ray.results.exemplar import Exemplar

if TYPE_CHECKING:
    from exemplar_ray.results.visualization import Visualization

_THUMBNAIL = 112
_QUALITY = 80
# So many of the strongest are shown, and so many of all other samples together.
_MOST_EXEMPLARS = 20
_MOST_CLASSES = 5
_BOX = f"width:{_THUMBNAIL}px;overflow-wrap:anywhere"
_FAINT = "opacity:.7;font-size:.85em"
# The notebook's background is not known. This is readable on white and on black.
_ALARM = "color:#e0432f;font-weight:bold"
_UNTRAINED = "UNTRAINED NETWORK: random weights, these channels mean nothing"


def channel_html(
    plan: Plan,
    summary: Summary,
    statistics: dict[str, Any],
    exemplars: Sequence[Exemplar],
    classes: pa.Table,
    visualizations: Sequence[Visualization] = (),
) -> str:
    """Return how a channel shows itself.

    The HTML holds small copies of the crops: a saved notebook shows them without the run.

    Args:
        statistics: its row of `channels.parquet`.
        exemplars: of all samples, by rank within each.
        classes: its rows of `classes.parquet`, the strongest class first.
        visualizations: its feature visualisations, the first of which is shown large.
    """
    part = f", A PART OF THE DATA: {plan.subset.words}" if plan.subset else ""
    facts = [f"active on {statistics['active_fraction']:.1%} of {statistics['images']:,} images{part}"]
    facts += [
        f"{name} {_number(statistics[key])}"
        for name, key in (("median", "q50"), ("99th percentile", "q99"), ("max", "max"))
    ]
    if not math.isnan(statistics["selectivity"]):
        facts.append(f"selectivity {statistics['selectivity']:.2f}")
    layer, statistic, channel = (statistics[name] for name in ("layer", "statistic", "channel"))
    key = (layer, statistic, channel)
    doubtful = [
        ranking.sample for ranking in summary.unsettled if (ranking.layer, ranking.statistic, ranking.channel) == key
    ]
    parts = [
        f"<strong>{_text(layer)}:{channel}</strong> {_text(plan.spec.network.model_title)}, {_text(statistic)}",
        *_warnings(plan, summary, doubtful),
        f'<div style="{_FAINT}">{_text("; ".join(facts))}</div>',
    ]
    if classes.num_rows:
        strongest_classes = classes.slice(0, _MOST_CLASSES).to_pylist()
        names = (f"{_class_of(row) or row['label']} {_number(row['mean'])}" for row in strongest_classes)
        parts.append(f'<div style="{_FAINT}">strongest classes: {_text("; ".join(names))}</div>')
    if visualizations:
        parts.append(_visualised(visualizations))
    strongest, *others = plan.spec.shown_samples
    parts.append(_pictures(exemplars, strongest, _MOST_EXEMPLARS))
    for sample in others:
        pictures = _pictures(exemplars, sample, max(1, _MOST_EXEMPLARS // len(others)))
        parts.append(f"<details><summary>{_text(sample)}</summary>{pictures}</details>")
    return _framed(parts)


def _pictures(exemplars: Sequence[Exemplar], sample: str, most: int) -> str:
    rows = [row for row in exemplars if row["sample"] == sample]
    if not rows:
        return "<div>no exemplar</div>"
    figures = "".join(_picture(row) for row in rows[:most])
    more = f'<div style="{_FAINT}">and {len(rows) - most} more</div>' if len(rows) > most else ""
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px;margin:.5em 0">{figures}</div>{more}'


def _picture(row: Exemplar) -> str:
    name = _class_of(row)
    origin = f"{row['shard']}, row {row['row']}" + (f", {row['image_path']}" if row["image_path"] else "")
    alternative = f"{name or 'no class'}, rank {row['rank']}, {row['sample']}, activation {_number(row['activation'])}"
    size = f'width="{_THUMBNAIL}" height="{_THUMBNAIL}"'
    if row["image"] is None:
        shown = f'<div style="{_BOX};height:{_THUMBNAIL}px;border:1px solid;opacity:.5">no image</div>'
    else:
        shown = f'<img {size} style="display:block;margin:0" src="{_thumbnail(row.view)}" alt="{_text(alternative)}">'
    return (
        f'<div style="{_BOX}" title="{_text(origin)}">{shown}<div>{_number(row["activation"])}</div>'
        f'<div style="{_FAINT};line-height:1.2">{_text(name)}</div></div>'
    )


def _visualised(rows: Sequence[Visualization]) -> str:
    """Show a channel's visualisations: the first as it is, of the others small copies."""
    figures = "".join(_made(row, _THUMBNAIL * (1 if number else 2)) for number, row in enumerate(rows))
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px;margin:.5em 0">{figures}</div>'


def _made(row: Visualization, side: int) -> str:
    said = f"feature visualisation ({row['objective']}), activation {_number(row['activation'])}"
    if row["image"] is None:
        shown = f'<div style="height:{side}px;border:1px solid;opacity:.5">no image</div>'
    else:
        whole = "data:image/png;base64," + base64.b64encode(row["image"]["bytes"]).decode()
        source = whole if side > _THUMBNAIL else _thumbnail(row.picture)
        size = f'width="{side}" height="{side}"'
        shown = f'<img {size} style="display:block;margin:0" src="{source}" alt="{_text(said)}">'
    best = row["ratio_to_top"]
    worth = f", {best:.1f} times the strongest image" if best is not None and not row["objective"].endswith("-") else ""
    words = f"{_text(row['objective'])}{worth}"
    return (
        f'<div style="width:{side}px;overflow-wrap:anywhere" title="{_text(row.how_made)}">{shown}'
        f'<div>{_number(row["activation"])}</div><div style="{_FAINT};line-height:1.2">{words}</div></div>'
    )


def visualizations_html(title: str, trained: bool, shown: Sequence[Visualization], more: int) -> str:
    """Return how feature visualisations show themselves: one of each channel.

    Args:
        title: what they are of.
        shown: a picture of each of some channels.
        more: how many more channels there are.
    """
    warnings = [] if trained else [_alarming(_UNTRAINED)]
    tiles = "".join(_tile(row) for row in shown)
    rest = [f'<div style="{_FAINT}">and {more} more channels</div>'] if more else []
    row = f'<div style="display:flex;flex-wrap:wrap;gap:8px;margin:.5em 0">{tiles}</div>'
    return _framed([f"<strong>{_text(title)}</strong>", *warnings, row, *rest])


def _tile(row: Visualization) -> str:
    return f'<div style="{_BOX}"><div>{_text(row["layer"])}:{row["channel"]}</div>{_made(row, _THUMBNAIL)}</div>'


def run_html(plan: Plan, summary: Summary) -> str:
    """Return how a run shows itself: what was searched, with what, and which channels it has."""
    spec, network = plan.spec, plan.spec.network
    layers = "".join(
        f"<li><strong>{_text(layer.name)}</strong>: {len(layer.channels)} of {layer.channel_count} channels"
        f"{'' if len(layer.channels) == layer.channel_count else f' ({_text(_some(format_channels(layer.channels)))})'}"
        "</li>"
        for layer in spec.layers
    )
    searched = f"{summary.scored:,} images searched in {len(summary.shards)} shards, {summary.skipped} skipped"
    searched += f"; A PART OF THE DATA: {plan.subset.words}" if plan.subset else ""
    shown = f"{', '.join(spec.statistics)}; top {spec.top_k}; samples: {', '.join(spec.shown_samples)}"
    first = spec.layers[0]
    call = f".channel({first.name!r}, {first.channels[0]})"
    return _framed(
        [
            f"<strong>{_text(network.model_title)}</strong>",
            *_warnings(plan, summary, [ranking.sample for ranking in summary.unsettled]),
            f"<div>{_text(network.weights_title)} (sha256 {network.weights_sha256[:12]})</div>",
            f"<div>{_text(searched)}</div>",
            f"<div>{_text(shown)}</div>",
            f'<ul style="margin:.3em 0">{layers}</ul>',
            f'<div style="{_FAINT}">a channel: <code style="background:none;color:inherit">{_text(call)}</code></div>',
        ]
    )


def _warnings(plan: Plan, summary: Summary, doubtful: Iterable[str]) -> list[str]:
    """Return what must be seen wherever a picture of the run is."""
    said = [] if plan.spec.network.trained else [_UNTRAINED]
    said += [f"PARTIAL RESULT: only {summary.partial}"] if summary.partial else []
    samples = ", ".join(dict.fromkeys(doubtful))
    said += [f"NOT SETTLED: {samples}; the scan's error may hide an exemplar there"] if samples else []
    return [_alarming(warning) for warning in said]


def _alarming(warning: str) -> str:
    return f'<div style="{_ALARM}">{_text(warning)}</div>'


def _class_of(row: dict[str, Any]) -> str:
    return spelled_out(row["class_name"] or row.get("synset_id") or "")


def _thumbnail(view: Image.Image) -> str:
    buffer = io.BytesIO()
    size = (_THUMBNAIL, _THUMBNAIL)
    view.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0).save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _framed(parts: Iterable[str]) -> str:
    """Put parts together; no colours of text or background but the notebook's own."""
    return f'<div style="color:inherit;background:none;line-height:1.4">{"".join(_block(part) for part in parts)}</div>'


def _block(part: str) -> str:
    return part if part.startswith(("<div", "<ul", "<details")) else f"<div>{part}</div>"


def _some(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[:most] + "..."


def _number(value: float) -> str:
    return f"{value:.4g}"


def _text(value: Any) -> str:
    """Write what came with the data, escaped and on one line. Its direction of writing ends with it."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "�", " ".join(str(value).split()))
    foreign = re.search(r"[\u0590-\u08ff\u200e\u200f\u202a-\u202e\u2066-\u2069]", plain)
    return html.escape(f"\u2068{plain}\u2069" if foreign else plain)
