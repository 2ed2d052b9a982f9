"""Which figure is asked for, and whether the run has what it is to show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from exemplar_ray.data.imagenet_names import spelled_out
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.exemplars.sample_names import TOP
from exemplar_ray.network.layers import Layer, format_channels, parse_channels
from exemplar_ray.results.exemplar import Exemplar
from exemplar_ray.results.run import Run
from exemplar_ray.results.visualization import Visualization

VISUALIZATION, MAPS = "visualization", "maps"
EXTRAS = (VISUALIZATION, MAPS)
"""What a figure shows with the exemplars, where it is asked to."""

_MOST_CHANNELS = 100
_MOST_OF_A_CHANNEL = 100
_USUAL_RANKS = 10


@dataclass(frozen=True)
class FigureOptions:
    """How channels are drawn.

    Raises:
        UsageError: there is no such extra.
    """

    ranks: str | None = None
    """Such as "1-9" or "1"; the first ten if None."""
    statistic: str | None = None
    """The run's first if None."""
    sample: str = TOP
    captions: bool = False
    """Whether to write the class below each picture."""
    extras: tuple[str, ...] = ()
    """Of `EXTRAS`. With any, one channel is drawn large: its visualisations on top, its exemplars beside their maps."""

    def __post_init__(self) -> None:
        for extra in self.extras:
            if extra not in EXTRAS:
                raise UsageError(
                    f"a figure is drawn with {' or '.join(EXTRAS)}, not '{extra}'; {near_matches(extra, EXTRAS)}"
                )


USUAL = FigureOptions()


@dataclass(frozen=True)
class Shown:
    """What a figure shows of a run."""

    layer: Layer
    channels: Sequence[int]
    ranks: range
    statistic: str
    sample: str
    captions: bool
    extras: tuple[str, ...]

    @property
    def one_neuron(self) -> bool:
        """Whether it is all of one channel, and not a grid."""
        return bool(self.extras) and len(self.channels) == 1

    @property
    def columns(self) -> int:
        """How many pictures of a grid stand side by side."""
        return len(self.ranks) + (VISUALIZATION in self.extras)


def shown_of(run: Run, which: str, options: FigureOptions) -> Shown:
    """Find out what is asked for.

    Raises:
        UsageError: the run does not have it, or it is too much for a figure.
    """
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
    statistic = spec.statistics[0] if options.statistic is None else options.statistic
    sample = options.sample
    for kind, value, offered in (("statistic", statistic, spec.statistics), ("sample", sample, spec.shown_samples)):
        if value not in offered:
            raise UsageError(f"this run has no {kind} '{value}'; {near_matches(value, offered)}")
    ranks = _ranks(options.ranks, spec.top_k)
    shown = Shown(layer, wanted, ranks, statistic, sample, options.captions, options.extras)
    if MAPS in shown.extras:
        _refuse_maps(shown)
    if shown.one_neuron and len(ranks) > _MOST_OF_A_CHANNEL:
        raise UsageError(f"a figure shows at most {_MOST_OF_A_CHANNEL} exemplars of a channel; show fewer --ranks")
    return shown


def _ranks(text: str | None, top_k: int) -> range:
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text if text is not None else f"1-{min(top_k, _USUAL_RANKS)}")
    ranks = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not ranks or ranks[0] < 1 or ranks[-1] > top_k:
        raise UsageError(f"ranks are '1-{min(top_k, _USUAL_RANKS)}' or '1', from 1 to {top_k}, not '{text}'")
    return ranks


def _refuse_maps(shown: Shown) -> None:
    name = shown.layer.name
    if shown.layer.map_size is None:
        raise UsageError(f"the channels of {name} have no activation maps; leave out {MAPS}")
    if len(shown.channels) > 1:
        raise UsageError(
            f"maps stand beside the exemplars of one channel, such as {name}:{shown.channels[0]}, not of "
            f"{len(shown.channels)}; leave out {MAPS}, or draw one channel at a time"
        )


def exemplars_of(run: Run, shown: Shown) -> list[Exemplar]:
    """Return the exemplars that are to be drawn.

    Raises:
        UsageError: the run was published without images.
    """
    rows = run.exemplars(
        layer=shown.layer.name,
        statistic=shown.statistic,
        sample=shown.sample,
        channel=list(shown.channels),
        rank=shown.ranks,
    )
    if any(row["image"] is None for row in rows):
        raise UsageError(f"'{run.uri}' holds no images: it was published without them")
    return rows


def visualizations_of(run: Run, shown: Shown) -> dict[int, list[Visualization]]:
    """Return each channel's visualisations, if they are asked for.

    Raises:
        UsageError: they are, and a channel has none.
    """
    if VISUALIZATION not in shown.extras:
        return {}
    made, name = run.visualizations, shown.layer.name
    if not made.exist:
        raise UsageError(
            f"'{run.uri}' has no visualisations; exemplar-ray visualize {run.uri} makes them, or leave out "
            f"{VISUALIZATION}"
        )
    if made.statistic != shown.statistic:
        raise UsageError(
            f"the visualisations of '{run.uri}' are made for {made.statistic}, not {shown.statistic}; choose "
            f"--statistic {made.statistic}, or leave out {VISUALIZATION}"
        )
    found = made.of_channels(name, shown.channels, shown.statistic)
    lacking = [channel for channel in shown.channels if channel not in found]
    if lacking:
        raise UsageError(
            f"'{run.uri}' has no visualisation of {name}:{format_channels(lacking)}; leave out these channels, or "
            f"{VISUALIZATION}"
        )
    return found


def class_of(row: Exemplar) -> str:
    """Return the class below an exemplar, in letters that can be printed."""
    name = " ".join(spelled_out(row["class_name"] or "").split())
    return "".join(letter if letter.isprintable() else "�" for letter in name)


def warnings_of(run: Run) -> list[str]:
    """Return what must be seen wherever the figure is."""
    untrained = [] if run.plan.spec.network.trained else ["UNTRAINED NETWORK"]
    return untrained + ([f"PARTIAL: only {run.partial}"] if run.partial else [])


def unsettled_of(run: Run, shown: Shown) -> set[int]:
    """Return the channels whose ranking is in doubt."""
    wanted = shown.layer.name, shown.statistic, shown.sample
    return {one.channel for one in run.summary.unsettled if (one.layer, one.statistic, one.sample) == wanted}
