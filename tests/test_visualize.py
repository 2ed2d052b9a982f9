"""Feature visualisation: its formulas, that its pictures are the same bytes whatever happens, what they are worth."""

import base64
import hashlib
import io
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY_FLAGS, TINY_NETWORK, write_tiny_data
from lucent.modelzoo import inceptionv1
from PIL import Image
from tiny_network import PatchFinder, trained
from torch import nn
from torchvision import models

from exemplar_ray import open_run
from exemplar_ray.data.decorrelated import COLOURS
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.network.describe import question_network
from exemplar_ray.network.gradients import DifferentiableLayer
from exemplar_ray.network.layers import Layer
from exemplar_ray.network.response_norm import local_response_norm
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.network.trunk import to_input
from exemplar_ray.visualize.describe import describe
from exemplar_ray.visualize.draws import normal, whole_numbers
from exemplar_ray.visualize.job import VisualizationsJob
from exemplar_ray.visualize.objectives import alikeness
from exemplar_ray.visualize.optimise import Recipe, Wanted, optimise
from exemplar_ray.visualize.parameterizations import Canvas, fourier, frequencies, pixels
from exemplar_ray.visualize.spec import PictureOptions, PicturesSpec
from exemplar_ray.visualize.transformations import LUCIDS, jitter, matrices, rotated, scaled, transformed

CPU = torch.device("cpu")
TINY = Preprocess(mean=(117, 117, 117), resize=36, crop=32)


def tiny_layer(module=None, name="mixed", channels=12, size=(16, 16)):
    return DifferentiableLayer(module or trained(), Layer(name, channels, size, tuple(range(channels))), TINY, CPU)


# Formulas ---------------------------------------------------------------------------------


def test_colours_are_decorrelated_as_lucid_has_it():
    """tensorflow/lucid, optvis/param/color.py, in numbers: the matrix, and its longest column."""
    expected = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]]) / 0.46195
    assert np.abs(expected - COLOURS).max() < 1e-5
    assert np.linalg.norm(COLOURS, axis=0).max() == pytest.approx(1)


@pytest.mark.parametrize("size", [16, 31])
def test_a_fourier_picture_is_the_formula_by_plain_numpy(size):
    made = fourier(Canvas(["a", "b"], size, CPU))
    pictures = made.pictures(made.parameters).detach().numpy()
    for number in range(2):
        spectrum = made.parameters[number].detach().numpy().astype(np.float64)
        spectrum = spectrum[..., 0] + 1j * spectrum[..., 1]
        frequency = np.sqrt(np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None, :] ** 2)
        scale = np.sqrt(size * size) / np.maximum(frequency, 1 / size)
        channels = np.fft.irfft2(spectrum * scale, s=(size, size)) / 4
        expected = 1 / (1 + np.exp(-np.tensordot(COLOURS, channels, axes=(1, 0))))
        assert np.abs(pictures[number] - expected).max() < 1e-5
    assert np.array_equal(frequencies(size), np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]))
    start = made.parameters.detach().numpy()
    assert abs(start.std() - 0.01) < 5e-4


def test_a_picture_of_pixels_is_the_formula():
    made = pixels(Canvas(["a"], 16, CPU))
    values = made.parameters.detach().numpy()[0].astype(np.float64)
    expected = 1 / (1 + np.exp(-np.tensordot(COLOURS, values, axes=(1, 0))))
    assert np.abs(made.pictures(made.parameters).detach().numpy()[0] - expected).max() < 1e-6


def test_random_numbers_go_by_name_and_are_spread_evenly():
    first = whole_numbers("a", "step 1")
    taken = np.array([next(first) for _ in range(8000)], np.uint64)
    again = whole_numbers("a", "step 1")
    assert [next(again) for _ in range(9)] == taken[:9].tolist()
    assert next(whole_numbers("b", "step 1")) != taken[0] != next(whole_numbers("a", "step 2"))
    counts = np.bincount((taken % np.uint64(16)).astype(int), minlength=16)
    assert counts.min() > 400
    assert torch.equal(normal("a", "x", (3,)), normal("a", "x", (3,)))


