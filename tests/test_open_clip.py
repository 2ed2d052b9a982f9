"""Image towers of open_clip: its own preprocessing, pixel for pixel; `test_networks.py` holds towers to it alone."""

import io

import pytest
import torch
from conftest import encode, random_picture
from library_models import open_clips
from PIL import Image

from exemplar_ray.data.decode import decode_and_crop
from exemplar_ray.errors import UsageError
from exemplar_ray.network.models import find_architecture, load_network
from exemplar_ray.network.open_clip_models import _preprocess
from exemplar_ray.network.trunk import to_input

pytest.importorskip("open_clip")


@pytest.mark.parametrize(
    "name",
    ["RN50", "ViT-B-32/laion2b_s34b_b79k", "ViT-B-32-quickgelu/openai", "ViT-B-16-SigLIP/webli", "coca_ViT-B-32"],
)
def test_images_are_prepared_as_open_clip_prepares_them(name):
    preprocess, prepare = find_architecture(f"open_clip:{name}").preprocess, open_clips(name)
    for seed, size in enumerate([(500, 375), (375, 500), (224, 224), (100, 400), (355, 256)]):
        data = encode(random_picture(seed, *size), "JPEG", quality=95)
        ours = to_input(torch.from_numpy(decode_and_crop(data, preprocess).copy())[None], preprocess)[0]
        theirs = prepare(Image.open(io.BytesIO(data)).convert("RGB"))
        assert float((ours - theirs).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("open_clip:ViT-B-33", "random:0", "open_clip has no model 'ViT-B-33'; did you mean 'ViT-B-32'"),
        ("open_clip:RN50/openay", "random:0", "open_clip has no weights 'openay' for 'RN50'; did you mean 'openai'"),
        ("open_clip:ViT-B-32/openai", "random:0", "with QuickGELU, .* name 'ViT-B-32-quickgelu/openai'"),
        ("open_clip:RN50", "pretrained", "which weights. name them, 'open_clip:RN50/WEIGHTS' .open_clip has: openai"),
        (
            "open_clip:ViT-B-32/laion2b_s34b_b79k",
            "pretrained",
            "weights 'laion2b_s34b_b79k' of 'ViT-B-32' cannot be had",
        ),
    ],
)
def test_what_open_clip_has_not_is_one_line(model, weights, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=message):
        load_network(model, weights)


def test_images_that_are_padded_are_refused():
    with pytest.raises(UsageError, match="in a way that has no words here"):
        _preprocess("x", 224, {"resize_mode": "longest"})
    with pytest.raises(UsageError, match="in a way that has no words here"):
        _preprocess("x", (224, 336), {})
