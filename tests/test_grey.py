"""Networks that take one channel: images are made grey as torchvision does it, and everything else goes on as usual."""

import io
import shlex
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from awkward_images import scored_images
from conftest import encode, random_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision import transforms

from exemplar_ray.check.usual import IN_USE, usual_preprocessings
from exemplar_ray.cli import main
from exemplar_ray.data import decode_fast, decode_gpu
from exemplar_ray.data.decode import decode_and_crop, picture_of
from exemplar_ray.data.preprocess import INTERPOLATIONS, Preprocess
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.exemplars.resolve import resolve
from exemplar_ray.exemplars.spec import RunSpec
from exemplar_ray.exemplars.to_resolve import ToResolve
from exemplar_ray.network.compiled_trunk import CompiledForm, compiled_trunk
from exemplar_ray.network.loading import trunk_of
from exemplar_ray.network.trunk import to_input

GREY = Preprocess(scale=1, mean=0.13, std=0.31, resize=28, crop=28, order="grey")
NETWORK = '''
import torch
from torch import nn


def digits(channels=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.Conv2d(6, 9, 3, 2), nn.ReLU())


def colours():
    return digits(3)


def brightness():
    """Two classes: dark images, and bright ones."""
    class Brightness(nn.Module):
        def forward(self, x):
            mean = x.mean((1, 2, 3))
            return torch.stack([-mean, mean], 1)
    return Brightness()
'''


def torchvisions(data, preprocess):
    mode = transforms.InterpolationMode(preprocess.interpolation)
    steps = [transforms.Grayscale(), transforms.Resize(preprocess.resize, mode), transforms.CenterCrop(preprocess.crop)]
    return transforms.Compose(steps)(Image.open(io.BytesIO(data)))


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 200), height=st.integers(1, 200), interpolation=st.sampled_from(INTERPOLATIONS))
def test_grey_crops_equal_torchvisions_bit_for_bit(width, height, interpolation):
    preprocess = Preprocess(0, resize=33, crop=28, interpolation=interpolation, order="grey")
    data = encode(random_picture(width * 1000 + height, width, height))
    crop = decode_and_crop(data, preprocess)
    assert crop.shape == preprocess.crop_shape == (28, 28, 1)
    np.testing.assert_array_equal(np.asarray(picture_of(crop)), np.asarray(torchvisions(data, preprocess)))


@pytest.mark.parametrize("name", scored_images())
def test_awkward_images_are_made_grey_as_torchvision_does_it(name):
    data = scored_images()[name]
    expected = np.asarray(torchvisions(data, GREY)).astype(int)
    np.testing.assert_array_equal(decode_and_crop(data, GREY)[:, :, 0], expected)
    fast = decode_fast.decode_and_crop(data, GREY)
    assert np.abs(fast[:, :, 0] - expected).max() <= 1
    [on_device] = decode_gpu.decode_and_crop([data], GREY, torch.device("cpu"))
    assert on_device.shape == GREY.crop_shape
    assert np.abs(on_device[:, :, 0].numpy() - expected).max() <= 2


def test_the_network_s_input_is_torchvisions():
    data = encode(random_picture(1))
    steps = [transforms.ToTensor(), transforms.Normalize([0.13], [0.31])]
    expected = transforms.Compose(steps)(torchvisions(data, GREY))[None]
    assert torch.equal(to_input(torch.tensor(decode_and_crop(data, GREY)[None]), GREY), expected)


# In a run -----------------------------------------------------------------------------------------


def pictures():
    """Digits' size and others: PNGs and JPEGs of one channel, and colour JPEGs."""
    found = []
    for number in range(20):
        size = (28, 28) if number % 2 else (30 + 3 * number, 61 - number)
        picture = random_picture(number, *size)
        picture = picture.convert("L") if number % 4 < 2 else picture
        found.append(encode(picture, "JPEG" if number % 3 or picture.mode == "RGB" else "PNG"))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grey")
    (folder / "net.py").write_text(NETWORK)
    images = [LabelledImage(data, f"{number}.img", number % 3) for number, data in enumerate(pictures())]
    write_images(images, str(folder / "data"), None, 10)
    return folder


def words(folder, factory="digits", preprocess=GREY):
    return ["--model", f"{folder / 'net.py'}:{factory}", "--preprocess", preprocess.as_flag()]


def run_words(folder, out, *more):
    return ["run", "--data", folder / "data", "--out", out, *words(folder), "--layer", "2", "--top-k", "3", *more]


@pytest.fixture(scope="module")
def run(folder, ray_cluster):
    assert main([str(word) for word in run_words(folder, folder / "run", "--compile", "never")]) == 0
    return folder / "run"


def exemplars_of(run):
    rows = pq.read_table(run / "exemplars.parquet", columns=["shard", "row", "channel", "rank", "activation"])
    second = np.array([name.startswith("train-00001") for name in rows["shard"].to_pylist()])
    return rows["row"].to_numpy() + 10 * second, *(rows[name].to_numpy() for name in ("channel", "rank", "activation"))


def test_exemplars_are_those_of_a_plain_loop(run):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.Conv2d(6, 9, 3, 2))
    prepare = transforms.Compose(
        [
            transforms.Grayscale(),
            transforms.Resize(28),
            transforms.CenterCrop(28),
            transforms.ToTensor(),
            transforms.Normalize([0.13], [0.31]),
        ]
    )
    with torch.no_grad():
        maps = [network(prepare(Image.open(io.BytesIO(data)))[None]) for data in pictures()]
    truth = torch.cat(maps).double().mean(dim=(2, 3)).numpy()
    image, channel, rank, activation = exemplars_of(run)
    assert len(image) == 3 * truth.shape[1]
    rounding = 1e-6 * np.abs(truth).max()
    assert np.abs(truth[image, channel] - activation).max() <= rounding
    assert np.abs((-np.sort(-truth, axis=0))[rank - 1, channel] - activation).max() <= rounding


