"""The notebook's figure: rows are channels, columns are ranks, a page for every 10 channels."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from exemplar_ray.hub import refuse_writing
from exemplar_ray.images import crop, decode
from exemplar_ray.open_run import open_run
from exemplar_ray.run_folder import Plan, RunFolder
from exemplar_ray.samples import BOTTOM, DISTINCT, RANDOM, TOP, percentile_of
from exemplar_ray.spec import format_channels

CHANNELS_PER_PAGE = 10

_PICTURE = 150
_GAP = 10
_CAPTION = 38
_LABELS = 112
_MARGIN = 24
_LINE = 24
_INK, _FAINT, _ALARM = "#1c1c1e", "#6b6b70", "#b3261e"


def write_pages(run: str, out: str | None = None) -> list[str]:
    """Draw every channel of a run, `CHANNELS_PER_PAGE` a page, every sample on pages of its own.

    Args:
        run: a run folder with a result.
        out: where to write; RUN/report if None.

    Returns:
        The pages' URIs, in the order of the result.

    Raises:
        UsageError: the folder has no result, or the pages would be written to the Hub.
    """
    out = out or f"{run.rstrip('/')}/report"
    refuse_writing(out)
    finished = open_run(run)
    plan, summary = finished.plan, finished.summary
    target = RunFolder(out)
    pages = []
    for layer in plan.spec.layers:
        for statistic in plan.spec.statistics:
            for start in range(0, len(layer.channels), CHANNELS_PER_PAGE):
                shown = layer.channels[start : start + CHANNELS_PER_PAGE]
                rows = finished.exemplars(layer=layer.name, statistic=statistic, channel=shown)
                certainty = finished.channels(layer=layer.name, statistic=statistic, channel=shown).to_pylist()
                for sample in plan.spec.shown_samples:
                    of_sample = [row for row in rows if row["sample"] == sample]
                    known = {row["channel"]: row for row in certainty} if sample == TOP and plan.spec.screened else {}
                    page = draw_page(plan, summary, layer.name, statistic, sample, shown, of_sample, known)
                    buffer = io.BytesIO()
                    page.save(buffer, "PNG")
                    which = statistic if sample == TOP else f"{statistic}-{sample}"
                    name = f"{_file_name(layer.name)}-{which}-{shown[0]:04d}-{shown[-1]:04d}.png"
                    target.write(name, buffer.getvalue())
                    pages.append(f"{target.uri}/{name}")
    return pages


def draw_page(
    plan: Plan,
    summary: dict[str, Any],
    layer: str,
    statistic: str,
    sample: str,
    channels: Sequence[int],
    rows: Sequence[dict[str, Any]],
    certainty: Mapping[int, dict[str, Any]] | None = None,
) -> Image.Image:
    """Draw one page: a head that says what was searched, then a row of pictures a channel.

    The pictures are what the network saw, the crop, not the whole image.

    Args:
        summary: the run's `summary.json`.
        channels: the channels of the page's rows, from top to bottom.
        rows: their exemplars, with images.
        certainty: {channel: its row of `channels.parquet`}, to write how sure its top K is.
    """
    head = _head(plan, summary, layer, statistic, sample, channels)
    columns = min(plan.spec.top_k, max((row["rank"] for row in rows), default=1))
    top = _MARGIN + _LINE * len(head) + 2 * _GAP
    width = max(2 * _MARGIN + _LABELS + columns * (_PICTURE + _GAP), 1000)
    page = Image.new("RGB", (width, top + len(channels) * (_PICTURE + _CAPTION + _GAP) + _MARGIN), "white")
    draw = ImageDraw.Draw(page)
    for i, (text, colour) in enumerate(head):
        draw.text((_MARGIN, _MARGIN + i * _LINE), text, colour, ImageFont.load_default(20 if i == 0 else 16))
    unsettled = {
        entry["channel"]
        for entry in summary["unsettled"]
        if (entry["layer"], entry["statistic"], entry["sample"]) == (layer, statistic, sample)
    }
    bold, small = ImageFont.load_default(22), ImageFont.load_default(13)
    for place, channel in enumerate(channels):
        y = top + place * (_PICTURE + _CAPTION + _GAP)
        draw.text((_MARGIN, y + _PICTURE // 2 - 14), str(channel), _INK, bold)
        if channel in unsettled:
            draw.text((_MARGIN, y + _PICTURE // 2 + 14), "not settled", _ALARM, small)
        for line, text in enumerate(_certainty((certainty or {}).get(channel))):
            draw.text((_MARGIN, y + _PICTURE // 2 + 30 + 15 * line), text, _FAINT, small)
        exemplars = [row for row in rows if row["channel"] == channel]
        if not exemplars:
            draw.text((_MARGIN + _LABELS, y), "no image gives a finite activation", _ALARM, small)
        for row in exemplars:
            x = _MARGIN + _LABELS + (row["rank"] - 1) * (_PICTURE + _GAP)
            page.paste(_picture(row["image"]["bytes"], plan), (x, y))
            draw.text((x, y + _PICTURE + 3), f"{row['activation']:.5g}", _INK, ImageFont.load_default(15))
            draw.text((x, y + _PICTURE + 21), _shortened(row["class_name"] or "", small), _FAINT, small)
    return page


def _head(
    plan: Plan, summary: dict[str, Any], layer: str, statistic: str, sample: str, channels: Sequence[int]
) -> list[tuple[str, str]]:
    spec = plan.spec
    [count] = [known.channel_count for known in spec.layers if known.name == layer]
    skipped = f", {summary['skipped']} skipped" if summary["skipped"] else ""
    head = [
        (f"{spec.model_title}  ·  {layer}  ·  {statistic}  ·  {_sample_title(sample)}", _INK),
        (f"{spec.weights_title} (sha256 {spec.weights_sha256[:12]})", _FAINT),
        (
            f"channels {format_channels(channels)} of {count}  ·  {summary['scored']:,} images searched in "
            f"{len(summary['shards'])} shards{skipped}  ·  columns: rank 1-{spec.top_k}",
            _FAINT,
        ),
    ]
    if spec.screened:
        doubt = len({(one["layer"], one["statistic"], one["channel"]) for one in summary["unsettled"]})
        settled = f"{doubt} channels NOT SETTLED" if doubt else "every top K is settled"
        how = f"scanned in {spec.precision}, decoding {spec.decode}; shown is what was recomputed exactly"
        head.append((f"{how}; {settled}", _ALARM if doubt else _FAINT))
    if not spec.trained:
        head.insert(1, ("UNTRAINED NETWORK: random weights, these channels mean nothing", _ALARM))
    if summary["partial"]:
        head.insert(1, (f"PARTIAL RESULT: only {summary['partial']}", _ALARM))
    return head


def _certainty(known: dict[str, Any] | None) -> list[str]:
    """Return what is said of a screened channel: the scan's error, and how far the next image is below the K-th."""
    if known is None:
        return []
    margin = "all known" if math.isinf(known["margin"]) else f"{known['margin']:.2g}"
    return [f"error {known['scan_error']:.1g}", f"margin {margin}"]


def _sample_title(sample: str) -> str:
    titles = {TOP: "strongest first", DISTINCT: "strongest first, near-duplicates skipped", BOTTOM: "weakest first"}
    titles[RANDOM] = "drawn at random"
    return titles.get(sample) or f"drawn around the {percentile_of(sample)}th percentile"


def _picture(data: bytes, plan: Plan) -> Image.Image:
    seen = Image.fromarray(crop(decode(data), plan.spec.preprocess))
    return seen.resize((_PICTURE, _PICTURE), Image.Resampling.LANCZOS)


def _shortened(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Cut a text to a picture's width, on one line."""
    text = " ".join(text.split())
    if font.getlength(text) <= _PICTURE:
        return text
    while text and font.getlength(text + "...") > _PICTURE:
        text = text[:-1]
    return text + "..."


def _file_name(layer: str) -> str:
    return re.sub(r"[^\w.-]", "_", layer)