def test_transformations_are_as_far_as_lucids_and_no_farther():
    drawn = matrices([str(i) for i in range(3000)], "step 0")
    scale = 1 / np.sqrt(np.abs(np.linalg.det(drawn[:, :2, :2])))
    angle = np.degrees(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0]))
    assert np.allclose(np.unique(scale.round(6)), 0.9 + 0.02 * np.arange(11))
    assert np.allclose(np.unique(angle.round(6)), np.arange(-10, 11))
    assert 0.18 < (angle.round() == 0).mean() < 0.28
    # Eight pixels, and four more that are scaled and turned with the picture.
    assert np.abs(drawn[:, :2, 2]).max() <= 4 + 2 * np.sqrt(2) / 0.9
    assert len(LUCIDS) == 4


@pytest.mark.parametrize("size", [16, 40])
def test_a_view_is_what_stands_there_in_the_periodic_picture(size):
    rng = np.random.default_rng(0)
    pictures = torch.tensor(rng.random((2, 3, size, size)), dtype=torch.float64)
    by = matrices(["a", "b"], "step 3", (jitter(8), scaled([1.1]), rotated([10])))
    seen = transformed(pictures, by).numpy()
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    for number in range(2):
        place = by[number] @ np.stack([x.ravel(), y.ravel(), np.ones(size * size)])
        left, up = (place[axis] + (size - 1) / 2 for axis in (0, 1))
        x0, y0 = np.floor(left).astype(int), np.floor(up).astype(int)
        right, down = left - x0, up - y0
        picture = pictures[number].numpy()
        corner = lambda dy, dx: picture[:, (y0 + dy) % size, (x0 + dx) % size]  # noqa: B023, E731
        expected = (corner(0, 0) * (1 - right) + corner(0, 1) * right) * (1 - down)
        expected += (corner(1, 0) * (1 - right) + corner(1, 1) * right) * down
        assert np.abs(seen[number].reshape(3, -1) - expected).max() < 1e-9
    nothing = transformed(pictures, np.stack([np.eye(3)] * 2))
    assert float((nothing - pictures).abs().max()) < 1e-12
    # As far as any picture of this size is looked beyond, and no farther.
    transformed(pictures[:1].expand(3000, -1, -1, -1), matrices([str(i) for i in range(3000)], "step 0"))
    with pytest.raises(ValueError, match="reaches more than"):
        transformed(pictures, matrices(["a", "b"], "step 3", (scaled([0.3]),)))


def test_pictures_that_are_alike_are_found_so():
    one, other = torch.rand(1, 4, 5, 5), torch.rand(1, 4, 5, 5)
    from exemplar_ray.network.layouts import Reading

    same = alikeness(Reading(torch.cat([one, one])))
    assert torch.allclose(same, torch.ones(2))
    grams = [torch.einsum("cu,du->cd", m[0].flatten(1), m[0].flatten(1)) for m in (one, other)]
    cosine = (grams[0] * grams[1]).sum() / grams[0].norm() / grams[1].norm()
    assert torch.allclose(alikeness(Reading(torch.cat([one, other]))), cosine.expand(2))


# Gradients --------------------------------------------------------------------------------


def networks():
    yield "in place", models.resnet18(weights=None), "layer2", 64
    yield "relu6", models.mobilenet_v2(weights=None), "features.3", 64
    yield "vgg", models.vgg11(weights=None), "features.7", 64
    yield "concatenated", inceptionv1(pretrained=False), "mixed3a", 224
    yield "no relu", models.swin_t(weights=None), "features.1", 224


@pytest.mark.parametrize(("kind", "module", "name", "size"), networks())
def test_a_layer_is_what_the_networks_own_hook_sees_before_its_relu(kind, module, name, size):
    module = module.eval()
    preprocess = Preprocess((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), size, size, scale=1.0)
    layer = question_network(module, [name], "all", preprocess).layers[0]
    x = torch.tensor(np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8))
    seen = []
    handle = module.get_submodule(name).register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        module(to_input(x, preprocess))
    handle.remove()
    with torch.no_grad():
        found = DifferentiableLayer(module, layer, preprocess, CPU)(x.permute(0, 3, 1, 2) / 255).maps
    output = seen[0].permute(0, 3, 1, 2) if kind == "no relu" else seen[0]
    after = found if kind in ("no relu", "relu6") else found.relu()
    assert float((after - output).abs().max()) < 1e-4 * float(output.abs().max())
    assert (float(found.min()) < 0) == (kind != "none")


