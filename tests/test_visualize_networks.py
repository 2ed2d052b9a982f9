"""Pictures for each statistic, and of networks of other kinds: what they reach is what a plain hook sees of them."""

import io
from functools import lru_cache

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_network import trained
from torchvision.models import VisionTransformer, get_model_weights

from exemplar_ray import visualize_channels
from exemplar_ray.network.models import load_network

TINY = {"resize": 36, "crop": 32, "mean": [117, 117, 117]}
LAYER_OF_TOKENS = "encoder.layers.encoder_layer_0"


def picture_of(row):
    """A row's picture, as it is stored: float32 [3, height, width], 0..255."""
    pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
    return torch.tensor(pixels).permute(2, 0, 1).float()


def seen_by_a_hook(network, name, x):
    """What a module gives for one input, [channels, ...], in the library's own order of axes."""
    kept = []
    handle = network.get_submodule(name).register_forward_hook(lambda _m, _i, output: kept.append(output.clone()))
    with torch.no_grad():
        network(x[None])
    handle.remove()
    return kept[0][0].double().numpy()


# Statistics -------------------------------------------------------------------------------

OF_MAPS = {
    "mean": lambda maps: maps.mean(axis=(1, 2)),
    "center": lambda maps: maps[:, maps.shape[1] // 2, maps.shape[2] // 2],
    "max": lambda maps: maps.max(axis=(1, 2)),
}


def before_the_relus(network, x):
    """What the tiny network's `mixed` is made of."""
    with torch.no_grad():
        first = network.conv1(x[None] / 60).relu()
        return torch.cat([network.wide(first), network.narrow(first)], dim=1)[0].double().numpy()


@pytest.fixture(scope="module")
def made_for(tmp_path_factory, ray_cluster):
    """{(statistic, steps): the rows of the tiny network's pictures, up and down}"""
    keys = {"model": trained(), "layer": "mixed", "preprocess": TINY, "size": 32, "negative": True}
    folder, rows = tmp_path_factory.mktemp("statistics"), {}
    for statistic in OF_MAPS:
        for steps in (1, 40):
            out = str(folder / f"{statistic}-{steps}")
            visualize_channels(out=out, statistic=statistic, steps=steps, **keys)
            rows[statistic, steps] = pq.read_table(f"{out}/visualizations.parquet").to_pylist()
    return rows


@pytest.mark.parametrize("statistic", OF_MAPS)
def test_what_a_picture_reaches_is_the_statistic_of_a_plain_hooks_maps(statistic, made_for):
    network = trained().eval()
    for row in [*made_for[statistic, 1], *made_for[statistic, 40]]:
        x, channel = picture_of(row) - 117, row["channel"]
        before = OF_MAPS[statistic](before_the_relus(network, x))[channel]
        after = OF_MAPS[statistic](seen_by_a_hook(network, "mixed", x))[channel]
        assert row["activation_pre_relu"] == pytest.approx(before, rel=1e-4, abs=1e-5)
        assert row["activation"] == pytest.approx(after, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("statistic", OF_MAPS)
def test_what_a_picture_is_made_for_rises_and_more_than_in_pictures_made_for_others(statistic, made_for):
    network = trained().eval()
    of_picture = "neuron" if statistic == "center" else "channel"

    def apart(made, steps):
        """How far the statistic is apart between each channel's two pictures: [channels]."""
        values = {}
        for row in made_for[made, steps]:
            maps = before_the_relus(network, picture_of(row) - 117)
            sign = -1 if row["objective"].endswith("-") else 1
            values[row["channel"]] = values.get(row["channel"], 0) + sign * OF_MAPS[statistic](maps)[row["channel"]]
        return np.array([values[channel] for channel in range(12)])

    assert {row["objective"] for row in made_for[statistic, 1]} == {of_picture, f"{of_picture}-"}
    assert (apart(statistic, 40) > apart(statistic, 1) + 0.05).all()
    for other in OF_MAPS.keys() - {statistic}:
        assert apart(statistic, 40).mean() > apart(other, 40).mean()


def test_a_picture_for_the_class_token_is_one(tmp_path, ray_cluster):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32).eval()
    preprocess = {"resize": 36, "crop": 32, "mean": [0.5] * 3, "std": [0.2] * 3, "scale": 1}
    keys = {"model": network, "layer": LAYER_OF_TOKENS, "preprocess": preprocess, "statistic": "cls"}
    reached = []
    for steps in (1, 40):
        made = visualize_channels(out=str(tmp_path / str(steps)), steps=steps, **keys)
        rows = pq.read_table(f"{made.uri}/visualizations.parquet").to_pylist()
        tokens = [seen_by_a_hook(network, LAYER_OF_TOKENS, (picture_of(row) / 255 - 0.5) / 0.2) for row in rows]
        values = [of_row[0, channel] for channel, of_row in enumerate(tokens)]
        # There is no ReLU, so that both are the same, each by its own path.
        for name in ("activation", "activation_pre_relu"):
            assert [row[name] for row in rows] == pytest.approx(values, rel=1e-4, abs=1e-5)
        reached.append(np.array(values))
    assert made.statistic == "cls"
    assert len(reached[0]) == 16
    # It is under random transformations that it rises, and patches are no larger than these.
    rise = reached[1] - reached[0]
    assert (rise > 0.1).mean() > 0.8


# Networks of other kinds ------------------------------------------------------------------

KINDS = [
    # name, layer, statistic, channels, pixels of a side, and the statistic of what a hook sees.
    # Of five channels the last is made in a group of its own.
    ("vgg16", "features.7", "mean", "0-4", 64, lambda seen: seen.mean(axis=(1, 2))),
    ("swin_t", "features.1", "mean", "0-4", 64, lambda seen: seen.mean(axis=(0, 1))),
    ("vit_b_16", LAYER_OF_TOKENS, "mean", "0-1", 224, lambda seen: seen[1:].mean(axis=0)),
    ("vit_b_16", LAYER_OF_TOKENS, "cls", "0-1", 224, lambda seen: seen[0]),
]


@lru_cache(maxsize=1)
def network_of(name):
    return load_network(f"torchvision:{name}", "random:0").module


@pytest.mark.parametrize(("name", "layer", "statistic", "channels", "size", "pooled"), KINDS)
def test_channels_of_other_kinds_of_networks_have_pictures(
    name, layer, statistic, channels, size, pooled, tmp_path, cli, ray_cluster
):
    flags = ["--model", f"torchvision:{name}", "--weights", "random:0", "--layer", layer, "--channels", channels]
    # A ViT takes images of its own size only.
    flags += [] if name == "vit_b_16" else ["--size", size]
    status, said = cli("visualize", *flags, "--statistic", statistic, "--steps", 2, "--out", tmp_path / "out")
    assert (status, "UNTRAINED" in said) == (0, True), said
    rows = pq.read_table(tmp_path / "out" / "visualizations.parquet").to_pylist()
    assert len(rows) == int(channels[-1]) + 1
    network = network_of(name)
    transform = get_model_weights(name).DEFAULT.transforms()
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (transform.mean, transform.std))
    for channel, row in enumerate(rows):
        assert (row["channel"], row["size"], row["grey"]) == (channel, size, False)
        seen = seen_by_a_hook(network, layer, (picture_of(row) / 255 - mean) / std)
        assert row["activation"] == pytest.approx(pooled(seen)[channel], rel=1e-3, abs=1e-4)
