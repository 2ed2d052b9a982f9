"""Networks that are given the images' labels: a conditional generator, as documented, through every command."""

import importlib
import io
import re
import shlex
import shutil
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TESTS, encode, random_picture
from PIL import Image
from test_docs import examples
from torch import nn
from torchvision import transforms

from exemplar_ray import find_exemplars
from exemplar_ray.cli import build_parser, main
from exemplar_ray.config import settings_of
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shards import discover, inspect
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import ShardError, UsageError
from exemplar_ray.exemplars.gather import gather_shard
from exemplar_ray.exemplars.resolve import resolve
from exemplar_ray.exemplars.scan import scan_shard
from exemplar_ray.exemplars.settings import ScanSettings
from exemplar_ray.exemplars.spec import RunSpec
from exemplar_ray.exemplars.to_resolve import ToResolve
from exemplar_ray.network.compiled_trunk import CompiledForm, compiled_trunk
from exemplar_ray.network.inputs import use_of_labels
from exemplar_ray.network.loading import trunk_of

ROWS = 10  # a shard, so that batches of 4 are not full
NAMES = ["tench", "goldfish", "great white shark", "tiger shark"]
LAYER = "generator.bottleneck"
# Of the command that is documented, what it says of the network.
[_, COMMAND] = examples("model", "bash")
DOCUMENTED = settings_of(build_parser().parse_args(shlex.split(COMMAND)[1:]))
PREPROCESS = ["--preprocess", Preprocess.of(None, DOCUMENTED["preprocess"]).as_flag()]