@pytest.mark.parametrize("size", [4, 5, 9])
@pytest.mark.parametrize("beta", [0.5, 0.6, 0.75])
def test_response_normalisation_has_torchs_values_and_gradients(size, beta):
    for channels in (3, 12):
        x = (10 * torch.randn(2, channels, 3, 4, dtype=torch.float64)).requires_grad_(True)
        weights = torch.randn(2, channels, 3, 4, dtype=torch.float64)
        settings = size, 0.1, beta, 2.0
        expected = nn.functional.local_response_norm(x, *settings)
        found = local_response_norm(x, *settings)
        assert torch.allclose(found, expected, rtol=1e-12)
        wanted = torch.autograd.grad((expected * weights).sum(), x)[0]
        assert torch.allclose(torch.autograd.grad((found * weights).sum(), x)[0], wanted, rtol=1e-10, atol=1e-12)
        half = x.detach().bfloat16().requires_grad_(True)
        (local_response_norm(half, *settings) * weights).sum().backward()
        assert half.grad.dtype == torch.bfloat16
        assert float((half.grad - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_lucents_bent_relus_give_the_true_gradient():
    """Against finite differences; lucent's own lets a tenth through where a ReLU is shut."""
    torch.manual_seed(0)
    module = inceptionv1(pretrained=False).eval().double()
    preprocess = Preprocess(mean=(117, 117, 117), resize=64, crop=64)
    layer = DifferentiableLayer(module, Layer("mixed3a", 256, (8, 8), tuple(range(256))), preprocess, CPU)
    picture = torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    value = lambda x: layer(x).maps[0, :8].mean()  # noqa: E731
    (gradient,) = torch.autograd.grad(value(picture), picture)
    direction = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        slope = (value(picture + step * direction) - value(picture - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-4)
    assert all(parameter.requires_grad for parameter in module.parameters())


# The same bytes ---------------------------------------------------------------------------


def sha256(picture):
    return hashlib.sha256(picture.pixels).hexdigest()


def test_a_picture_is_the_same_bytes_alone_and_in_any_group_and_order():
    torch.set_num_threads(1)
    layer, recipe = tiny_layer(), Recipe("mean", 1, False, "fourier", 32, 6)
    wanted = [Wanted(channel, f"{channel} 0") for channel in range(4)]
    together = [sha256(picture) for picture in optimise(layer, wanted, recipe, CPU)]
    assert len(set(together)) == 4
    assert [sha256(optimise(layer, [one], recipe, CPU)[0]) for one in wanted] == together
    assert [sha256(picture) for picture in optimise(layer, wanted[::-1], recipe, CPU)] == together[::-1]
    other = optimise(layer, [Wanted(0, "0 1")], recipe, CPU)
    assert sha256(other[0]) != together[0]


def test_nor_does_a_picture_depend_on_its_group_where_torch_rounds_by_the_size_of_a_batch():
    torch.set_num_threads(1)
    module = models.resnet18(weights=None).eval()
    layer, recipe = tiny_layer(module, "layer3", 256, (4, 4)), Recipe("mean", 1, False, "fourier", 64, 8)
    wanted = [Wanted(channel, f"{channel} 0") for channel in range(6)]
    together = [sha256(picture) for picture in optimise(layer, wanted, recipe, CPU)]
    assert [sha256(picture) for picture in optimise(layer, wanted[::-1], recipe, CPU)] == together[::-1]
    assert sha256(optimise(layer, wanted[5:], recipe, CPU)[0]) == together[5]


def test_a_gpus_groups_are_larger_and_in_bfloat16_a_picture_comes_to_as_much():
    torch.set_num_threads(1)
    layer, recipe = tiny_layer(PatchFinder(), "find", 2, (8, 8)), Recipe("mean", 1, False, "fourier", 32, 60)
    wanted = [Wanted(0, "0")]

    def reached(recipe):
        made = optimise(layer, wanted, recipe, CPU)[0].pixels
        with torch.no_grad():
            return float(layer(torch.tensor(made[None]).permute(0, 3, 1, 2) / 255).maps[0, 0].mean())

    assert reached(replace(recipe, bfloat16=True)) == pytest.approx(reached(recipe), rel=0.1)
    layers = (Layer("a", 100, (8, 8), tuple(range(100))),)
    network = NetworkSpec("m", "M", None, "w", "W", "0", False, layers, TINY)
    spec = PicturesSpec(network, "mean", PictureOptions(negative=True), 32)
    assert [len(group.channels) for group in spec.groups()] == [4] * 50
    assert [len(group.channels) for group in spec.groups(on_gpu=True)] == [64, 64, 36, 36]
    assert VisualizationsJob(spec, None, True).identity() == {**spec.identity(), "device": "gpu"}


@pytest.mark.parametrize("parameterization", ["fourier", "pixels"])
def test_a_planted_feature_is_what_the_picture_becomes(parameterization):
    """A detector of magenta squares: the picture turns magenta, its negative green."""
    layer = tiny_layer(PatchFinder(), "find", 2, (8, 8))
    up, down = (
        optimise(layer, [Wanted(0, "0")], Recipe("mean", sign, False, parameterization, 32, 60), CPU)[0].pixels
        for sign in (1, -1)
    )
    red, green, blue = up.reshape(-1, 3).mean(axis=0)
    assert min(red, blue) > green + 5
    red, green, blue = down.reshape(-1, 3).mean(axis=0)
    assert green > max(red, blue) + 5


def test_diverse_pictures_differ_more_than_others():
    layer = tiny_layer()
    wanted = [Wanted(3, f"3 {number}") for number in range(3)]

    def alike(diverse):
        made = optimise(layer, wanted, Recipe("mean", 1, diverse, "fourier", 32, 40), CPU)
        pictures = torch.tensor(np.stack([picture.pixels for picture in made])).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            return float(alikeness(layer(pictures)).mean())

    assert alike(True) < alike(False)


def test_a_picture_that_stays_grey_is_begun_anew_and_said():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.conv(x) * torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)

    layer = tiny_layer(nn.Sequential(Dead()), "0", 2, (30, 30))
    dead, alive = optimise(layer, [Wanted(0, "0"), Wanted(1, "1")], Recipe("mean", 1, False, "pixels", 32, 30), CPU)
    assert (dead.grey, dead.starts) == (True, 3)
    assert (alive.grey, alive.starts) == (False, 1)


# What a picture looks like ------------------------------------------------------------------


def test_descriptions_of_known_pictures():
    y, x = np.mgrid[:64, :64]
    stripes = np.where((x // 4) % 2, 255, 0).astype(np.uint8)
    vertical = describe(np.stack([stripes] * 3, axis=-1))
    assert vertical.orientation == pytest.approx(90, abs=1)
    assert vertical.coherence == pytest.approx(1, abs=0.01)
    assert vertical.patterns == ["High contrast/texture"]
    diagonal = np.round(127 + 100 * np.sin((x + y) / 3)).astype(np.uint8)
    # Lines along which x + y is the same go up to the right, as rows count downwards.
    assert describe(np.stack([diagonal] * 3, axis=-1)).orientation == pytest.approx(45, abs=1)
    flat = describe(np.full((32, 32, 3), (10, 20, 30), np.uint8))
    assert flat.mean_rgb == (10, 20, 30)
    assert flat.patterns == ["Dark colors"]
    assert np.isnan(flat.orientation)
    assert describe(np.full((32, 32, 3), 200, np.uint8)).patterns == ["Bright colors"]
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((128, 128))
    spectrum = np.fft.rfft2(noise) / np.maximum(
        np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128)[None]), 1 / 128
    )
    natural = np.fft.irfft2(spectrum, s=(128, 128))
    natural = np.clip(127 + 40 * natural / natural.std(), 0, 255).astype(np.uint8)
    assert describe(np.stack([natural] * 3, axis=-1)).spectral_slope == pytest.approx(-2, abs=0.35)


# As a job -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster):
    """A run of the tiny network, and its pictures: positive, negative, and two that differ."""
    from exemplar_ray.cli import main

    folder = tmp_path_factory.mktemp("visualize")
    write_tiny_data(folder / "data", shards=2)
    flags = [*TINY_FLAGS, "--channels", "0-5", "--statistic", "mean", "max"]
    assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *flags]) == 0
    assert main(["visualize", str(folder / "run"), *PICTURES]) == 0
    return folder / "run"


