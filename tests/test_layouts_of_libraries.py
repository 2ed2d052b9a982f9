"""Layers of torchvision's transformers and others, over real images: against brute force by plain torch."""

import json
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SAMPLE, needs_shared
from PIL import Image
from torchvision import models
from torchvision.transforms import functional as transforms

from exemplar_ray import open_run
from exemplar_ray.network.describe import describe_layers
from exemplar_ray.network.models import load_network
from exemplar_ray.network.statistics import STATISTICS

IMAGES = 40
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def real_images():
    """(bytes, crop as float [3, 224, 224]) of the sample's first images, by torchvision's own functions."""
    import io

    table = pq.read_table(sorted(SAMPLE.glob("*.parquet"))[0]).slice(0, IMAGES)
    for row in table.to_pylist():
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        crop = transforms.center_crop(transforms.resize(image, 256), [224, 224])
        yield transforms.normalize(transforms.to_tensor(crop), MEAN, STD)


def maps_by_brute_force(name, layer, read):
    """float32 [images, channels, height, width], and what `read` leaves over."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = models.get_model(name, weights=None).eval()
    kept = []

    def keep(module, inputs, output):
        kept.append(read(output))
        raise StopIteration

    network.get_submodule(layer).register_forward_hook(keep)
    with torch.no_grad():
        for image in real_images():
            with suppress(StopIteration):
                network(image[None])
    maps, class_tokens = zip(*kept, strict=True)
    return torch.cat(maps).numpy(), None if class_tokens[0] is None else torch.cat(class_tokens).numpy()


def of_channels_last(output):
    return output.permute(0, 3, 1, 2), None


def of_tokens(output):
    return output[:, 1:].transpose(1, 2).reshape(1, -1, 14, 14), output[:, 0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    table = pq.read_table(sorted(SAMPLE.glob("*.parquet"))[0]).slice(0, IMAGES)
    for i, (start, end) in enumerate(((0, 15), (15, IMAGES))):
        pq.write_table(table.slice(start, end - start), folder / f"train-{i}.parquet")
    return folder


@needs_shared
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("name", "layer", "read", "statistics"),
    [
        ("swin_t", "features.3", of_channels_last, ("max", "mean")),
        ("vit_b_16", "encoder.layers.encoder_layer_2.mlp.0", of_tokens, ("cls", "max", "mean")),
    ],
)
def test_exemplars_peaks_and_maps_are_those_of_brute_force(name, layer, read, statistics, data, tmp_path):
    from exemplar_ray.cli import main

    run = tmp_path / "run"
    command = ["run", "--data", str(data), "--out", str(run), "--model", f"torchvision:{name}"]
    # The model's own preprocessing, but for how swin_t's weights resize.
    settings = "{resize: 256, crop: 224, interpolation: bilinear}"
    command += ["--weights", "random:0", "--layer", layer, "--top-k", "3", "--statistic", *statistics]
    assert main([*command, "--preprocess", settings, "--compile", "never"]) == 0
    maps, class_tokens = maps_by_brute_force(name, layer, read)
    truth = {"mean": maps.mean(axis=(2, 3), dtype=np.float64), "max": maps.max(axis=(2, 3)), "cls": class_tokens}
    columns = ["shard", "row", "channel", "rank", "statistic", "activation", "peak_y", "peak_x", "activation_map"]
    rows = pq.read_table(run / "exemplars.parquet", columns=columns)
    assert len(rows) == maps.shape[1] * 3 * len(statistics)
    found = {name: rows[name].to_numpy() for name in columns[:-1]}
    image = found["row"] + 15 * np.array([shard.endswith("1.parquet") for shard in found["shard"]])
    channel, rounding = found["channel"], 2e-5 * float(np.abs(maps).max())
    for statistic in statistics:
        mine = found["statistic"] == statistic
        values = truth[statistic]
        expected = values[image[mine], channel[mine]]
        assert np.abs(found["activation"][mine] - expected).max() <= rounding
        # The image of that rank, or one as strong.
        in_order = -np.sort(-values, axis=0)
        assert np.abs(in_order[found["rank"][mine] - 1, channel[mine]] - expected).max() <= rounding
    own = maps[image, channel]
    found_maps = rows["activation_map"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    largest = np.abs(own).max(axis=(1, 2))
    error = np.abs(found_maps.astype(np.float32).reshape(own.shape) - own).max(axis=(1, 2))
    assert (error <= 1e-3 * largest + rounding).all()
    at_peak = own[np.arange(len(own)), found["peak_y"], found["peak_x"]]
    assert np.abs(at_peak - own.max(axis=(1, 2))).max() <= rounding
    spec = json.loads((run / "run.json").read_text())
    assert spec["identity"]["layout"] == {layer: "tokens:1" if read is of_tokens else "nhwc"}
    # Attention mixes the whole map: what a unit sees is all that the network sees.
    exemplar = open_run(run).exemplars(layer=layer, channel=0, statistic="max")[0]
    assert exemplar["field_box"] == exemplar["view_box"]


# A layer of each family: none of them lies about anything. Small images where they are taken: this asks, no more.
FAMILIES = {
    "alexnet": ("features.8", 224),
    "convnext_tiny": ("features.3", 64),
    "densenet121": ("features.denseblock1", 64),
    "efficientnet_b0": ("features.4", 64),
    "efficientnet_v2_s": ("features.3", 64),
    "googlenet": ("inception4a", 64),
    "inception_v3": ("Mixed_5c", 96),
    "maxvit_t": ("blocks.1", 224),
    "mnasnet0_5": ("layers.9", 64),
    "mobilenet_v2": ("features.7", 64),
    "mobilenet_v3_small": ("features.5", 64),
    "regnet_y_400mf": ("trunk_output.block2", 64),
    "resnet18": ("layer3", 64),
    "resnext50_32x4d": ("layer2", 64),
    "shufflenet_v2_x0_5": ("stage3", 64),
    "squeezenet1_1": ("features.8", 64),
    "swin_t": ("features.5", 64),
    "swin_v2_t": ("features.3", 64),
    "vgg11_bn": ("features.15", 64),
    "vit_b_32": ("encoder.layers.encoder_layer_3", 224),
    "wide_resnet50_2": ("layer1", 64),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_none_of_torchvision_s_families_is_refused(name):
    from exemplar_ray.data.preprocess import Preprocess

    layer, crop = FAMILIES[name]
    network = load_network(f"torchvision:{name}", "random:0")
    preprocess = Preprocess.of(network.architecture.preprocess, {"resize": crop, "crop": crop})
    [found] = describe_layers(network.module, [layer], "all", preprocess)
    assert found.layout == {"swin_t": "nhwc", "swin_v2_t": "nhwc", "vit_b_32": "tokens"}.get(name, "nchw")
    assert found.map_size is not None


def test_every_family_is_asked():
    """Families are told by the module that builds them."""
    modules = {models.get_model_builder(name).__module__ for name in models.list_models(module=models)}
    asked = {models.get_model_builder(name).__module__ for name in FAMILIES}
    assert modules == asked


def test_the_statistics_tell_which_is_of_the_class_token():
    assert [name for name, statistic in STATISTICS.items() if statistic.of_class_token] == ["cls"]
