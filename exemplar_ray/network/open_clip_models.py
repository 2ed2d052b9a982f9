"""The image towers of open_clip's models, `open_clip:ARCHITECTURE` or `open_clip:ARCHITECTURE/WEIGHTS`.

As open_clip makes them, with the preprocessing that it evaluates these weights with; without weights, OpenAI's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError, near_matches, one_line
from exemplar_ray.network.architecture import Architecture, StateDict

_SHORTEST, _SQUASH = "shortest", "squash"


def open_clip_model(name: str, _weights: str) -> Architecture:
    """Look an image tower up.

    Raises:
        UsageError: open_clip is not installed, or has no such model or weights; or these weights want another
            architecture, or images prepared in a way that has no words here.
    """
    try:
        import open_clip
    except ImportError as error:
        raise UsageError("'open_clip:...' needs one more package: pip install 'open_clip_torch>=3'") from error
    architecture, _, weights = name.partition("/")
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise UsageError(
            f"open_clip has no model '{architecture}'; {near_matches(architecture, open_clip.list_models())}"
        )
    of_weights = _weights_config(architecture, weights, config) if weights else {}
    return Architecture(
        title=f"open_clip {name}, image tower",
        build=partial(_tower, architecture),
        pretrained=partial(_pretrained, architecture, weights),
        preprocess=_preprocess(name, config["vision_cfg"]["image_size"], of_weights),
    )


def _weights_config(architecture: str, weights: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return what open_clip says of some weights.

    Raises:
        UsageError: it has none of that name, or they are of a network with the other GELU, which it would only warn of.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights not in tags:
        raise UsageError(f"open_clip has no weights '{weights}' for '{architecture}'; {near_matches(weights, tags)}")
    found: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, weights)
    quick = bool(found.get("quick_gelu", False))
    if quick != bool(config.get("quick_gelu", False)):
        other = f"{architecture}-quickgelu" if quick else architecture.removesuffix("-quickgelu")
        raise UsageError(
            f"open_clip's weights '{weights}' are of a network {'with' if quick else 'without'} QuickGELU, which "
            f"'{architecture}' is not; name '{other}/{weights}'"
        )
    return found


def _preprocess(name: str, size: int | tuple[int, int], config: dict[str, Any]) -> Preprocess:
    """Return open_clip's own, see `open_clip.transform.image_transform`.

    Args:
        size: of the tower's images, in pixels.
        config: what open_clip says of the weights; {} for what is usual.

    Raises:
        UsageError: images are not resized and cropped to a square.
    """
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mode = config.get("resize_mode") or _SHORTEST
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if mode not in (_SHORTEST, _SQUASH) or sides[0] != sides[1]:
        raise UsageError(
            f"open_clip prepares images for '{name}' in a way that has no words here (size {size}, {mode}); "
            "use another model"
        )
    # As open_clip takes whatever else is said.
    interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
    return Preprocess(
        resize=(sides[0], sides[0]) if mode == _SQUASH else sides[0],
        crop=sides[0],
        scale=1.0,
        mean=tuple(config.get("mean") or OPENAI_DATASET_MEAN),
        std=tuple(config.get("std") or OPENAI_DATASET_STD),
        interpolation=interpolation,
    )


def _tower(architecture: str, weights: str | None = None) -> nn.Module:
    import open_clip

    tower: nn.Module = open_clip.create_model(
        architecture, pretrained=weights, require_pretrained=weights is not None
    ).visual
    return tower


def _pretrained(architecture: str, weights: str) -> StateDict:
    """Return the weights that open_clip's own loader gives, from its cache or from where it downloads them.

    Raises:
        UsageError: they cannot be had, or none are named.
    """
    import open_clip

    if not weights:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise UsageError(
            f"which weights? name them, 'open_clip:{architecture}/WEIGHTS' (open_clip has: {tags}), or give --weights "
            "FILE, or random:SEED for an untrained network"
        )
    try:
        return _tower(architecture, weights).state_dict()
    except Exception as error:  # whatever the Hub's client, a cache or a torn file raise
        raise UsageError(
            f"open_clip's weights '{weights}' of '{architecture}' cannot be had ({type(error).__name__}: "
            f"{one_line(error)}); fetch them once where they can be reached and copy HF_HOME and ~/.cache/clip here, "
            "or give --weights FILE, or random:SEED for an untrained network"
        ) from error