PICTURES = ["--statistic", "mean", "--negative", "--diverse", "2", "--size", "32", "--steps", "8"]


def rows_of(run):
    return pq.read_table(run / "visualizations" / "visualizations.parquet").to_pylist()


def test_every_channel_has_its_pictures_with_what_they_are_worth(run):
    rows = rows_of(run)
    assert [(row["channel"], row["objective"]) for row in rows] == [
        (channel, objective) for channel in range(6) for objective in ("channel", "channel-", "diverse-1", "diverse-2")
    ]
    channels = {
        row["channel"]: row for row in pq.read_table(run / "channels.parquet").to_pylist() if row["statistic"] == "mean"
    }
    module = trained()
    for row in rows:
        pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        assert (pixels.shape, row["seed"], row["steps"]) == ((32, 32, 3), 0, 8)
        kept = []
        handle = module.mixed.register_forward_hook(lambda _m, _i, output, kept=kept: kept.append(output))
        with torch.no_grad():
            module(to_input(torch.tensor(pixels[None]), TINY))
        handle.remove()
        answers = kept[0].mean(dim=(2, 3))[0, :6].double().numpy()
        assert row["activation"] == pytest.approx(answers[row["channel"]], rel=1e-5, abs=1e-6)
        known = channels[row["channel"]]
        assert row["ratio_to_top"] == pytest.approx(row["activation"] / known["max"], rel=1e-5, abs=1e-6)
        sign = -1 if row["objective"] == "channel-" else 1
        scores = [sign * (answers[c] - channels[c]["mean"]) / channels[c]["variance"] ** 0.5 for c in range(6)]
        assert row["target_rank"] == 1 + sum(score > scores[row["channel"]] for score in scores)
        if row["activation"] > known["max"]:
            assert row["percentile"] == 100
        assert row["activation_pre_relu"] <= row["activation"] + 1e-6
        assert row["mean_rgb"] == pytest.approx(pixels.reshape(-1, 3).mean(axis=0).tolist(), rel=1e-5)


