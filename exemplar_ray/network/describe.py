"""What a network's layers give, and whether it can be believed: the questions of an `inquiry`, put and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from exemplar_ray.data.first_images import TwoImages, noise
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.network.inputs import takes_labels
from exemplar_ray.network.inquiry import OPERATIONS, Found, Inquiry
from exemplar_ray.network.layers import NCHW, NHWC, VECTOR, Layer, parse_channels
from exemplar_ray.network.layouts import AUTO, GivenLayout, layout_of, refuse_unknown_layers
from exemplar_ray.network.names_elsewhere import explained
from exemplar_ray.network.pre_relu import split_name
from exemplar_ray.network.questions import NOISE, Answers
from exemplar_ray.network.tell_layout import tell_layout


@dataclass(frozen=True)
class Questioned:
    """A network's layers, and its answers."""

    layers: tuple[Layer, ...]
    answers: Answers


def describe_layers(
    module: nn.Module, names: Sequence[str], channels: str, preprocess: Preprocess
) -> tuple[Layer, ...]:
    """Find out what the wanted layers give; see `question_network`."""
    return question_network(module, names, channels, preprocess).layers


def question_network(
    module: nn.Module,
    names: Sequence[str],
    channels: str,
    preprocess: Preprocess,
    images: TwoImages | None = None,
    layout: GivenLayout = AUTO,
) -> Questioned:
    """Find out what the wanted layers give, and whether the network is a function of the image.

    Args:
        module: a network in eval mode on the CPU.
        names: module names, as `module.named_modules()` spells them.
        channels: the wanted channels, as `layers.parse_channels` reads them.
        images: None for noise.
        layout: how outputs lie, where the user says so.

    Raises:
        UsageError: a layer does not exist, does not run exactly once in a forward pass, or its output has no channels,
            or no layout that can be told; a channel is out of range; or the network is no function of the image.
    """
    refuse_unknown_layers(layout, names)
    _refuse_unknown_modules(module, names)
    if images is None:
        images = noise(preprocess, NOISE, takes_labels(module))
    inquiry = Inquiry(module, names, preprocess, images)
    inquiry.look_alone()
    inquiry.look_watching()
    other_size = inquiry.look_at_a_smaller_one()
    inquiry.look_with_the_other_label()
    channels_last = inquiry.look_together()
    layouts = {name: tell_layout(inquiry, name, layout_of(layout, name)) for name in names}
    answers = Answers(
        asked_with=images.words,
        repeated_difference=inquiry.repeated_difference,
        batch_difference=inquiry.batch_difference,
        other_size=other_size,
        channels_last=channels_last,
        layouts={name: why for name, (_, why) in layouts.items() if why},
        same_for_both=inquiry.same_for_both,
        same_for_both_labels=inquiry.same_for_both_labels,
    )
    return Questioned(
        tuple(described_layer(inquiry.found[name], name, layouts[name][0], channels) for name in names), answers
    )


def _refuse_unknown_modules(module: nn.Module, names: Sequence[str]) -> None:
    modules = [name for name, _ in module.named_modules() if name]
    for name in names:
        if split_name(name, modules)[0] not in modules:
            raise UsageError(f"unknown layer '{name}'; {explained(name, module) or near_matches(name, modules)}")


def described_layer(found: Found, name: str, layout: str, channels: str) -> Layer:
    """Return a layer as it was found.

    Raises:
        UsageError: a channel is out of range.
    """
    shape, grid = found.shape, found.grid
    count = shape[1] if layout in (NCHW, VECTOR) else shape[-1]
    size: tuple[int, ...] | None = (grid.height, grid.width) if grid else None
    if layout in (NCHW, NHWC):
        size = shape[2:4] if layout == NCHW else shape[1:3]
    try:
        wanted = parse_channels(channels, count)
    except UsageError as error:
        raise UsageError(f"layer '{name}': {error}") from None
    return Layer(
        name=name,
        channel_count=count,
        map_size=(size[0], size[1]) if size else None,
        channels=wanted,
        # Followed along other axes, it is of something else.
        field=found.receptive_field if size and found.votes.get(OPERATIONS, layout) == layout else None,
        layout=layout,
        prefix_tokens=grid.prefix if grid else 0,
    )
