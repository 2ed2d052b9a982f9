"""How runs and channels show themselves in a notebook: HTML that needs nothing else, in the notebook's own colours."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.samples import TOP
from exemplar_ray.spec import format_channels

if TYPE_CHECKING:
    from exemplar_ray.finished_run import Exemplar, Run

_THUMBNAIL = 112
_QUALITY = 80
# Of the strongest, and of all other samples together.
_MOST_EXEMPLARS = 20
_MOST_CLASSES = 5
_BOX = f"width:{_THUMBNAIL}px;overflow-wrap:anywhere"
_FAINT = "opacity:.7;font-size:.85em"
# Readable on white and on black, as the notebook's background is not known.
_ALARM = "color:#e0432f;font-weight:bold"


class Channel:
    """A channel of a finished run: `exemplars`, `statistics` and `classes`. Shows itself in a notebook.

    Its representation as HTML holds small copies of the crops, so that a saved notebook shows them without the run.
    """

    def __init__(self, run: Run, layer: str, channel: int, statistic: str | None = None) -> None:
        spec = run.plan.spec
        layers = {one.name: one for one in spec.layers}
        if layer not in layers:
            raise UsageError(f"this run has no layer '{layer}'; {near_matches(layer, layers)}")
        if channel not in layers[layer].channels:
            known = format_channels(layers[layer].channels)
            raise UsageError(f"this run has no channel {channel} of {layer}; it has {known}")
        statistic = spec.statistics[0] if statistic is None else statistic
        if statistic not in spec.statistics:
            raise UsageError(f"this run has no statistic '{statistic}'; {near_matches(statistic, spec.statistics)}")
        self._run = run
        self.layer, self.channel, self.statistic = layer, channel, statistic
        which = {"layer": layer, "statistic": statistic, "channel": channel}
        self.exemplars: list[Exemplar] = run.exemplars(**which)
        """Of all samples, by rank within each; with their pictures."""
        self.statistics: dict[str, Any] = run.channels(**which).to_pylist()[0]
        """Its row of `channels.parquet`."""
        self.classes: pa.Table = run.classes(**which).sort_by([("mean", "descending")])
        """How much each class excites it, the strongest first; no rows without labels."""

    def __repr__(self) -> str:
        strongest = [row for row in self.exemplars if row["sample"] == TOP]
        return f"<{self.layer}:{self.channel}, {self.statistic}: {len(strongest)} exemplars>"

    def _repr_html_(self) -> str:
        known = self.statistics
        facts = [f"active on {known['active_fraction']:.1%} of {known['images']:,} images"]
        facts += [
            f"{name} {_number(known[key])}"
            for name, key in (("median", "q50"), ("99th percentile", "q99"), ("max", "max"))
        ]
        if not math.isnan(known["selectivity"]):
            facts.append(f"selectivity {known['selectivity']:.2f}")
        parts = [
            f"<strong>{_text(self.layer)}:{self.channel}</strong> "
            f"{_text(self._run.plan.spec.model_title)}, {_text(self.statistic)}",
            *_warnings(self._run, self._doubtful()),
            f'<div style="{_FAINT}">{_text("; ".join(facts))}</div>',
        ]
        if self.classes.num_rows:
            of_classes = self.classes.slice(0, _MOST_CLASSES).to_pylist()
            names = (f"{_class_of(one) or one['label']} {_number(one['mean'])}" for one in of_classes)
            parts.append(f'<div style="{_FAINT}">strongest classes: {_text("; ".join(names))}</div>')
        strongest, *others = self._run.plan.spec.shown_samples
        parts.append(self._pictures(strongest, _MOST_EXEMPLARS))
        for sample in others:
            pictures = self._pictures(sample, max(1, _MOST_EXEMPLARS // len(others)))
            parts.append(f"<details><summary>{_text(sample)}</summary>{pictures}</details>")
        return _framed(parts)

    def _doubtful(self) -> list[str]:
        """Return the samples whose ranking screening left in doubt."""
        which = (self.layer, self.statistic, self.channel)
        unsettled = self._run.summary["unsettled"]
        return [one["sample"] for one in unsettled if (one["layer"], one["statistic"], one["channel"]) == which]

    def _pictures(self, sample: str, most: int) -> str:
        rows = [row for row in self.exemplars if row["sample"] == sample]
        if not rows:
            return "<div>no exemplar</div>"
        figures = "".join(self._picture(row) for row in rows[:most])
        more = f'<div style="{_FAINT}">and {len(rows) - most} more</div>' if len(rows) > most else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px;margin:.5em 0">{figures}</div>{more}'

    def _picture(self, row: Exemplar) -> str:
        name = _class_of(row)
        place = f"{row['shard']}, row {row['row']}" + (f", {row['image_path']}" if row["image_path"] else "")
        alternative = (
            f"{name or 'no class'}, rank {row['rank']}, {row['sample']}, activation {_number(row['activation'])}"
        )
        size = f'width="{_THUMBNAIL}" height="{_THUMBNAIL}"'
        if row["image"] is None:
            shown = f'<div style="{_BOX};height:{_THUMBNAIL}px;border:1px solid;opacity:.5">no image</div>'
        else:
            shown = (
                f'<img {size} style="display:block;margin:0" src="{_thumbnail(row.view)}" alt="{_text(alternative)}">'
            )
        return (
            f'<div style="{_BOX}" title="{_text(place)}">{shown}<div>{_number(row["activation"])}</div>'
            f'<div style="{_FAINT};line-height:1.2">{_text(name)}</div></div>'
        )


def run_html(run: Run) -> str:
    """Return how a run shows itself: what was searched, with what, and which channels it has."""
    spec, summary = run.plan.spec, run.summary
    layers = "".join(
        f"<li><strong>{_text(one.name)}</strong>: {len(one.channels)} of {one.channel_count} channels"
        f"{'' if len(one.channels) == one.channel_count else f' ({_text(_some(format_channels(one.channels)))})'}</li>"
        for one in spec.layers
    )
    searched = f"{summary['scored']:,} images searched in {len(summary['shards'])} shards, {summary['skipped']} skipped"
    shown = f"{', '.join(spec.statistics)}; top {spec.top_k}; samples: {', '.join(spec.shown_samples)}"
    first = spec.layers[0]
    call = f".channel({first.name!r}, {first.channels[0]})"
    return _framed(
        [
            f"<strong>{_text(spec.model_title)}</strong>",
            *_warnings(run, [one["sample"] for one in summary["unsettled"]]),
            f"<div>{_text(spec.weights_title)} (sha256 {spec.weights_sha256[:12]})</div>",
            f"<div>{_text(searched)}</div>",
            f"<div>{_text(shown)}</div>",
            f'<ul style="margin:.3em 0">{layers}</ul>',
            f'<div style="{_FAINT}">a channel: <code style="background:none;color:inherit">{_text(call)}</code></div>',
        ]
    )


def _warnings(run: Run, doubtful: Iterable[str]) -> list[str]:
    """Return what must be seen wherever a picture of the run is."""
    said = [] if run.plan.spec.trained else ["UNTRAINED NETWORK: random weights, these channels mean nothing"]
    said += [f"PARTIAL RESULT: only {run.partial}"] if run.partial else []
    samples = ", ".join(dict.fromkeys(doubtful))
    said += [f"NOT SETTLED: {samples}; the scan's error may hide an exemplar there"] if samples else []
    return [f'<div style="{_ALARM}">{_text(one)}</div>' for one in said]


def _class_of(row: dict[str, Any]) -> str:
    return row["class_name"] or row.get("synset_id") or ""


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
    """Write what came with the data: escaped, on one line, and its direction of writing ends where it ends."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "�", " ".join(str(value).split()))
    foreign = re.search(r"[\u0590-\u08ff\u200e\u200f\u202a-\u202e\u2066-\u2069]", plain)
    return html.escape(f"\u2068{plain}\u2069" if foreign else plain)
