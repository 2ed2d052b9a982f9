"""timm's models, `timm:NAME` or `timm:NAME.TAG`, as timm makes them, and images as timm prepares them for it.

A tag names weights: `timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k`. Without one, they are those that timm takes.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from exemplar_ray.data.preprocess import INTERPOLATIONS, Preprocess
from exemplar_ray.errors import UsageError, near_matches, one_line
from exemplar_ray.network.architecture import Architecture, StateDict

_USUAL = {"input_size": (3, 224, 224)}
_CENTRE, _SQUASH = "center", "squash"


def timm_model(name: str, _weights: str) -> Architecture:
    """Look a model of timm up.

    Raises:
        UsageError: timm is not installed, or has no such model or weights; or it prepares images for the model in a way
            that has no words here.
    """
    try:
        import timm
    except ImportError as error:
        raise UsageError("'timm:...' needs one more package: pip install 'timm>=1.0'") from error
    if not timm.is_model(name):
        raise UsageError(f"timm has no model '{name}'; {near_matches(name, timm.list_models())}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name.partition('.')[0]}.*")]
        raise UsageError(f"timm: {one_line(error)} {near_matches(name.partition('.')[2], tags)}") from error
    return Architecture(
        title=f"timm {name}",
        build=partial(timm.create_model, name, pretrained=False),
        pretrained=partial(_pretrained, name),
        # Without one of its own, timm takes what is usual.
        preprocess=_preprocess(
            name, timm.data.resolve_data_config(pretrained_cfg=config.to_dict() if config else _USUAL)
        ),
    )


def _preprocess(name: str, config: dict[str, Any]) -> Preprocess:
    """Return timm's own, see `timm.data.transforms_factory.transforms_imagenet_eval`.

    Args:
        config: as `timm.data.resolve_data_config` returns it.

    Raises:
        UsageError: images are not resized and cropped to a square, or are not in colours.
    """
    channels, height, width = config["input_size"]
    mode, interpolation = config["crop_mode"], config["interpolation"]
    side = math.floor(height / config["crop_pct"])
    known = mode in (_CENTRE, _SQUASH) and interpolation in INTERPOLATIONS
    if channels != 3 or height != width or side < height or not known:
        raise UsageError(
            f"timm prepares images for '{name}' in a way that has no words here (input {config['input_size']}, crop "
            f"mode {mode}, {interpolation}); use another model"
        )
    return Preprocess(
        resize=(side, side) if mode == _SQUASH else side,
        crop=height,
        scale=1.0,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=interpolation,
    )


def _pretrained(name: str) -> StateDict:
    """Return the weights that timm's own loader gives, from its cache or from the Hugging Face Hub.

    Raises:
        UsageError: they cannot be had.
    """
    import timm

    if not timm.models.is_model_pretrained(name):
        raise UsageError(
            f"timm has no weights for '{name}'; give --weights FILE, or random:SEED for an untrained network"
        )
    try:
        state: StateDict = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # whatever the Hub's client, a cache or a torn file raise
        raise UsageError(
            f"timm's weights of '{name}' cannot be had ({type(error).__name__}: {one_line(error)}); fetch them once "
            "where the Hub can be reached and copy HF_HOME here, or give --weights FILE, or random:SEED for an "
            "untrained network"
        ) from error
    return state
