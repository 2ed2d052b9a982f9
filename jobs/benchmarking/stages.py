"""Where one core's time for an image goes, measured function by function, and its picture."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarking.limits import BATCH, crop_of, scanning_trunk, spec_of
from benchmarking.measuring import UNTRAINED
from exemplar_ray.data import decode as images
from exemplar_ray.data.formats.registry import open_shard
from exemplar_ray.data.shards import ImageRow, discover
from exemplar_ray.executor.malloc import keep_freed_memory
from exemplar_ray.exemplars.parts import Part, candidates_kept
from exemplar_ray.exemplars.running_topk import RunningTopK
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.topk import NO_LABEL, TOP
from exemplar_ray.network.compiled_trunk import CompiledTrunk

STAGES = {
    "read parquet": "#a0cbe8",
    "decode": "#ffbe7d",
    "crop": "#f1ce63",
    "trunk": "#8cd17d",
    "top K and tallies": "#d4a6c8",
}
"""stage -> its colour in the picture, in the order in which an image passes through them."""


def stage_milliseconds(shards: Sequence[str], count: int, precision: str, decode: str) -> dict[str, float]:
    """Time every stage of the scan on one core, over the first images; return {stage: ms an image}."""
    keep_freed_memory()
    torch.set_num_threads(1)
    spec = spec_of(precision, decode)
    trunk = scanning_trunk(spec)
    # The first batch is for what happens once: imports, memory.
    _time_stages(shards, BATCH, spec, trunk)
    # Whole batches: a scan pads its last one, which is work for images that are not there.
    return _time_stages(shards, max(count // BATCH, 1) * BATCH, spec, trunk)


def _time_stages(shards: Sequence[str], count: int, spec: ExemplarsSpec, trunk: CompiledTrunk) -> dict[str, float]:
    seconds: dict[str, float] = {}

    def timed(stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        seconds[stage] = time.perf_counter() - started
        return result

    rows = timed("read parquet", _read, shards, count)
    timed("decode", lambda: [_decoded(row.data, spec.decode) for row in rows])
    pixels = timed("crop", lambda: [crop_of(row.data, spec.decode) for row in rows])
    # Decoding and cropping are one function, of which this is the rest.
    seconds["crop"] -= seconds["decode"]
    batches = torch.from_numpy(np.stack(pixels)).split(BATCH)
    pooled = timed("trunk", lambda: [trunk(batch) for batch in batches])
    [readout] = spec.readouts
    activations = torch.cat([batch.activations[readout.key] for batch in pooled])
    labels = np.array([NO_LABEL if row.label is None else row.label for row in rows], np.int64)
    timed("top K and tallies", _rank_and_tally, spec, activations, labels)
    return {stage: 1000 * taken / len(rows) for stage, taken in seconds.items()}


def _decoded(data: bytes, decode: str) -> Any:
    """Do the first half of `crop_of` and throw it away."""
    if decode == "fast":
        with suppress(ValueError):  # no JPEG, or not an ordinary one
            return simplejpeg.decode_jpeg(data, "RGB")
    return images.decode(data)


def _read(shards: Sequence[str], count: int) -> list[ImageRow]:
    return list(islice(chain.from_iterable(open_shard(shard).images() for shard in discover(shards)), count))


def _rank_and_tally(spec: ExemplarsSpec, activations: torch.Tensor, labels: np.ndarray) -> None:
    """Do what a scan does with activations, batch by batch and then in one block."""
    running = RunningTopK(activations.shape[1], candidates_kept(spec)[TOP], activations.device)
    for first in range(0, len(activations), BATCH):
        batch = activations[first : first + BATCH]
        running.update(batch, torch.arange(first, first + len(batch)))
    running.result()
    for tallies in Part.empty(spec).tallies.values():
        tallies[0].update(activations.numpy(), labels)


_WIDTH, _LABELS, _BAR, _GAP, _MARGIN, _LINE = 1200, 130, 64, 36, 32, 26
_INK, _FAINT = "#1c1c1e", "#6b6b70"


def draw_stages(stages: dict[str, dict[str, float]], title: str) -> Image.Image:
    """Draw a horizontal bar a kind of run, as long as one core takes for an image, cut into its stages.

    Args:
        stages: {kind: {stage: ms an image}}.
        title: what it was measured on.
    """
    head = _MARGIN + 3 * _LINE + _GAP
    axis = head + len(stages) * (_BAR + _GAP) - _GAP // 2
    page = Image.new("RGB", (_WIDTH, axis + _LINE + _MARGIN), "white")
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN), "Where one core's time for an image goes", _INK, _font(24))
    draw.text((_MARGIN, _MARGIN + 34), f"{title}; {UNTRAINED}", _FAINT, _font(16))
    _draw_legend(draw, _MARGIN + 64)
    longest = max(sum(taken.values()) for taken in stages.values())
    scale = (_WIDTH - 2 * _MARGIN - _LABELS - 210) / longest
    for place, (kind, taken) in enumerate(stages.items()):
        _draw_bar(draw, head + place * (_BAR + _GAP), kind, taken, scale)
    _draw_axis(draw, axis, longest, scale)
    return page


def _draw_legend(draw: ImageDraw.ImageDraw, y: int) -> None:
    x = float(_MARGIN)
    for stage, colour in STAGES.items():
        draw.rectangle((x, y + 2, x + 16, y + 18), colour)
        draw.text((x + 24, y), stage, _INK, _font(16))
        x += 24 + _font(16).getlength(stage) + 32


def _draw_bar(draw: ImageDraw.ImageDraw, y: int, kind: str, taken: dict[str, float], scale: float) -> None:
    draw.text((_MARGIN, y + _BAR // 2), kind, _INK, _font(20), anchor="lm")
    x = float(_MARGIN + _LABELS)
    for stage, colour in STAGES.items():
        width = taken[stage] * scale
        draw.rectangle((x, y, x + width, y + _BAR), colour)
        text = f"{taken[stage]:.2f}"
        # A stage that is too thin for its number is in the table.
        if _font(15).getlength(text) + 6 < width:
            draw.text((x + width / 2, y + _BAR // 2), text, _INK, _font(15), anchor="mm")
        x += width
    total = sum(taken.values())
    draw.text((x + 12, y + _BAR // 2 - 12), f"{total:.1f} ms", _INK, _font(18), anchor="lm")
    draw.text((x + 12, y + _BAR // 2 + 12), f"{1000 / total:.1f} images/s a core", _FAINT, _font(15), anchor="lm")


def _draw_axis(draw: ImageDraw.ImageDraw, y: int, longest: float, scale: float) -> None:
    """Draw a line with a tick at round numbers of ms."""
    left = _MARGIN + _LABELS
    draw.line((left, y, left + longest * scale, y), _FAINT)
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1e9) if longest / step <= 10)
    for tick in range(int(longest / step) + 1):
        x = left + tick * step * scale
        draw.line((x, y, x, y + 6), _FAINT)
        draw.text((x, y + 10), f"{tick * step:g} ms", _FAINT, _font(14), anchor="ma")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def median_of(repetitions: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return each stage's median over repetitions."""
    return {stage: statistics.median(one[stage] for one in repetitions) for stage in STAGES}


def write_picture(stages: dict[str, list[dict[str, float]]], title: str, path: Path) -> None:
    """Draw the medians of {kind: repetitions} into a file."""
    draw_stages({kind: median_of(repetitions) for kind, repetitions in stages.items()}, title).save(path)
