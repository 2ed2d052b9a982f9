"""What `exemplar-ray layers` does: build a network, and say which layers it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from exemplar_ray.data.preprocess import GREY, Preprocess
from exemplar_ray.network.inputs import takes_labels
from exemplar_ray.network.models import find_architecture, load_network
from exemplar_ray.network.survey import survey
from exemplar_ray.network.survey_text import survey_lines


def layers_of_model(model: str, preprocess: Mapping[str, Any] | None, width: int, threads: int) -> list[str]:
    """Say in lines of text which layers a model has. Its weights do not matter for that, and are not looked for.

    Args:
        model: see `models.load_network`.
        preprocess: keys over the model's own preprocessing; of these the size of images matters, and their channels.
        width: of the terminal, in characters.
        threads: how many to compute with.

    Raises:
        UsageError: there is no such model, or it fails on an image of that size.
    """
    torch.set_num_threads(threads)
    own = find_architecture(model, "random:0").preprocess
    keys = dict(preprocess or {})
    if own is None:
        keys.setdefault("mean", 0 if keys.get("order") == GREY else (0, 0, 0))
    settled = Preprocess.of(own, keys)
    network = load_network(model, "random:0", check_factory=False, preprocess=settled)
    size = f"{settled.crop} x {settled.crop} {'grey ' if settled.order == GREY else ''}pixels"
    of_label = " and label 0" if takes_labels(network.module) else ""
    lines = [
        f"{network.architecture.title}, for images of {size}{of_label}",
        "sees: how many pixels a unit sees / how far apart units are; ?: not known",
        "",
    ]
    return [*lines, *survey_lines(survey(network.module, settled), width)]
