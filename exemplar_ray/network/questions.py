"""The questions put to a network before it is believed, and its answers. Imports no torch.

What a forward pass over one image cannot tell is asked with two: whether the same image gives the same numbers twice,
and alone as in a batch; whether the first axis is the images; whether images of another size are taken. What fails is
refused, with what the network does and what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from exemplar_ray.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from exemplar_ray.network.spec import NetworkSpec

# How far two answers for the same image may differ: rounding, as a share of the answer, and of what tells two images
# apart. Other batch sizes and memory formats are computed with other kernels, which sum in another order.
_ROUNDING = 1e-5
_SHARE_OF_DIFFERENCE = 1e-3

RANDOM_OR_CHANGING = (
    "something in it is random, as dropout that stays on (F.dropout without training=self.training), or changes from "
    "one call to the next; make it stop in eval mode"
)

_NAMES = ("same_for_both", "same_for_both_labels")
"""The answers that are layers' names."""

NOISE = "noise, as no image was at hand"
AS_GIVEN = "as given"


@dataclass(frozen=True)
class Answers:
    """What a network answered. `difference`s are the largest of any layer: the norm of what two answers differ by, as
    a share of that for two different images."""

    asked_with: str
    """Which images."""
    repeated_difference: float
    """Between the same image twice."""
    batch_difference: float
    """Between an image alone, and as the second of a batch of two."""
    other_size: str | None
    """Why the network refuses images of another size; None if it takes them."""
    channels_last: bool
    """Whether it runs with the channels last in memory."""
    layouts: Mapping[str, str] = field(default_factory=dict)
    """{layer: how its output lies, and what told}"""
    same_for_both: tuple[str, ...] = ()
    """Layers that gave the same for both images."""
    same_for_both_labels: tuple[str, ...] = ()
    """Layers that gave the same for an image with another label, of a network that is given labels."""

    @property
    def given_layouts(self) -> list[str]:
        """Return the layers whose layout is as the user gave it."""
        return [layer for layer, why in self.layouts.items() if AS_GIVEN in why]

    def news(self) -> list[str]:
        """Return of `lines` those that tell of something that is not as usual."""
        given = [f"layer {layer}: {self.layouts[layer]}" for layer in self.given_layouts]
        noise = [f"the network was questioned with {self.asked_with}"] if self.asked_with.startswith("noise") else []
        return [*given, *self._unusual(), *noise]

    def _unusual(self) -> list[str]:
        lines = []
        if not self.channels_last:
            lines.append("it does not run with the channels last in memory, so it runs without, which may take longer")
        if self.same_for_both:
            lines.append(f"the same for two different images: {', '.join(self.same_for_both)}")
        if self.same_for_both_labels:
            lines.append(f"the same for an image with another label: {', '.join(self.same_for_both_labels)}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return {**asdict(self), "layouts": dict(self.layouts), **{name: list(getattr(self, name)) for name in _NAMES}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Answers:
        """Read back what `to_json` wrote."""
        return cls(**{**values, **{name: tuple(values.get(name, ())) for name in _NAMES}})

    def lines(self) -> list[str]:
        """Say in lines of text what was asked, and answered."""
        lines = [
            f"asked with {self.asked_with}: the same image gives the same numbers twice, and alone as in a batch "
            f"(within {max(self.repeated_difference, self.batch_difference):.1g} of what tells two images apart)",
            f"images of another size are refused: {self.other_size}"
            if self.other_size
            else "images of another size are taken, too",
        ]
        return [*lines, *(f"layer {layer}: {why}" for layer, why in self.layouts.items()), *self._unusual()]


@dataclass(frozen=True)
class KnownNetwork:
    """A network that has been built and questioned."""

    spec: NetworkSpec
    answers: Answers


def refuse_other_first_axis(layer: str, shape: tuple[int, ...], images: int) -> None:
    """Refuse a layer whose first axis is not the images.

    Raises:
        UsageError: it gives another number of rows than there are images.
    """
    if not shape or shape[0] != images:
        count = "one image" if images == 1 else f"{images} images"
        raise UsageError(
            f"layer '{layer}' gives a tensor of shape {list(shape)} for {count}: its first axis is not the images; "
            "name a layer before images are cut into pieces, or after they are put together again"
        )


def refuse_changing(layer: str, difference: float) -> None:
    """Refuse a network that gives something else for the same image.

    Raises:
        UsageError: the difference is more than rounding explains.
    """
    if not difference <= _SHARE_OF_DIFFERENCE:
        raise UsageError(
            f"the network is no function of the image: layer '{layer}' gives other numbers for the same image each "
            f"time (by {difference:.2g} of what tells two images apart); {RANDOM_OR_CHANGING}"
        )


def refuse_dependence_on_batch(layer: str, difference: float) -> None:
    """Refuse a network that gives something else for an image as soon as others are in the batch.

    Raises:
        UsageError: the difference is more than rounding explains.
    """
    if not difference <= _SHARE_OF_DIFFERENCE:
        raise UsageError(
            f"an image's numbers depend on the other images of its batch: layer '{layer}' gives others for it alone "
            f"(by {difference:.2g} of what tells two images apart); something in it computes over the batch, such as "
            "batch statistics that stay on in eval mode (track_running_stats=False), or depends on the place in it; "
            "make it stop"
        )


def difference(one: Tensor, again: Tensor, other: Tensor) -> float:
    """Return how far two answers for one image are apart, as a share of how far two images are.

    What rounding explains counts as nothing.

    Args:
        one: the output for an image.
        again: the output for the same.
        other: the output for another image.
    """
    one, again, other = (tensor.double().nan_to_num(posinf=1e300, neginf=-1e300) for tensor in (one, again, other))
    apart = float((one - again).norm())
    rounding = _ROUNDING * float(one.norm())
    if apart <= rounding:
        return 0.0
    of_images = float((one - other).norm())
    return (apart - rounding) / of_images if of_images else float("inf")
