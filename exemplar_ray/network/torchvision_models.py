"""torchvision's models, as torchvision's own loader gives them.

A loader does more than load: with weights it sets switches that its class leaves off (GoogLeNet and Inception v3
then transform their input), drops heads, and renames what older files call otherwise. So every network comes out of
`torchvision.models.get_model(name, weights=...)`, and only the download is replaced, by the state dict that is wanted.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from torch import nn

from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.network.architecture import Architecture, StateDict
from exemplar_ray.network.transforms import of_preset
from exemplar_ray.network.weights import differences, downloaded, filled, one_line

TRANSFORMED = "+transform_input"
"""What is added to the name of a model whose loader lets it transform its input: it is another network than the class
alone gives, with the same weights."""


def torchvision_model(name: str, weights: str = "pretrained") -> Architecture:
    """Look up a classification model of torchvision.

    Args:
        name: as torchvision registers it; `TRANSFORMED` behind it changes nothing.
        weights: `DEFAULT`, `IMAGENET1K_V1`, ... decide the preprocessing and the switches. For whatever else,
            they are those of `DEFAULT`.

    Raises:
        UsageError: there is no such model.
    """
    from torchvision import models

    name = name.removesuffix(TRANSFORMED)
    names = models.list_models(module=models)
    if name not in names:
        raise UsageError(f"torchvision has no classification model '{name}'; {near_matches(name, names)}")
    entries = models.get_model_weights(name)
    entry = entries.__members__.get(weights.removeprefix(f"{entries.__name__}."), entries.DEFAULT)
    return Architecture(
        title=f"torchvision {name}",
        build=partial(_build, name, entry),
        pretrained=partial(_download, name, entry),
        preprocess=of_preset(entry.transforms()),
        load=partial(_load, name, entry),
        weights_names=(*entries.__members__, *(f"{entries.__name__}.{member}" for member in entries.__members__)),
    )


def _download(name: str, entry: Any) -> StateDict:
    return downloaded(
        f"the weights of torchvision:{name}", entry.url, partial(entry.get_state_dict, progress=False, check_hash=True)
    )


def _build(name: str, entry: Any) -> nn.Module:
    """Make the network that the weights would go into, with random weights in their place.

    These are the ones that the class draws without weights: with them, some builders leave out the drawing.
    """
    return _from_loader(name, entry, _untrained(name, entry).state_dict())


def _untrained(name: str, entry: Any) -> nn.Module:
    from torchvision import models

    # The one switch that a class's own weights depend on: a vision transformer has one position for each patch.
    size = {"image_size": entry.meta["min_size"][0]} if name.startswith("vit_") else {}
    return models.get_model(name, weights=None, **size)


def _load(name: str, entry: Any, state: StateDict) -> nn.Module:
    """Return what the loader gives with this state dict in place of its download.

    A state dict of what the loader gave is taken, too: it lacks the heads that the loader drops. So is one that
    does not say which version of the class it is of, as `.safetensors` files.

    Raises:
        ValueError: it fits neither; the message says what differs.
    """
    try:
        return _from_loader(name, entry, state)
    except Exception as error:  # torch says a misfit with RuntimeErrors, a class with whatever it meets
        untrained = _untrained(name, entry)
        given = _from_loader(name, entry, untrained.state_dict())
        misfits = [differences(module, state) for module in (given, untrained)]
        if not all(misfits):
            fitting = given if not misfits[0] else untrained
            fitting.load_state_dict(filled(state, fitting))
            return given if not misfits[0] else _from_loader(name, entry, fitting.state_dict())
        raise ValueError(min(misfits, key=len) or one_line(error)) from error


def _from_loader(name: str, entry: Any, state: StateDict) -> nn.Module:
    """Call the library's loader with weights that hand out this state dict, and are otherwise the library's."""
    from torchvision import models

    weights = object.__new__(type(entry))
    weights._name_, weights._value_ = entry.name, entry.value
    # A copy, as a loader may rename what is in it.
    weights.get_state_dict = lambda **_: copy.copy(state)
    return models.get_model(name, weights=weights)


def transforms_its_input(module: nn.Module) -> bool:
    """Whether a network of torchvision changes its input by the switch that GoogLeNet and Inception v3 have."""
    return bool(getattr(module, "transform_input", False))
