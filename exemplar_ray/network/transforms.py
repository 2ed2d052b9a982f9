"""A transform of torchvision, said in the keys of `Preprocess`; or refused, if it does anything that they have no word
for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from exemplar_ray.data.preprocess import GREY, Preprocess
from exemplar_ray.errors import UsageError

_KEYS = "say it in keys, such as preprocess={'resize': 256, 'crop': 224, 'scale': 1, 'mean': [...], 'std': [...]}"
# Images are decoded to RGB here.
_NOTHING_TO_SAY = ("Identity", "ToPureTensor", "RGB", "_convert_to_rgb")
_TENSOR = "tensor"


def preprocess_of(transform: Any) -> Preprocess:
    """Return the preprocessing that a transform is, from a Pillow image to the network's input.

    Args:
        transform: a `Compose` of `Resize`, `CenterCrop`, `ToTensor` (or what stands for it in version 2) and
            `Normalize`, perhaps with `Grayscale` at their head, or what a library's weights bring as theirs
            (`weights.transforms()`).

    Raises:
        UsageError: it is none, or does something else, or in another order.
    """
    if hasattr(transform, "resize_size") and hasattr(transform, "crop_size"):
        return of_preset(transform)
    steps = list(_steps(transform))
    found: dict[str, Any] = {}
    for name, step in steps:
        say = _WORDS.get(name)
        if say is None:
            raise UsageError(f"preprocess: the transform's {name} has no word here, only {', '.join(_SHOWN)}; {_KEYS}")
        said = say(step)
        # Torch resizes a tensor to other numbers than Pillow an image, and what was cropped before is not resized here.
        if ("resize" in said and found.keys() - {"order"}) or ("order" in said and found):
            raise UsageError(f"preprocess: the transform's {name} is not its first step; {_KEYS}")
        again = next((key for key in said if key in found and key != _TENSOR), None)
        if again is not None:
            raise UsageError(f"preprocess: the transform's {name} sets {again} once more; {_KEYS}")
        found.update(said)
    found.pop(_TENSOR, None)
    return _checked(found, [name for name, _ in steps])


def _checked(found: dict[str, Any], names: Sequence[str]) -> Preprocess:
    if "scale" not in found:
        raise UsageError(f"preprocess: the transform ({', '.join(names)}) makes no tensor of 0..1; {_KEYS}")
    if "resize" not in found:
        raise UsageError(f"preprocess: the transform ({', '.join(names)}) does not resize; {_KEYS}")
    mean = 0.0 if found.get("order") == GREY else (0.0, 0.0, 0.0)
    return Preprocess(**{"mean": mean, "crop": None, **found})


def of_preset(preset: Any) -> Preprocess:
    """Return what torchvision's preset for classification does.

    Raises:
        UsageError: it resizes to something else than one size.
    """
    return Preprocess(
        resize=_size(preset.resize_size),
        crop=_size(preset.crop_size),
        scale=1.0,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def _steps(transform: Any) -> Iterator[tuple[str, Any]]:
    """Yield the steps of a transform, those within others as well, by their classes' names."""
    inner = getattr(transform, "transforms", None)
    if inner is None and isinstance(transform, torch.nn.Sequential):
        inner = list(transform)
    if isinstance(inner, (list, tuple)):
        for step in inner:
            yield from _steps(step)
    elif callable(transform):
        yield getattr(transform, "__name__", type(transform).__name__), transform
    else:
        raise UsageError(f"preprocess is a mapping of keys or a transform of torchvision, not {transform!r:.60}")


def _size(size: Any) -> Any:
    """Return a size as `resize` takes it: a number for the shorter side, two for both."""
    if isinstance(size, (list, tuple)):
        return size[0] if len(size) == 1 else tuple(size)
    return size


def _resize(step: Any) -> dict[str, Any]:
    if getattr(step, "max_size", None) is not None or step.size is None:
        raise UsageError(f"preprocess: the transform's Resize has a largest size, which has no word here; {_KEYS}")
    return {"resize": _size(step.size), "interpolation": getattr(step.interpolation, "value", step.interpolation)}


def _crop(step: Any) -> dict[str, Any]:
    sides = step.size if isinstance(step.size, (list, tuple)) else (step.size,)
    if len(set(sides)) > 1:
        raise UsageError(f"preprocess: the transform crops to {tuple(sides)}; networks get square images here")
    return {"crop": sides[0]}


def _dtype(step: Any) -> dict[str, Any]:
    kind = getattr(step, "dtype", torch.float32)
    if kind != torch.float32 or not getattr(step, "scale", True):
        raise UsageError(f"preprocess: the transform's {type(step).__name__} does not give float32 of 0..1; {_KEYS}")
    return {"scale": 1.0}


def _grayscale(step: Any) -> dict[str, Any]:
    if step.num_output_channels != 1:
        raise UsageError(f"preprocess: the transform's {type(step).__name__} gives three channels of grey; {_KEYS}")
    return {"order": GREY}


def _mode(step: Any) -> dict[str, Any]:
    if step.mode == "L":
        return {"order": GREY}
    if step.mode != "RGB":
        raise UsageError(f"preprocess: the transform converts images to {step.mode}, which has no word here; {_KEYS}")
    return {}


def _normalize(step: Any) -> dict[str, Any]:
    return {"mean": tuple(map(float, step.mean)), "std": tuple(map(float, step.std))}


_WORDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Grayscale": _grayscale,
    "Resize": _resize,
    "CenterCrop": _crop,
    "ToTensor": lambda _: {"scale": 1.0},
    "MaybeToTensor": lambda _: {"scale": 1.0},
    "PILToTensor": lambda _: {_TENSOR: True},
    "ToImage": lambda _: {_TENSOR: True},
    "ToDtype": _dtype,
    "ConvertImageDtype": _dtype,
    "Normalize": _normalize,
    "MaybeConvertMode": _mode,
    **dict.fromkeys(_NOTHING_TO_SAY, lambda _: {}),
}
_SHOWN = ("Resize", "CenterCrop", "ToTensor", "ToImage", "ToDtype", "Normalize", "Grayscale")