def labelled_images(count=24, label_of=lambda number: (7 * number) % 4):
    """Colour photographs of many sizes, of labels that go through the classes."""
    kinds = ("JPEG", "PNG")
    return [
        LabelledImage(
            encode(random_picture(number, 40 + 5 * number, 90 - 2 * number), kinds[number % 2]),
            f"{number}.img",
            label_of(number),
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the documented file, a generator for it, and 24 images in 3 shards."""
    folder = tmp_path_factory.mktemp("generators")
    (folder / "generator.py").write_text(examples("model")[1])
    shutil.copy(TESTS / "toy_generator.py", folder / "networks.py")
    write_images(labelled_images(), str(folder / "data"), NAMES, ROWS)
    return folder


def flags(folder, factory="generator.py:generator"):
    return ["--model", folder / factory, *PREPROCESS]


def run_flags(folder):
    return [*flags(folder), "--layer", LAYER, "--top-k", "3", "--compile", "never"]


@pytest.fixture(scope="module")
def run(folder, ray_cluster):
    """The documented run, over the 24 images."""
    words = ["run", "--data", folder / "data", "--out", folder / "run", *run_flags(folder)]
    assert main([str(word) for word in words]) == 0
    return folder / "run"


def plain_loop(images, relabelled=False):
    """Score each image alone by torch, torchvision and the generator only: float64 [images, channels].

    Args:
        relabelled: with the next class's label in the place of the image's own.
    """
    from toy_generator import load_generator

    prepare = transforms.Compose(
        [
            transforms.Resize((64, 64), transforms.InterpolationMode.LANCZOS),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    generator, maps = load_generator().eval(), []
    generator.bottleneck.register_forward_hook(lambda module, inputs, output: maps.append(output))
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for image in images:
            x = prepare(Image.open(io.BytesIO(image.data)).convert("RGB"))[None]
            one_hot = torch.zeros(1, 1000)
            one_hot[0, (image.label + relabelled) % 4] = 1
            generator(x + 0.5 * noise, torch.tensor([0.5]), one_hot)
    return torch.cat(maps).double().mean(dim=(2, 3)).numpy()


def exemplars_of(run):
    rows = pq.read_table(run / "exemplars.parquet", columns=["shard", "row", "channel", "rank", "activation", "label"])
    shards = sorted(set(rows["shard"].to_pylist()))
    image = np.array([shards.index(name) * ROWS for name in rows["shard"].to_pylist()]) + rows["row"].to_numpy()
    return image, *(rows[name].to_numpy() for name in ("channel", "rank", "activation", "label"))


def test_exemplars_are_those_of_a_plain_loop(run):
    images = labelled_images()
    truth, relabelled = plain_loop(images), plain_loop(images, relabelled=True)
    image, channel, rank, activation, label = exemplars_of(run)
    assert len(image) == 3 * truth.shape[1]
    rounding = 1e-5 * np.abs(truth).max()
    assert np.abs(truth[image, channel] - activation).max() <= rounding
    assert np.abs((-np.sort(-truth, axis=0))[rank - 1, channel] - activation).max() <= rounding
    assert label.tolist() == [images[number].label for number in image]
    # The label matters: with another one the answer is another.
    assert np.median(np.abs(relabelled[image, channel] - activation)) > 1000 * rounding


def test_a_generator_in_hand_gives_the_same(run, folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    network = importlib.import_module("generator").generator()
    settings = {"layer": LAYER, "top_k": 3, "compile": "never", "preprocess": DOCUMENTED["preprocess"]}
    find_exemplars(model=network, data=str(folder / "data"), out=str(tmp_path / "run"), **settings)
    for found, expected in zip(exemplars_of(tmp_path / "run"), exemplars_of(run), strict=True):
        assert found.tolist() == expected.tolist()


def test_every_command_takes_a_generator(run, folder, cli, tmp_path):
    on_data = ["--data", folder / "data"]
    status, text = cli("layers", *flags(folder))
    assert (status, "for images of 64 x 64 pixels and label 0" in text) == (0, True), text
    assert re.search(rf"^nchw 8x8 +16 +15/8 +{LAYER}$", text, re.M), text
    status, text = cli("plan", *on_data, *run_flags(folder))
    assert (status, "16 channels" in text, "24 images" in text) == (0, True, True), text
    said = "the network is given the images' labels"
    status, text = cli("status", run)
    assert (status, said in text) == (0, True), text
    status, text = cli("run", *on_data, "--out", run, *run_flags(folder))
    assert (status, text) == (0, "nothing to do: every shard is done and the result is written\n")
    assert cli("merge", run)[0] == 0
    assert cli("report", run)[0] == 0
    assert said in (run / "report" / "index.html").read_text().replace("&#39;", "'")
    assert cli("report", run, "--figure", f"{LAYER}:0-2", "--out", tmp_path / "figure.png")[0] == 0
    assert Image.open(tmp_path / "figure.png").width > 500
    status, text = cli("publish", run, "me/generator", "--dry-run", tmp_path / "dry")
    assert (status, "to be uploaded to me/generator" in text) == (0, True), text
    for command in (["check", run], ["check", *on_data, *flags(folder), "--figure", tmp_path / "check.png"]):
        status, text = cli(*command)
        assert status == 0, text
        assert said in text
        assert re.search(r"asked with \S+ row 0 \(label 0\) and \S+ row 1 \(label 3\): the same image gives", text)
        assert "no accuracy: the network gives no logits: it gives images of 3 x 64 x 64, so that labels tell" in text
        assert "FOUND" not in text


@pytest.fixture
def wrappers(folder):
    """Write a file with networks that are given labels beside the documented one; return its path."""
    (folder / "others.py").write_text(OTHERS)
    return str(folder / "others.py")


OTHERS = """
import torch
from torch import nn
from generator import generator


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = generator()
        self.layer = nn.Identity()

    def maps(self, x, labels):
        maps = []
        handle = self.inner.generator.bottleneck.register_forward_hook(lambda *seen: maps.append(seen[2]))
        self.inner(x, labels)
        handle.remove()
        return maps[0]

    def forward(self, x, labels):
        return self.layer(self.maps(x, labels))


class OfNeighbours(Wrapped):
    def forward(self, x, labels):
        return self.layer(self.maps(x, labels.flip(0)))


class InPlace(Wrapped):
    def forward(self, x, labels):
        labels -= 1
        return self.layer(self.maps(x, labels))


class Cancelling(Wrapped):
    def forward(self, x, labels):
        return self.layer(self.maps(x, labels) + 65536.0 - 65536.0)


class Few(Wrapped):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 16)

    def forward(self, x, labels):
        return self.layer(self.maps(x, labels) + self.table(labels)[:, :, None, None])


class Logits(Wrapped):
    def forward(self, x, *, labels):
        return self.layer(self.maps(x, labels).mean((2, 3)))


class Lazy(Wrapped):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyConv2d(5, 1)


class Optional(Wrapped):
    def forward(self, x, labels=None):
        return self.layer(self.maps(x, torch.zeros(len(x), dtype=torch.int64) if labels is None else labels))


def fixed(kind):
    def make():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return kind()
    return make


of_neighbours, in_place, cancelling = fixed(OfNeighbours), fixed(InPlace), fixed(Cancelling)
few, logits, optional, lazy = fixed(Few), fixed(Logits), fixed(Optional), Lazy
"""


def resolved(model, data, **changes):
    """The spec of a network of the file, questioned with images of the data, and its reference; the first shard."""
    shards, _ = inspect(discover([str(data)]))
    asked = {"layer": ("layer",), "top_k": 3, "preprocess": DOCUMENTED["preprocess"], **changes}
    spec = resolve(ToResolve(RunSpec(model=model, **asked), shards)).spec
    return spec, trunk_of(spec.reference_trunk, "cpu"), shards[0]


def scanned(trunk, spec, shard, batch_size=4):
    return scan_shard(trunk, ScanSettings(spec, batch_size, threads=1), shard, 0).part.scores


def test_an_image_s_numbers_must_not_hang_on_the_labels_of_others(wrappers, folder):
    with pytest.raises(UsageError, match="an image's numbers depend on the other images of its batch"):
        resolved(f"{wrappers}:of_neighbours", folder / "data")


def test_a_network_may_change_its_labels_and_fail_on_number_0(wrappers, folder, tmp_path):
    """Rows of zeros that fill up a batch have a label that the network takes."""
    images = labelled_images(6, label_of=lambda number: 1 + number % 3)
    write_images(images, str(tmp_path / "data"), None, 100)
    spec, trunk, shard = resolved(f"{wrappers}:in_place", tmp_path / "data")
    scores = scanned(trunk, spec, shard)
    truth = plain_loop([image._replace(label=image.label - 1) for image in images])
    assert np.abs(truth[scores.row, scores.channel] - scores.activation).max() <= 1e-5 * np.abs(truth).max()


def test_where_scan_and_gather_disagree_the_network_is_asked_again_with_labels(wrappers, folder):
    spec, trunk, shard = resolved(f"{wrappers}:cancelling", folder / "data", statistic=("max",))
    scores = scanned(trunk, spec, shard)
    off = scores._replace(activation=scores.activation + np.float32(2.0**-7))
    assert gather_shard(trunk, spec, shard, off).exact.activation.tolist() == scores.activation.tolist()
    with pytest.raises(ShardError, match="changed: row .* the network gives the same again"):
        gather_shard(trunk, spec, shard, scores._replace(row=(scores.row + 1) % ROWS))


def test_sizes_that_a_forward_pass_finds_out_are_found_with_a_label(wrappers, folder):
    spec, _, _ = resolved(f"{wrappers}:lazy", folder / "data", weights="random:0")
    assert spec.layers[0].channel_count == 5


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_the_compiled_form_is_given_labels(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EXEMPLAR_RAY_CACHE", str(tmp_path / "cache"))
    spec, trunk, shard = resolved(f"{folder / 'generator.py'}:generator", folder / "data", layer=(LAYER,))
    compiled, new = compiled_trunk(CompiledForm(spec.scan_trunk, 4, 1), lambda _: trunk)
    assert new
    found, expected = scanned(compiled, spec, shard), scanned(trunk, spec, shard)
    np.testing.assert_allclose(np.sort(found.activation), np.sort(expected.activation), rtol=1e-4, atol=1e-6)
    crops = torch.zeros((4, 64, 64, 3), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="Class values must be smaller"):
        compiled(crops, torch.full((4,), 1000))


def of_transformers():
    """What is said of a model of transformers, which computes a loss with labels."""
    if find_spec("transformers") is None:
        return None
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return use_of_labels(ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **small)))


def test_which_parameters_are_labels_that_a_network_must_have():
    def of(forward):
        module = nn.Identity()
        module.forward = forward
        return use_of_labels(module), use_of_labels(nn.DataParallel(module))

    assert of(lambda x, labels: x) == of(lambda x, *, labels: x) == ("given", "given")
    assert of(lambda x, labels=None: x) == ("left out", "left out")
    assert of_transformers() is None
    assert of(lambda x: x) == of(lambda x, **labels: x) == of(lambda x, *labels: x) == of(len) == (None, None)


# In a run -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_cluster")
def test_data_without_labels_are_refused_in_one_line(folder, cli, tmp_path):
    write_images(labelled_images(4, lambda number: None), str(tmp_path / "none"), None, 8)
    table = pq.read_table(next((tmp_path / "none").glob("*.parquet"))).drop_columns("label")
    pq.write_table(table, tmp_path / "none.parquet")
    out = ["--out", tmp_path / "run"]
    says = "the network is given the images' labels (its forward takes `labels`), and '{}' has none"
    commands = [["run", "--data", tmp_path / "none.parquet", *out], ["plan", "--data", tmp_path / "none.parquet"]]
    commands += [["run", "--data", folder / "data", "--label-column", "none", *out]]
    for command, shard in zip(commands, ["none.parquet"] * 2 + ["train-00000-of-00003.parquet"], strict=True):
        status, text = cli(*command, *run_flags(folder))
        assert (status, says.format(shard) in text, len(text.splitlines())) == (2, True, 1), text
    status, text = cli("check", "--data", tmp_path / "none.parquet", *flags(folder))
    assert (status, says.format("none.parquet") in text, len(text.splitlines())) == (2, True, 1), text
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_row_without_a_label_or_with_one_too_many_fails_its_shard(folder, wrappers, cli, tmp_path):
    write_images(labelled_images(8, lambda number: None if number == 5 else number % 3), str(tmp_path / "d"), None, 4)
    words = ["run", "--out", tmp_path / "run", "--data"]
    status, text = cli(*words, tmp_path / "d", *run_flags(folder))
    assert status == 1
    assert "train-00001-of-00002.parquet: row 1 has no label, and the network is given the images' labels" in text
    few = ["--model", f"{wrappers}:few", *PREPROCESS, "--layer", "layer", "--compile", "never"]
    says = "index out of range in self; the network was given labels from {} to 3"
    status, text = cli("run", "--out", tmp_path / "few", "--data", folder / "data", *few)
    refusal = f"the model fails on an image that it takes with another label: IndexError: {says.format(3)}"
    assert (status, refusal in text, len(text.splitlines())) == (2, True, 1), text
    write_images(labelled_images(8, lambda number: number // 2), str(tmp_path / "late"), None, 8)
    status, text = cli("run", "--out", tmp_path / "few", "--data", tmp_path / "late", *few)
    # Those of the second batch.
    assert (status, says.format(2) in text) == (1, True), text


@pytest.mark.usefixtures("ray_cluster")
def test_screening_finds_the_same(run, folder, cli, tmp_path):
    screening = ["--precision", "bfloat16", "--decode", "fast"]
    words = ["--data", folder / "data", "--out", tmp_path / "run", *run_flags(folder), *screening]
    status, text = cli("run", *words)
    assert status == 0, text
    for found, expected in zip(exemplars_of(tmp_path / "run"), exemplars_of(run), strict=True):
        assert found.tolist() == expected.tolist()


@pytest.mark.usefixtures("ray_cluster")
def test_labels_decide_the_numbers_and_so_what_the_run_is(folder, cli, tmp_path):
    images = labelled_images(8)
    [path], _ = write_images(images, str(tmp_path / "data"), NAMES, 8)
    table = pq.read_table(path)
    words = ["run", "--data", tmp_path / "data", "--out", tmp_path / "run", *run_flags(folder)]
    pq.write_table(table.append_column("other", pa.array([3] * 8)), path)
    status, text = cli(*words)
    assert (status, "the network is given the images' labels" in text) == (0, True), text
    # Another column is another run.
    status, text = cli(*words, "--label-column", "other")
    assert (status, "these keys differ: label_column" in text) == (2, True), text
    # The same images with other labels: the shard changed.
    changed = [image._replace(label=(image.label + 1) % 4) for image in images]
    labels = pa.array([image.label for image in changed])
    pq.write_table(pq.read_table(path).set_column(1, table.schema.field("label"), labels), path)
    status, text = cli(*words)
    assert status == 0, text
    truth = plain_loop(changed)
    image, channel, _, activation, label = exemplars_of(tmp_path / "run")
    assert np.abs(truth[image, channel] - activation).max() <= 1e-5 * np.abs(truth).max()
    assert label.tolist() == [changed[number].label for number in image]


@pytest.mark.usefixtures("ray_cluster")
def test_what_check_cannot_say_of_a_network_that_is_told_the_class(folder, wrappers, cli):
    on_data = ["--data", folder / "data", *PREPROCESS]
    status, text = cli("check", "--model", f"{wrappers}:logits", *on_data)
    assert status == 0, text
    assert "no accuracy: the network is given the images' labels, so that a right guess says nothing of it" in text
    assert "first guesses (softmax of the outputs):" in text
    status, text = cli("check", "--model", f"{wrappers}:optional", *on_data)
    assert status == 0, text
    assert "the network is given no labels: its forward has a default for its parameter `labels`" in text
    assert "no accuracy: the network gives no logits: it gives a tensor of shape [2, 16, 8, 8] for 2 images" in text