def test_running_again_does_nothing_and_lost_groups_come_back_the_same(run, tmp_path, cli):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    status, said = cli("visualize", copy, *PICTURES)
    assert (status, "nothing to do" in said) == (0, True), said
    before = (copy / "visualizations" / "visualizations.parquet").read_bytes()
    for name in ("000001.json", "000004.json"):
        (copy / "visualizations" / "parts" / name).unlink()
    status, said = cli("status", copy / "visualizations")
    assert (status, "2 pending" in said) == (1, True), said
    status, said = cli("visualize", copy, *PICTURES)
    assert (status, "already done" in said) == (0, True), said
    assert (copy / "visualizations" / "visualizations.parquet").read_bytes() == before
    status, said = cli("visualize", copy, *PICTURES, "--steps", "9")
    assert (status, "these keys differ: steps" in said) == (2, True), said


def test_a_network_without_a_run_has_pictures_too(run, tmp_path, cli):
    flags = ["--model", TINY_NETWORK, "--layer", "mixed", "--channels", "0,2"]
    flags += ["--preprocess", "{resize: 36, crop: 32, mean: [117, 117, 117]}", "--size", "32", "--steps", "8"]
    assert cli("visualize", *flags, "--out", tmp_path / "out")[0] == 0
    rows = pq.read_table(tmp_path / "out" / "visualizations.parquet").to_pylist()
    of_run = {row["channel"]: row for row in rows_of(run) if row["objective"] == "channel"}
    for row in rows:
        # The same bytes, though channels are grouped otherwise here.
        assert row["image"] == of_run[row["channel"]]["image"]
        assert (row["ratio_to_top"], row["target_rank"]) == (None, None)


