"""What networks have answered, kept on this machine: the next run of the same network does not ask again.

Only of networks whose code is that of known libraries, whose versions say what it is. Code of a user's own may do
something else today, so it is always asked.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from exemplar_ray.network.layers import Layer
from exemplar_ray.network.machine_cache import cache_folder, is_of_known_libraries, name_by_content
from exemplar_ray.network.questions import Answers, KnownNetwork
from exemplar_ray.network.spec import NetworkRequest, NetworkSpec

_BEFORE = ", in an earlier run"


def kept_answers(spec: NetworkSpec, request: NetworkRequest, has_images: bool) -> KnownNetwork | None:
    """Return what a network answered when it was asked before; None if it was not.

    Args:
        spec: what it is, as yet without layers.
        has_images: there are images to ask it with: answers to noise are not taken.
    """
    if not is_of_known_libraries(spec):
        return None
    try:
        kept = json.loads(_file(spec, request, has_images).read_text())
        answers = Answers.from_json(kept["answers"])
        layers = tuple(Layer.from_json(layer) for layer in kept["layers"])
    except (OSError, ValueError, KeyError, TypeError):
        # Not there, or what another hand made of it.
        return None
    answers = replace(answers, asked_with=answers.asked_with + _BEFORE)
    return KnownNetwork(replace(spec, layers=layers, channels_last=answers.channels_last), answers)


def keep_answers(known: KnownNetwork, request: NetworkRequest, has_images: bool) -> None:
    """Keep what a network has answered, if its code is known and the folder can be written."""
    asked_with_noise = known.answers.asked_with.startswith("noise")
    if not is_of_known_libraries(known.spec) or (has_images and asked_with_noise):
        return
    file = _file(replace(known.spec, layers=()), request, has_images)
    contents = {"answers": known.answers.to_json(), "layers": [layer.to_json() for layer in known.spec.layers]}
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=file.parent) as folder:
            new = Path(folder) / file.name
            new.write_text(json.dumps(contents))
            os.replace(new, file)


def _file(spec: NetworkSpec, request: NetworkRequest, has_images: bool) -> Path:
    layout = request.layout if isinstance(request.layout, str) else dict(request.layout)
    what = ["answers", spec.identity(), request.layers, layout, has_images]
    return cache_folder() / f"{name_by_content(what, spec)}.answers.json"
