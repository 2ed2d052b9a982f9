"""Networks by the library that they are of, alone: its own network, its own preprocessing; and what a layer gives.

{the model, as the table in docs/networks.md has it: how it is made without this package}
"""

import importlib
import io
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from conftest import SAMPLE
from PIL import Image

IMAGES = 24


class Alone(NamedTuple):
    """A network by its library alone."""

    network: Callable
    """Makes it, with whatever weights torch's generator gives."""
    prepare: Callable
    """From a Pillow image to float32 [3, height, width]."""
    model: str | None = None
    """What it is called here, where the table has an example of another name."""


def of_lucent(_folder):
    from lucent import modelzoo
    from lucent.optvis.transform import preprocess_inceptionv1
    from torchvision import transforms

    crop = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    return Alone(partial(modelzoo.inceptionv1, pretrained=False), transforms.Compose([*crop, preprocess_inceptionv1()]))


def of_torchvision(name, _folder):
    from torchvision import models

    return Alone(partial(models.get_model, name, weights=None), models.get_model_weights(name).DEFAULT.transforms())


def of_timm(name, _folder):
    return Alone(partial(importlib.import_module("timm").create_model, name, pretrained=False), timms(name))


def timms(name):
    """What timm prepares images for a model with."""
    import timm

    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    return timm.data.create_transform(**config)


def of_open_clip(name, _folder):
    import open_clip

    return Alone(lambda: open_clip.create_model(name, pretrained=None).visual, open_clips(name))


def open_clips(name):
    """What open_clip prepares images with."""
    import open_clip

    architecture, _, weights = name.partition("/")
    config = open_clip.get_pretrained_cfg(architecture, weights) if weights else {}
    size = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
    known = {key: config.get(key) for key in ("mean", "std", "interpolation", "resize_mode")}
    return open_clip.image_transform(size, is_train=False, **known)


# As the models of the Hub that the table names, but tiny.
_SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
_PATCHES = {**_SMALL, "intermediate_size": 64, "image_size": 224, "patch_size": 16}
_TEXT = {**_SMALL, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 99}
_TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_STAGES = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}


def tiny_model(kind):
    """A whole model of transformers, and its image processor."""
    import transformers as t

    of_kind = {
        "vit": lambda: (t.ViTForImageClassification(t.ViTConfig(**_PATCHES)), t.ViTImageProcessor()),
        "dinov2": lambda: (
            t.Dinov2Model(t.Dinov2Config(**_SMALL, image_size=518, patch_size=14)),
            t.BitImageProcessor(size={"shortest_edge": 256}),
        ),
        "clip": lambda: (
            t.CLIPModel(t.CLIPConfig(vision_config={**_PATCHES, "patch_size": 32}, text_config=_TEXT)),
            t.CLIPImageProcessor(),
        ),
        "siglip": lambda: (
            t.SiglipModel(t.SiglipConfig(vision_config=_PATCHES, text_config=_TEXT)),
            t.SiglipImageProcessor(),
        ),
        "resnet": lambda: (
            t.ResNetForImageClassification(t.ResNetConfig(**_STAGES)),
            t.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875),
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return of_kind[kind]()


def save_tiny_model(kind, folder):
    """Save one as transformers does, and return its folder."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    for part in tiny_model(kind):
        part.save_pretrained(folder)
    return folder


def of_transformers(kind, folder):
    save_tiny_model(kind, folder / kind)
    network, _ = tiny_model(kind)
    if kind in ("clip", "siglip"):
        network = network.vision_model
    prepare = transformers_own(folder / kind)
    return Alone(partial(type(network), network.config), prepare, f"transformers:{folder / kind}")


def transformers_own(folder, backend="pil"):
    """What transformers prepares images for a model with."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    return lambda image: processor(image, return_tensors="pt").pixel_values[0]


ALONE = {
    "inceptionv1": of_lucent,
    **{
        f"torchvision:{name}": partial(of_torchvision, name)
        for name in ("vgg16", "alexnet", "resnet50", "convnext_tiny", "efficientnet_b0", "swin_t", "vit_b_16")
    },
    **{
        f"timm:{name}": partial(of_timm, name)
        for name in (
            "vit_tiny_patch16_224",
            "convnext_atto",
            "swin_tiny_patch4_window7_224",
            "mobilenetv3_small_050",
            "deit_tiny_patch16_224",
        )
    },
    "transformers:google/vit-base-patch16-224": partial(of_transformers, "vit"),
    "transformers:facebook/dinov2-base": partial(of_transformers, "dinov2"),
    "transformers:openai/clip-vit-base-patch32": partial(of_transformers, "clip"),
    "transformers:google/siglip-base-patch16-224": partial(of_transformers, "siglip"),
    "transformers:microsoft/resnet-50": partial(of_transformers, "resnet"),
    "open_clip:ViT-B-32": partial(of_open_clip, "ViT-B-32"),
    "open_clip:RN50": partial(of_open_clip, "RN50"),
}

# From what a layer gives, by its layout, to [images, channels, units].
CHANNELS_SECOND = {
    "nchw": lambda output: output.flatten(2),
    "nhwc": lambda output: output.flatten(1, 2).transpose(1, 2),
    "tokens:0": lambda output: output.transpose(1, 2),
    "tokens:1": lambda output: output[:, 1:].transpose(1, 2),
}


def write_images(path):
    """Write the sample's first images, and return them as rows."""
    table = pq.read_table(sorted(SAMPLE.glob("*.parquet"))[0]).slice(0, IMAGES)
    pq.write_table(table, path)
    return [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in table.to_pylist()]


def means_alone(alone, layer, layout, images):
    """Every channel's mean for each image, in a plain loop: float64 [images, channels]. The seed is 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = alone.network().eval()
    kept = []
    network.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: kept.append(output.clone()))
    with torch.no_grad():
        for image in images:
            network(alone.prepare(image)[None])
    return torch.cat([CHANNELS_SECOND[layout](output).double().mean(dim=2) for output in kept]).numpy()


def assert_top_three_equal(exemplars, truth):
    """Compare a run's exemplars with each channel's means of each image."""
    rows = pq.read_table(exemplars, columns=["row", "channel", "rank", "activation"])
    assert len(rows) == 3 * truth.shape[1]
    row, channel, rank, activation = (rows[column].to_numpy() for column in rows.column_names)
    rounding = 2e-5 * np.abs(truth).max()
    assert np.abs(truth[row, channel] - activation).max() <= rounding
    in_order = -np.sort(-truth, axis=0)
    assert np.abs(in_order[rank - 1, channel] - activation).max() <= rounding
