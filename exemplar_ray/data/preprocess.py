"""Preprocessing: from a decoded image to the numbers that a network takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import yaml

from exemplar_ray.errors import UsageError, near_matches

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming")

RGB, BGR, GREY = "rgb", "bgr", "grey"
# What red, green and blue are to grey: Rec. 601's, as Pillow's mode L has them.
LUMA = (0.299, 0.587, 0.114)
ORDERS = (RGB, BGR, GREY)

ROUNDED, FLOORED = "rounded", "floored"
CENTRES = (ROUNDED, FLOORED)

FAST_DECODER, GPU_DECODER = "fast", "gpu"
DECODERS = ("reference", FAST_DECODER, GPU_DECODER)


@dataclass(frozen=True)
class Preprocess:
    """From a decoded image to the network's input.

    The shorter side is resized to `resize` pixels (Pillow, antialiased), the centre
    `crop` x `crop` pixels are cut out, values are put on 0..`scale`, then `mean` (RGB) is
    subtracted and the rest divided by `std` (RGB). The network gets red first, or, in the `order`
    bgr, blue.

    Where `resize` is two numbers, height and width, the image is squashed to these, as torchvision's
    `Resize((height, width))` does. `crop` may then be None, for none: the image as it was resized, which is square.

    Where the centre lies between two pixels, the crop starts at the one that half to even gives, as torchvision's
    `CenterCrop` does; or, with the `centre` floored, at the lower one, as transformers' image processors do.

    In the `order` grey the image is made grey before all this, by Pillow's mode L, and the network gets one channel;
    `mean` and `std` are then one number each.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: int | tuple[int, int] = 256
    crop: int = 224
    scale: float = 255.0
    interpolation: str = "bilinear"
    order: str = RGB
    centre: str = ROUNDED

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise UsageError(f"preprocess: order is one of {', '.join(ORDERS)}, not {self.order!r}")
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._of_each_channel(name))
        if 0.0 in self.std:
            raise UsageError("preprocess: std must not be 0")
        self._settle_sizes()
        if not is_number(self.scale) or self.scale <= 0:
            raise UsageError(f"preprocess: scale is a number above 0, not {self.scale!r}")
        object.__setattr__(self, "scale", float(self.scale))
        if self.interpolation not in INTERPOLATIONS:
            hint = near_matches(str(self.interpolation), INTERPOLATIONS)
            raise UsageError(f"preprocess: unknown interpolation '{self.interpolation}'; {hint}")
        if self.centre not in CENTRES:
            raise UsageError(f"preprocess: centre is one of {', '.join(CENTRES)}, not {self.centre!r}")

    @property
    def channels(self) -> int:
        """Return how many channels the network gets: three, or one of a grey image."""
        return 1 if self.order == GREY else 3

    @property
    def crop_shape(self) -> tuple[int, int, int]:
        """Return the shape of the pixels that are cut out of an image: height, width, channels."""
        return self.crop, self.crop, self.channels

    def _of_each_channel(self, name: str) -> tuple[float, ...]:
        """Return `mean` or `std` as a number for each channel.

        Raises:
            UsageError: it is something else.
        """
        value = getattr(self, name)
        values = [value] if self.order == GREY and is_number(value) else value
        if name == "std" and self.order == GREY and values == (1.0, 1.0, 1.0):
            # As by default: divided by nothing.
            values = (1.0,)
        is_sequence = isinstance(values, Sequence) and not isinstance(values, str)
        if not is_sequence or not all(is_number(v) for v in values) or len(values) != self.channels:
            if self.order == GREY:
                raise UsageError(f"preprocess: {name} is one number of a grey image (order: grey), not {value!r}")
            hint = "; one is of a network that takes one channel, order: grey" if is_one_number(value) else ""
            raise UsageError(f"preprocess: {name} is three numbers (red, green, blue), not {value!r}{hint}")
        return tuple(float(v) for v in values)

    def _settle_sizes(self) -> None:
        squashed = isinstance(self.resize, (list, tuple))
        sides = tuple(self.resize) if isinstance(self.resize, (list, tuple)) else (self.resize,)
        if len(sides) > 2 or not sides or not all(is_whole(side) and side > 0 for side in sides):
            raise UsageError(f"preprocess: resize is a number of pixels, or two: [HEIGHT, WIDTH], not {self.resize!r}")
        if squashed:
            object.__setattr__(self, "resize", sides if len(sides) == 2 else sides[0])
        if self.crop is None:
            if len(sides) < 2 or sides[0] != sides[1]:
                raise UsageError(
                    "preprocess: without a crop images have to be squashed to a square, resize: [SIDE, SIDE]; networks "
                    "get square images here"
                )
            object.__setattr__(self, "crop", sides[0])
        if not is_whole(self.crop) or self.crop < 1:
            raise UsageError(f"preprocess: crop is a number of pixels, not {self.crop!r}")
        if self.crop > min(sides):
            raise UsageError(f"preprocess: crop ({self.crop}) must not be larger than resize ({self.resize})")

    def to_json(self) -> dict[str, Any]:
        """Return its fields; `Preprocess(**values)` reads them back.

        The usual order and centre are left out: run folders from before there were others have none.
        """
        values = asdict(self)
        for name, usual in (("order", RGB), ("centre", ROUNDED)):
            if values[name] == usual:
                del values[name]
        return values

    def as_flag(self) -> str:
        """Return the whole of it as the value of `--preprocess`.

        >>> Preprocess(mean=(117, 117, 117), interpolation="bicubic").as_flag()
        '{mean: [117, 117, 117], std: [1, 1, 1], resize: 256, crop: 224, scale: 255, interpolation: bicubic}'
        """
        values = {name: _plain(value) for name, value in self.to_json().items()}
        return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=10_000).strip()

    def in_words(self) -> str:
        """Say how an image becomes the network's input.

        >>> Preprocess(mean=(123, 117, 104)).in_words()
        'shorter side to 256 pixels (bilinear), centre 224 × 224, RGB 0..255 minus (123, 117, 104)'
        >>> Preprocess(scale=1, mean=(0, 0, 0.5), std=(2, 2, 1), resize=8, crop=8, order="bgr").in_words()
        'shorter side to 8 pixels (bilinear), centre 8 × 8, RGB 0..1 minus (0, 0, 0.5) over (2, 2, 1), as BGR'
        >>> Preprocess(scale=1, mean=0.13, std=0.31, resize=28, crop=28, order="grey").in_words()
        'made grey, shorter side to 28 pixels (bilinear), centre 28 × 28, grey 0..1 minus (0.13) over (0.31)'
        """
        size = (
            f"shorter side to {self.resize}"
            if isinstance(self.resize, int)
            else "squashed to {} × {}".format(*self.resize)
        )
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        divided = "" if set(self.std) == {1.0} else f" over ({std})"
        reversed_ = ", as BGR" if self.order == BGR else ""
        made, colours = ("made grey, ", GREY) if self.order == GREY else ("", "RGB")
        floored = " (floored)" if self.centre == FLOORED else ""
        return (
            f"{made}{size} pixels ({self.interpolation}), centre{floored} {self.crop} × {self.crop}, "
            f"{colours} 0..{self.scale:g} minus ({mean}){divided}{reversed_}"
        )

    def with_other_channels(self) -> Preprocess:
        """Return an example of the same for a network that takes one channel, where this gives three; or the other way
        round."""
        if self.order == GREY:
            return replace(self, order=RGB, mean=self.mean * 3, std=self.std * 3)
        mean, std = (round(sum(values) / 3, 6) for values in (self.mean, self.std))
        return replace(self, order=GREY, mean=(mean,), std=(std,))

    @classmethod
    def of(cls, own: Preprocess | None, overrides: Mapping[str, Any] | None, why_none: str = "") -> Preprocess:
        """Lay the user's keys over the model's own preprocessing.

        Args:
            why_none: of a model without one, the reason, where there is one to tell.

        Raises:
            UsageError: a key is unknown, a value is impossible, or the model has no
                preprocessing of its own and the user gave no `mean`.
        """
        overrides = dict(overrides or {})
        names = [f.name for f in fields(cls)]
        for key in overrides:
            if key not in names:
                raise UsageError(f"preprocess: unknown key '{key}'; {near_matches(str(key), names)}")
        if own is None and "mean" not in overrides:
            raise UsageError(
                f"{why_none or 'this model brings no preprocessing of its own'}; give it, for example "
                "--preprocess '{resize: 256, crop: 224, scale: 255, mean: [123, 117, 104], std: [1, 1, 1]}'"
            )
        squashed = isinstance(overrides.get("resize"), (list, tuple))
        if squashed and "crop" not in overrides:
            # The model's own crop is of its own size.
            overrides["crop"] = None
        return cls(**({**asdict(own), **overrides} if own else overrides))


def is_whole(value: Any) -> bool:
    """Whether a value from a config file is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_one_number(value: Any) -> bool:
    return is_number(value) or (isinstance(value, (list, tuple)) and len(value) == 1 and is_number(value[0]))


def _plain(value: Any) -> Any:
    """Write whole numbers as such, tuples as lists."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