def test_screening_finds_the_same(run, folder, cli, tmp_path):
    status, text = cli(*run_words(folder, tmp_path / "run", "--precision", "bfloat16", "--decode", "fast"))
    assert status == 0, text
    for found, expected in zip(exemplars_of(tmp_path / "run"), exemplars_of(run), strict=True):
        assert found.tolist() == expected.tolist()


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_the_compiled_form_takes_one_channel(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EXEMPLAR_RAY_CACHE", str(tmp_path / "cache"))
    network = {"model": f"{folder / 'net.py'}:digits", "layer": ("2",), "preprocess": GREY.to_json()}
    spec = resolve(ToResolve(RunSpec(**network))).spec
    trunk = trunk_of(spec.scan_trunk, "cpu")
    compiled, _ = compiled_trunk(CompiledForm(spec.scan_trunk, 4, 1), lambda _: trunk)
    crops = torch.randint(0, 256, (4, *GREY.crop_shape), dtype=torch.uint8)
    torch.testing.assert_close(compiled(crops).activations, trunk(crops).activations)


def test_every_command_takes_it(run, folder, cli, tmp_path):
    status, text = cli("layers", "--model", f"{folder / 'net.py'}:digits", "--preprocess", "{order: grey, crop: 28}")
    assert (status, "for images of 28 x 28 grey pixels" in text) == (0, True), text
    status, text = cli("plan", *run_words(folder, "unused")[1:3], *run_words(folder, "unused")[5:])
    assert (status, "9 channels" in text) == (0, True), text
    assert cli("report", run)[0] == 0
    made = "made grey, shorter side to 28 pixels (bilinear), centre 28 × 28, grey 0..1 minus (0.13) over (0.31)"
    assert made in (run / "report" / "index.html").read_text()
    assert cli("report", run, "--figure", "2:0-3", "--out", tmp_path / "figure.png")[0] == 0
    # All that is drawn is grey, but for the labels.
    shown = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))[60:, 80:].astype(int)
    assert np.abs(shown - shown[:, :, :1]).max() <= 2
    status, text = cli("check", run)
    assert (status, made in text) == (0, True), text


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("factory", "given", "says"),
    [
        (
            "digits",
            Preprocess((117, 117, 117), resize=28, crop=28),
            "takes one channel, and the preprocessing gives three",
        ),
        ("colours", GREY, "takes three channels, and the preprocessing gives one"),
    ],
)
def test_other_channels_than_the_network_takes_are_one_line_that_says_what_to_give(folder, cli, factory, given, says):
    on_data = ["--data", folder / "data"]
    commands = [["run", *on_data, "--out", folder / "none", "--layer", "2"], ["check", *on_data], ["layers"]]
    for command in commands:
        status, text = cli(*command, *words(folder, factory, given))
        assert (status, len(text.splitlines())) == (2, 1), text
        assert f"the model {says}; give another, for example --preprocess '" in text
    flag = shlex.split(text.partition("--preprocess ")[2])[0]
    advised = Preprocess.of(None, yaml.safe_load(flag))
    status, text = cli("layers", *words(folder, factory, advised))
    assert status == 0, text


# Checked ------------------------------------------------------------------------------------------


def test_which_usual_preprocessings_are_tried_of_grey_images():
    tried = usual_preprocessings(GREY, Preprocess(mean=(117, 117, 117)))
    assert {one.order for one in tried.values()} == {"grey"}
    swapped = "the one in use, black and white swapped"
    assert list(tried) == [IN_USE, "MNIST's mean and std on 0..1", "-1..1", "0..1", "0..255", swapped]
    crops = torch.randint(0, 256, (2, 5, 5, 1), dtype=torch.uint8)
    torch.testing.assert_close(to_input(crops, tried[swapped]), to_input(255 - crops, GREY))
    own = Preprocess(scale=1, mean=0.5, std=0.5, order="grey")
    assert list(usual_preprocessings(GREY, own))[:3] == [IN_USE, "the model's own", "MNIST's mean and std on 0..1"]


@pytest.mark.usefixtures("ray_cluster")
def test_black_on_white_in_place_of_white_on_black_is_found(folder, cli, tmp_path):
    random = np.random.default_rng(0)
    levels = [170 if number % 2 == 0 else 80 for number in range(40)]
    images = [
        LabelledImage(encode((level + random.integers(-40, 40, (28, 28))).astype(np.uint8)), None, number % 2)
        for number, level in enumerate(levels)
    ]
    write_images(images, str(tmp_path / "data"), ["dark", "bright"], 40)
    minus_1_to_1 = Preprocess(scale=1, mean=0.5, std=0.5, resize=28, crop=28, order="grey")
    status, text = cli("check", "--data", tmp_path / "data", *words(folder, "brightness", minus_1_to_1))
    assert status == 0, text
    assert "FOUND: with the one in use, black and white swapped it gets 40 of 40 (100.0 %)" in text
    flag = shlex.split(text.partition("--preprocess ")[2])[0]
    advised = Preprocess.of(None, yaml.safe_load(flag))
    status, text = cli("check", "--data", tmp_path / "data", *words(folder, "brightness", advised))
    assert (status, "top-1: 40 of 40 (100.0 %)" in text, "FOUND" in text) == (0, True, False), text
