"""Every module of a network that can be a layer, with what it gives; and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from exemplar_ray.data.first_images import noise
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.network.describe import described_layer
from exemplar_ray.network.inputs import takes_labels
from exemplar_ray.network.inquiry import Found, Inquiry, only_output
from exemplar_ray.network.layers import Layer
from exemplar_ray.network.layouts import AUTO
from exemplar_ray.network.looks import FailsError, look
from exemplar_ray.network.questions import NOISE
from exemplar_ray.network.receptive_field import WatchedOperations
from exemplar_ray.network.tell_layout import tell_layout


@dataclass(frozen=True)
class Survey:
    """What a network has."""

    layers: tuple[Layer, ...]
    """In the order in which they run."""
    not_layers: Mapping[str, str]
    """{module: why it cannot be a layer}"""


def survey(module: nn.Module, preprocess: Preprocess) -> Survey:
    """Look at every module of a network at once, with noise for an image.

    Args:
        module: a network in eval mode on the CPU.
        preprocess: its size of images and its channels matter, and no more.

    Raises:
        UsageError: the network fails on an image of that size.
    """
    images = noise(preprocess, NOISE, takes_labels(module))
    names = [name for name, _ in module.named_modules() if name]
    inquiry = Inquiry(module, names, preprocess, images)
    not_layers = _look(inquiry)
    # All at once, and not layer by layer.
    _ = inquiry.responses_of_all
    layers: list[Layer] = []
    for name in inquiry.found:
        try:
            layout, _ = tell_layout(inquiry, name, AUTO)
        except UsageError as error:
            not_layers[name] = _short(name, error)
            continue
        layers.append(described_layer(inquiry.found[name], name, layout, "all"))
    in_order = {name: not_layers[name] for name in names if name in not_layers}
    return Survey(tuple(layers), in_order)


def _look(inquiry: Inquiry) -> dict[str, str]:
    """Do an inquiry's first passes, but without a word on modules that cannot be layers; return why they cannot."""
    given = inquiry.first()
    watched = WatchedOperations(given.x)

    order: dict[str, None] = {}

    def take(name: str, output: Any) -> tuple[Any, Any]:
        order.setdefault(name)
        if not isinstance(output, Tensor):
            return type(output).__name__, None
        return output.detach(), watched.followed(output)

    try:
        looked = look(inquiry.module, inquiry.names, given, take, to_the_end=True, watching=watched)
    except FailsError:
        looked = _look_unwatched(inquiry)
    not_layers: dict[str, str] = {}
    for name in [*order, *(name for name in inquiry.names if name not in order)]:
        try:
            output = only_output(name, [output for output, _ in looked[name]], 1)
        except UsageError as error:
            not_layers[name] = _short(name, error)
            continue
        inquiry.found[name] = Found(tuple(output.shape), output)
        inquiry.note_followed(name, looked[name][0][1])
    inquiry.look_at_a_smaller_one()
    return not_layers


def _look_unwatched(inquiry: Inquiry) -> dict[str, list[Any]]:
    def take(_name: str, output: Any) -> tuple[Any, None]:
        return (output.detach() if isinstance(output, Tensor) else type(output).__name__), None

    try:
        return look(inquiry.module, inquiry.names, inquiry.first(), take, to_the_end=True)
    except FailsError as error:
        raise UsageError(inquiry.failure(error)) from error


def _short(name: str, error: UsageError) -> str:
    """Return a refusal without the module's name, and without what to do."""
    return str(error).removeprefix(f"layer '{name}' ").split("; ")[0]
