"""The usual ways to make numbers of pixels. Networks are trained with one of them, and answer to it best."""

from __future__ import annotations

from dataclasses import replace

from exemplar_ray.data.preprocess import BGR, GREY, RGB, Preprocess

IN_USE = "in use"

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CAFFE_MEAN = (123.0, 117.0, 104.0)

_USUAL = {
    "0..255 minus 117, as Lucid's and Lucent's InceptionV1": Preprocess(mean=(117.0, 117.0, 117.0)),
    "ImageNet's mean and std on 0..1": Preprocess(scale=1.0, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "-1..1": Preprocess(scale=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "0..1": Preprocess(scale=1.0, mean=(0.0, 0.0, 0.0)),
    "0..255": Preprocess(mean=(0.0, 0.0, 0.0)),
    "0..255 minus Caffe's mean, RGB": Preprocess(mean=_CAFFE_MEAN),
    "0..255 minus Caffe's mean, BGR": Preprocess(mean=_CAFFE_MEAN, order=BGR),
}
"""{name: what it is but for size and crop}"""

_USUAL_OF_GREY = {
    "MNIST's mean and std on 0..1": Preprocess(scale=1.0, mean=(0.1307,), std=(0.3081,), order=GREY),
    "-1..1": Preprocess(scale=1.0, mean=(0.5,), std=(0.5,), order=GREY),
    "0..1": Preprocess(scale=1.0, mean=(0.0,), order=GREY),
    "0..255": Preprocess(mean=(0.0,), order=GREY),
}
"""The same for networks that take one channel."""


def usual_preprocessings(in_use: Preprocess, own: Preprocess | None) -> dict[str, Preprocess]:
    """Return what to try: the one in use first, then others that differ from it, each once.

    They differ in numbers and in the order of channels. Size, crop and interpolation stay, so that an image is
    decoded and cropped once.

    Args:
        own: the model's own, where it brings one.
    """
    is_grey = in_use.order == GREY
    named = {**({"the model's own": own} if own is not None else {}), **(_USUAL_OF_GREY if is_grey else _USUAL)}
    others = {
        name: replace(in_use, scale=one.scale, mean=one.mean, std=one.std, order=one.order)
        for name, one in named.items()
        if one.channels == in_use.channels
    }
    if is_grey:
        others["the one in use, black and white swapped"] = _negative(in_use)
    else:
        swapped = BGR if in_use.order == RGB else RGB
        others["the one in use, red and blue swapped"] = replace(in_use, order=swapped)
    found, seen = {IN_USE: in_use}, {_by_values(in_use)}
    for name, preprocess in others.items():
        if _by_values(preprocess) not in seen:
            seen.add(_by_values(preprocess))
            found[name] = preprocess
    return found


def _negative(preprocess: Preprocess) -> Preprocess:
    """Return what prepares an image as this does its negative: (scale - x - mean) / std is
    (x - (scale - mean)) / -std."""
    mean, std = [preprocess.scale - m for m in preprocess.mean], [-s for s in preprocess.std]
    return replace(preprocess, mean=tuple(mean), std=tuple(std))


def _by_values(preprocess: Preprocess) -> Preprocess:
    """Return one that stands for all that give the same numbers: (0..255 - 117) / 58 is (0..1 - 117/255) / (58/255)."""
    share = preprocess.scale
    mean, std = ([round(value / share, 6) for value in values] for values in (preprocess.mean, preprocess.std))
    return replace(preprocess, scale=1.0, mean=tuple(mean), std=tuple(std))