def test_the_pages_show_the_pictures_and_their_worth(run, tmp_path, cli):
    assert cli("report", run, "--out", tmp_path / "pages")[0] == 0
    page = (tmp_path / "pages" / "mixed" / "2.html").read_text()
    assert page.count("visualizations/mixed/2channel.png") == 1
    assert "What it says no to" in page
    written = sorted(path.name for path in (tmp_path / "pages" / "visualizations" / "mixed").iterdir())
    assert len(written) == 24
    for row in rows_of(run):
        name = f"{row['channel']}{row['objective']}.png"
        assert (tmp_path / "pages" / "visualizations" / "mixed" / name).read_bytes() == row["image"]["bytes"]
    overview = (tmp_path / "pages" / "mixed" / "mean.html").read_text()
    tiles = sorted((tmp_path / "pages" / "tiles" / "mixed" / "visualizations").iterdir())
    assert [path.name for path in tiles] == [f"{channel}.jpg" for channel in range(6)]
    for channel, path in enumerate(tiles):
        assert f"tiles/mixed/visualizations/{path.name}" in overview
        of_channel = Image.open(tmp_path / "pages" / "visualizations" / "mixed" / f"{channel}channel.png")
        one, other = (np.asarray(image.convert("RGB"), np.float64) for image in (of_channel, Image.open(path)))
        assert np.abs(one - other).mean() < 8
    assert "visualizations/" not in (tmp_path / "pages" / "index.html").read_text()
    assert cli("report", run, "--out", tmp_path / "bare", "--without-images")[0] == 0
    assert not (tmp_path / "bare" / "visualizations").exists()
    assert not (tmp_path / "bare" / "tiles").exists()
    assert "What it looks for" in (tmp_path / "bare" / "mixed" / "2.html").read_text()


def test_a_channel_has_its_pictures_where_results_are_read(run):
    channel = open_run(run).channel("mixed", 2, "mean")
    assert [row["objective"] for row in channel.visualizations] == ["channel", "channel-", "diverse-1", "diverse-2"]
    first = channel.visualizations[0]
    assert first == next(row for row in rows_of(run) if row["channel"] == 2)
    assert first.picture.size == (32, 32)
    html = channel._repr_html_()
    assert base64.b64encode(first["image"]["bytes"]).decode() in html
    assert html.count("feature visualisation (") == 4
    # They are made for the mean.
    assert open_run(run).channel("mixed", 2, "max").visualizations == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "steps is a whole number from 1, not 0"),
        (["--diverse", "1"], "diverse is how many pictures are to differ from one another: 0, or from 2"),
        (["--parameterization", "furier"], "unknown parameterization 'furier'; did you mean 'fourier'"),
        (["--channels", "9"], "channel 9 of 'mixed' is not in the run"),
        (["--statistic", "center"], "the run has no statistic 'center'"),
        (["--layer", "conv1"], "says already what layer is; leave out --layer"),
    ],
)
def test_what_cannot_be_is_one_line(flags, message, run, cli):
    status, said = cli("visualize", run, *flags)
    assert (status, message in said, said.count("\n")) == (2, True, 1), said


def test_a_run_without_a_result_and_no_run_at_all_are_refused(run, tmp_path, cli):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "exemplars.parquet").unlink()
    assert "has no result yet" in cli("visualize", tmp_path / "run")[1]
    status, said = cli("visualize", tmp_path / "nothing")
    assert (status, "is no run folder" in said) == (2, True), said
    status, said = cli("visualize", "--model", TINY_NETWORK)
    assert (status, "--layer is missing" in said) == (2, True), said


def test_options_are_checked_where_they_are_made():
    with pytest.raises(UsageError, match="size is a whole number from 16, not 8"):
        PictureOptions(size=8)
