"""Facets, paths and seeds: what a picture has to do with a channel's own exemplars."""

import io
import shutil
from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY_FLAGS, TINY_NETWORK, encode, random_picture, write_tiny_data
from PIL import Image
from scipy import stats
from tiny_network import trained
from torch import nn
from torchvision import models

from exemplar_ray import open_run
from exemplar_ray.data.decode import decode_and_crop
from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import UsageError
from exemplar_ray.network.classes import channels_of, known_classes
from exemplar_ray.network.gradients import DifferentiableLayer
from exemplar_ray.network.layers import Layer
from exemplar_ray.network.passages import passages
from exemplar_ray.network.trunk import to_input
from exemplar_ray.rank_correlation import rank_correlations, ranks
from exemplar_ray.results.worth import explained, warning_of, worth_of
from exemplar_ray.runs.ranked import of_others
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.visualize.describe import describe, together
from exemplar_ray.visualize.facets import Held, clusters, facets
from exemplar_ray.visualize.natural import part_around
from exemplar_ray.visualize.optimise import Recipe, Wanted, optimise
from exemplar_ray.visualize.parameterizations import PARAMETERIZATIONS, Canvas
from exemplar_ray.visualize.path import paths
from exemplar_ray.visualize.starts import as_start, started

CPU = torch.device("cpu")
TINY = Preprocess(mean=(117, 117, 117), resize=36, crop=32)
SIZE = 24


# Layers before -----------------------------------------------------------------------------


class CalledAgainBehind(nn.Module):
    """Its one activation stands before the layer and behind it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.ReLU()

    def forward(self, x):
        return self.act(self.second(self.act(self.first(x)))).mean((2, 3))


NETWORKS = [
    (
        lambda: models.resnet18(weights=None),
        "layer3_pre_relu",
        ["relu", "maxpool", "layer1", "layer2", "layer3.0"],
    ),
    (lambda: models.vgg11(weights=None), "features.10", None),
    (lambda: models.swin_t(weights=None), "features.3", ["features.0", "features.1", "features.2", "features.3.0"]),
    (
        lambda: models.googlenet(weights=None, aux_logits=False, init_weights=False),
        "inception4a",
        ["maxpool1", "maxpool2", "inception3a", "inception3b", "maxpool3"],
    ),
    (trained, "mixed", ["conv1"]),
    (trained, "conv1", []),
    (CalledAgainBehind, "second", ["first"]),
]


@pytest.mark.parametrize(("make", "layer", "expected"), NETWORKS)
def test_all_of_a_layer_comes_through_its_passages(make, layer, expected):
    """With a passage's output held, the layer no longer answers to the image; with a branch's, it does."""
    module = make().eval()
    torch.set_num_threads(1)
    preprocess = Preprocess((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 64, 64, scale=1.0)
    found = passages(module, layer, preprocess)
    if expected is not None:
        assert [of.name for of in found] == expected
    else:
        assert len(found) == 5
    rng = np.random.default_rng(0)
    ones, others = (torch.tensor(rng.integers(0, 256, (1, 64, 64, 3), np.uint8)) for _ in range(2))
    target = layer.removesuffix("_pre_relu")
    for of in found:
        held = answer_with(module, target, of.name, ones, preprocess)
        assert torch.equal(held, answer_with(module, target, of.name, others, preprocess))
        assert not torch.equal(held, answer_with(module, target, None, others, preprocess))
        assert (of.layout, of.channel_count) == (
            ("nhwc" if "swin" in type(module).__name__.lower() else "nchw"),
            held_count(module, of, ones, preprocess),
        )
    if target == "inception4a":
        apart = [answer_with(module, target, "inception3a.branch2", x, preprocess) for x in (ones, others)]
        assert not torch.equal(*apart)


def answer_with(module, target, held, image, preprocess):
    """What a layer gives if another gives zeros."""
    seen = []
    handles = [module.get_submodule(target).register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))]
    if held:
        replace = lambda _m, _i, output: torch.zeros_like(output)  # noqa: E731
        handles.append(module.get_submodule(held).register_forward_hook(replace))
    with torch.no_grad():
        module(to_input(image, preprocess))
    for handle in handles:
        handle.remove()
    return seen[0]


def held_count(module, of, image, preprocess):
    shape = answer_with(module, of.name, None, image, preprocess).shape
    return shape[3] if of.layout == "nhwc" else shape[1]


# The path ----------------------------------------------------------------------------------


def test_rank_correlations_are_spearmans():
    rng = np.random.default_rng(0)
    ones, others = rng.random((3, 40)), rng.random((4, 40))
    # After a ReLU very many are equal.
    ones[:, :15] = 0
    others[:, 5:25] = 0
    assert np.array_equal(ranks(ones) + 1, stats.rankdata(ones, axis=1))
    found = rank_correlations(ones, others)
    for i in range(3):
        for j in range(4):
            assert found[i, j] == pytest.approx(stats.spearmanr(ones[i], others[j]).statistic, abs=1e-12)
    assert rank_correlations(np.zeros((1, 40)), others).tolist() == [[0.0] * 4]


def test_a_path_is_1_as_the_exemplars_and_0_as_any_image():
    rng = np.random.default_rng(0)
    common, other = rng.random(200), rng.random(200)
    top = common + 0.2 * rng.random((6, 200))
    random = other + 0.2 * rng.random((8, 200))
    like, unlike = common + 0.2 * rng.random((1, 200)), other + 0.2 * rng.random((1, 200))
    [of_like, of_unlike] = paths([np.concatenate([like, unlike])] * 3, [top, top, random[:6]], [random, random, random])
    assert of_like.similarity == pytest.approx(1, abs=0.1)
    assert of_unlike.similarity == pytest.approx(0, abs=0.1)
    # The last layer's exemplars are no more alike than random images.
    assert of_like.similarities[2] is None
    assert of_like.similarities[0] == of_like.similarity
    assert paths([like], [top[:1]], [random]) is None
    nothing = paths([like], [random[:4]], [random[4:]])
    assert [of.similarity for of in nothing] == [None]


def test_the_part_around_a_peak():
    crop = np.arange(32 * 32 * 3).reshape(32, 32, 3)
    assert np.array_equal(part_around(crop, (0.5, 0.5), 8), crop[12:20, 12:20])
    assert np.array_equal(part_around(crop, (0.0, 1.0), 8), crop[:8, 24:])
    assert np.array_equal(part_around(crop, (0.3, 0.3), 40), crop)


# Clusters and what holds pictures near them -------------------------------------------------


def test_planted_clusters_are_found_none_empty_and_the_best_first():
    rng = np.random.default_rng(0)
    middles = 10 * rng.random((3, 8))
    belongs = np.array([2, 0, 2, 1, 0, 1, 2, 1, 0, 2])
    values = middles[belongs] + 0.1 * rng.random((10, 8))
    assert clusters(values, 3) == [[0, 2, 6, 9], [1, 4, 8], [3, 5, 7]]
    same = np.ones((4, 3))
    found = clusters(same, 3)
    assert (sorted(chain(*found)), min(map(len, found))) == ([0, 1, 2, 3], 1)
    assert clusters(values[:3], 3) == [[0], [1], [2]]


@pytest.mark.parametrize("parameterization", ["fourier", "pixels"])
def test_a_picture_begins_as_the_image(parameterization):
    image = np.asarray(random_picture(3, SIZE, SIZE))
    image = np.clip(image, 12, 243)
    made = PARAMETERIZATIONS[parameterization](Canvas(["a", "b"], SIZE, CPU))
    parameters = started(made.parameters, [None, image], parameterization)
    assert parameters.requires_grad
    pictures = made.pictures(parameters).detach()
    assert float((pictures[1].permute(1, 2, 0) * 255 - torch.tensor(image)).abs().max()) < 0.5
    assert torch.equal(pictures[0], made.pictures(made.parameters)[0])
    assert started(made.parameters, [image, image], "of another kind") is made.parameters
    assert as_start(np.zeros((12, 12, 1), np.uint8), SIZE).shape == (SIZE, SIZE, 3)


def planted_facets():
    """Two kinds of images for the tiny network, by what its first layer answers to them."""
    rng = np.random.default_rng(1)
    layer = Layer("conv1", 8, (12, 12), tuple(range(8)))
    profiles = np.concatenate([rng.normal(0, 0.1, (3, 8)) + np.eye(8)[1], rng.normal(0, 0.1, (3, 8)) - np.eye(8)[1]])
    images = [np.asarray(random_picture(seed, SIZE, SIZE)) for seed in range(6)]
    return facets(layer, profiles, rng.normal(0, 1, (5, 8)), images, 2), profiles, images


def test_what_holds_a_picture_near_its_facet_is_the_formula():
    [one, other], profiles, images = planted_facets()
    assert (one.images, other.images) == ((0, 1, 2), (3, 4, 5))
    nearest = np.linalg.norm(profiles[:3] / one.deviation - (one.middle + one.towards), axis=1).argmin()
    assert one.start is images[nearest]
    answers = np.random.default_rng(2).random((2, 8))
    values = torch.tensor([2.0, -3.0])
    found = Held([one, other], CPU).worth(values, torch.tensor(answers, dtype=torch.float32)).numpy()
    for number, facet in enumerate((one, other)):
        centre = (profiles[list(facet.images)] / facet.deviation).mean(axis=0)
        middle = (profiles / facet.deviation).mean(axis=0)
        a, c = answers[number] / facet.deviation - middle, centre - middle
        cosine = a @ c / np.linalg.norm(a) / np.linalg.norm(c)
        assert found[number] == pytest.approx(float(values[number]) + abs(float(values[number])) * cosine, rel=1e-5)


def test_pictures_are_held_near_their_facets():
    """Both begin as the same image."""
    torch.set_num_threads(1)
    found, _, images = planted_facets()
    layer = DifferentiableLayer(trained(), Layer("mixed", 12, (12, 12), tuple(range(12))), TINY, CPU)
    recipe = Recipe("mean", 1, False, "fourier", SIZE, 40)
    wanted = [Wanted(3, "the same", replace(facet, start=images[0])) for facet in found]
    made = [optimise(layer, [one], recipe, CPU)[0].pixels for one in wanted]
    with torch.no_grad(), layer.watching(found[0].layer) as answers:
        layer(torch.tensor(np.stack(made)).permute(0, 3, 1, 2) / 255)
        [of_one, of_other] = answers[-1].numpy()
    assert of_one[1] > of_other[1]


# Looks -------------------------------------------------------------------------------------


def test_looks_of_several_together():
    y, x = np.mgrid[:32, :32]
    lines = lambda angle: np.round(127 + 100 * np.sin(x * np.sin(angle) + y * np.cos(angle))).astype(np.uint8)  # noqa: E731
    of = [describe(np.stack([lines(np.radians(angle))] * 3, axis=-1)) for angle in (4, -6)]
    mean = together(of)
    assert min(mean.orientation, 180 - mean.orientation) == pytest.approx(1, abs=0.5)
    assert mean.contrast == pytest.approx((of[0].contrast + of[1].contrast) / 2)
    assert together([describe(np.zeros((32, 32, 3), np.uint8))] * 2).coherence == 0


# As a job ----------------------------------------------------------------------------------


PICTURES = ["--statistic", "mean", "--negative", "--facets", "2", "--seeds", "2", "--size", str(SIZE), "--steps", "6"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster):
    from exemplar_ray.cli import main

    folder = tmp_path_factory.mktemp("facets")
    write_tiny_data(folder / "data", shards=3)
    flags = [*TINY_FLAGS, "--channels", "0-5", "--top-k", "4"]
    assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *flags]) == 0
    assert main(["visualize", str(folder / "run"), *PICTURES]) == 0
    return folder / "run"


def rows_of(run):
    return pq.read_table(run / "visualizations" / "visualizations.parquet").to_pylist()


def pixels_of(row):
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


def profile(pixels):
    """What the layer before answers on average, by plain torch."""
    with torch.no_grad():
        return trained().conv1(to_input(torch.tensor(pixels[None]), TINY) / 60).mean(dim=(2, 3))[0].double().numpy()


def exemplars_of(run, channel):
    rows = pq.read_table(run / "exemplars.parquet", filters=[("channel", "=", channel)]).to_pylist()
    return sorted(rows, key=lambda row: row["rank"])


def part_of(row):
    crop = decode_and_crop(row["image"]["bytes"], TINY)
    corner = [
        min(max(round((row[f"peak_{axis}"] + 0.5) / row[f"map_{side}"] * 32 - SIZE / 2), 0), 32 - SIZE)
        for axis, side in (("y", "height"), ("x", "width"))
    ]
    return crop[corner[0] : corner[0] + SIZE, corner[1] : corner[1] + SIZE]


def test_every_channel_has_its_facets_and_seeds(run):
    rows = rows_of(run)
    expected = [("channel", 0), ("channel", 1), ("channel-", 0), ("facet-1", 0), ("facet-2", 0)]
    assert [(row["channel"], row["objective"], row["seed"]) for row in rows] == [
        (channel, *one) for channel in range(6) for one in expected
    ]
    for channel in range(6):
        of = [row["facet_ranks"] for row in rows if row["channel"] == channel and row["facet_ranks"]]
        assert sorted(chain(*of)) == [1, 2, 3, 4]
        assert of[0][0] == 1


def test_pictures_of_several_seeds_are_those_of_each_alone_and_their_agreement(run, tmp_path, cli):
    flags = ["--model", TINY_NETWORK, "--layer", "mixed", "--channels", "2", "--picture-seed", "1"]
    flags += ["--preprocess", "{resize: 36, crop: 32, mean: [117, 117, 117]}", "--size", str(SIZE), "--steps", "6"]
    assert cli("visualize", *flags, "--out", tmp_path / "out")[0] == 0
    [alone] = pq.read_table(tmp_path / "out" / "visualizations.parquet").to_pylist()
    of_channel = [row for row in rows_of(run) if row["channel"] == 2]
    assert alone["image"] == of_channel[1]["image"] != of_channel[0]["image"]
    assert (alone["seed_agreement"], alone["path_similarity"], alone["exemplars_contrast"]) == (None, None, None)
    module, answers = trained(), []
    for row in of_channel[:2]:
        handle = module.mixed.register_forward_hook(lambda _m, _i, output: answers.append(output.mean(dim=(2, 3))[0]))
        with torch.no_grad():
            module(to_input(torch.tensor(pixels_of(row)[None]), TINY))
        handle.remove()
    # Of all twelve channels, not of the six wanted.
    expected = float(torch.nn.functional.cosine_similarity(*answers, dim=0))
    assert [row["seed_agreement"] for row in of_channel[:3]] == [pytest.approx(expected, abs=1e-6)] * 2 + [None]


def test_a_pictures_path_and_looks_are_those_of_a_plain_computation(run):
    everything = {(row["shard"], row["row"]): row for row in pq.read_table(run / "exemplars.parquet").to_pylist()}
    told = 0
    for row in rows_of(run):
        exemplars = exemplars_of(run, row["channel"])
        crops = [decode_and_crop(one["image"]["bytes"], TINY) for one in exemplars]
        colour = np.mean([crop.reshape(-1, 3).mean(axis=0) for crop in crops], axis=0)
        assert row["exemplars_mean_rgb"] == pytest.approx(colour.tolist(), rel=1e-5)
        assert row["apart_rgb"] == pytest.approx(np.linalg.norm(row["mean_rgb"] - colour), rel=1e-4)
        if row["objective"] == "channel-":
            assert (row["path_similarity"], row["path_layers"]) == (None, None)
            continue
        assert row["path_layers"] == ["conv1"]
        top = [profile(part_of(one)) for one in exemplars]
        own = {(one["shard"], one["row"]) for one in exemplars}
        among = np.mean(
            [stats.spearmanr(a, b).statistic for i, a in enumerate(top) for j, b in enumerate(top) if i != j]
        )
        picture = np.mean([stats.spearmanr(profile(pixels_of(row)), of).statistic for of in top])
        [similarity] = row["path_similarities"]
        if similarity is None:
            continue
        told += 1
        chosen = [of.place for of in of_others(RunFolder(str(run)), "mixed", "mean") if of.place not in own][:10]
        random = [profile(part_of(everything[place])) for place in chosen]
        of_random = np.mean([stats.spearmanr(a, b).statistic for a in random for b in top])
        assert similarity == pytest.approx((picture - of_random) / (among - of_random), rel=1e-6)
        assert row["path_similarity"] == similarity
    assert told


def test_facets_are_the_same_bytes_alone_and_after_an_interruption(run, tmp_path, cli):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = (copy / "visualizations" / "visualizations.parquet").read_bytes()
    for path in (copy / "visualizations" / "parts").glob("*.json"):
        if int(path.stem) % 3 == 0:
            path.unlink()
    assert cli("visualize", copy, *PICTURES)[0] == 0
    assert (copy / "visualizations" / "visualizations.parquet").read_bytes() == before
    shutil.rmtree(copy / "visualizations")
    assert cli("visualize", copy, *PICTURES, "--channels", "3")[0] == 0
    of_channel = [row["image"] for row in rows_of(run) if row["channel"] == 3]
    assert [row["image"] for row in rows_of(copy)] == of_channel


def test_facets_of_other_exemplars_are_made_anew_and_what_was_held_against_others_is_not_told(run, tmp_path, cli):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    table = pq.read_table(copy / "exemplars.parquet")
    # Channel 4's first and last change places.
    moved = [
        {1: 4, 4: 1}.get(rank, rank) if channel == 4 else rank
        for rank, channel in zip(table["rank"].to_pylist(), table["channel"].to_pylist(), strict=True)
    ]
    pq.write_table(
        table.set_column(table.column_names.index("rank"), "rank", pa.array(moved, pa.int32())),
        copy / "exemplars.parquet",
    )
    status, said = cli("visualize", copy, *PICTURES)
    assert (status, "exemplars are others now" in said) == (0, True), said
    before = {(row["channel"], row["objective"], row["seed"]): row for row in rows_of(run)}
    for row in rows_of(copy):
        was = before[row["channel"], row["objective"], row["seed"]]
        if row["channel"] != 4:
            assert row == was
        elif row["facet_ranks"]:
            assert row["facet_ranks"] != was["facet_ranks"] or row["image"] != was["image"]
            assert row["exemplars_contrast"] is not None
        else:
            assert row["image"] == was["image"]
            assert (row["path_similarity"], row["path_layers"], row["exemplars_contrast"]) == (None, None, None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--facets", "1"], "facets is into how many a channel's exemplars are divided: 0, or from 2"),
        (["--facets", "5"], "channel 0 of 'mixed' has 4 exemplars, which make no 5 facets; give fewer facets"),
        (["--seeds", "0"], "seeds is a whole number from 1, not 0"),
        (["--channels", "tench"], "'tench' would be names of classes, but layer 'mixed' has 12 channels with maps"),
    ],
)
def test_what_cannot_be_is_one_line(flags, message, run, cli):
    status, said = cli("visualize", run, *flags)
    assert (status, message in said, said.count("\n")) == (2, True, 1), said


def test_there_are_no_facets_without_a_run(tmp_path, cli):
    flags = ["--model", TINY_NETWORK, "--layer", "mixed", "--facets", "2"]
    flags += ["--preprocess", "{resize: 36, crop: 32, mean: [117, 117, 117]}", "--out", tmp_path / "out"]
    status, said = cli("visualize", *flags)
    assert (status, "facets are found among the exemplars of a finished run" in said) == (2, True), said


# Classes by name ---------------------------------------------------------------------------


def test_a_layer_of_classes_takes_their_names():
    layer = Layer("fc", 4, None, tuple(range(4)), layout="nc")
    classes = ClassLabels(["n01440764", "n01443537", "great white shark", "crane"])
    assert channels_of("tench", layer, classes) == (0,)
    assert channels_of("greatwhiteshark,n01440764,1", layer, classes) == (0, 1, 2)
    assert channels_of("Great White Shark", layer, classes) == (2,)
    assert channels_of("1-2", layer, None) == (1, 2)
    whole = ClassLabels(None, {"0": ("n01440764", "tench, Tinca tinca"), "3": ("n02012849", "crane")})
    assert channels_of("tench,Tincatinca", layer, whole) == (0,)
    for text, given, of, message in (
        ("tenhc", layer, classes, "no class is called 'tenhc'; did you mean 'tench'"),
        ("crane", layer, ClassLabels(["a", "crane", "b", "crane"]), "'crane' is the name of 2 classes, 1 and 3"),
        ("tench", layer, None, "its classes, and their order, are not known"),
        ("tench", Layer("fc", 5, None, (0,)), classes, "has 5 channels, and there are 4 classes"),
        ("tench", Layer("conv", 4, (3, 3), (0,)), classes, "has 4 channels with maps"),
    ):
        with pytest.raises(UsageError, match=message):
            channels_of(text, given, of)


def test_only_torchvisions_own_weights_are_known_to_be_of_imagenets_classes():
    [labels] = known_classes("torchvision:resnet18", "pretrained").by_name()["tench"]
    assert labels == 0
    categories = models.ResNet18_Weights.DEFAULT.meta["categories"]
    known = known_classes("torchvision:resnet18", "pretrained").by_name()
    assert all(number in known[name.casefold()] for number, name in enumerate(categories))
    for model, weights in (
        ("torchvision:resnet18", "random:0"),
        ("net.py:make", "pretrained"),
        ("timm:x", "pretrained"),
    ):
        assert known_classes(model, weights) is None


def test_logits_have_pictures_by_the_names_of_classes(tmp_path, cli, ray_cluster):
    names = ["tench", "goldfish", "great white shark", "tiger shark", "hammerhead"]
    images = [LabelledImage(encode(random_picture(i)), f"{i}.png", i % 5) for i in range(10)]
    write_images(images, str(tmp_path / "data"), names, 10)
    flags = [*TINY_FLAGS, "--layer", "classifier"]
    assert cli("run", "--data", tmp_path / "data", "--out", tmp_path / "run", *flags)[0] == 0
    pictures = ["--channels", "hammerhead,great white shark", "--size", SIZE, "--steps", "6", "--facets", "2"]
    status, said = cli("visualize", tmp_path / "run", *pictures)
    assert status == 0, said
    rows = rows_of(tmp_path / "run")
    assert [(row["channel"], row["objective"]) for row in rows] == [
        (channel, objective) for channel in (2, 4) for objective in ("channel", "facet-1", "facet-2")
    ]
    for row in rows:
        with torch.no_grad():
            logits = trained()(to_input(torch.tensor(pixels_of(row)[None]), TINY))[0]
        assert row["activation"] == pytest.approx(float(logits[row["channel"]]), rel=1e-5, abs=1e-6)
        assert row["path_layers"][-1] == "mixed"


# In words ----------------------------------------------------------------------------------


def test_what_a_picture_is_worth_is_said_and_what_speaks_against_it():
    good = {"objective": "channel", "grey": False, "ratio_to_top": 2.0, "percentile": 100.0, "target_rank": 1}
    good |= {"activation_pre_relu": 4.0, "robust_activation": 3.0, "path_similarity": 0.5, "seed_agreement": 0.9}
    good |= {"facet_ranks": [1, 4], "apart_rgb": 12.0, "apart_contrast": 3.0}
    assert warning_of(good) is None
    assert worth_of(good) == "2.0 times the strongest image; no channel answers more"
    said = " ".join(explained(good))
    for words in ("75 % of it left", "before: 0.50 (", "seeds: 0.90", "Of exemplars 1, 4.", "contrast +3"):
        assert words in said
    for change, words in (
        ({"grey": True}, "it stayed grey"),
        ({"ratio_to_top": 0.9}, "real images excite the channel more"),
        ({"robust_activation": 1.9}, "little of it is left"),
        ({"target_rank": 2}, "other channels answer more"),
        ({"path_similarity": -0.6}, "in the layers before it is less like"),
    ):
        assert words in warning_of({**good, **change})
    assert "untrained" in warning_of(good, trained=False)
    assert warning_of({**good, "objective": "channel-", "ratio_to_top": -1.0}) is None


def test_pages_and_channels_say_it(run, tmp_path, cli):
    assert cli("report", run, "--out", tmp_path / "pages")[0] == 0
    page = (tmp_path / "pages" / "mixed" / "2.html").read_text()
    for name in ("2channel.png", "2channel-seed1.png", "2facet-2.png"):
        assert page.count(f"visualizations/mixed/{name}") == 1
        assert (tmp_path / "pages" / "visualizations" / "mixed" / name).exists()
    assert "One thing it is about, 2" in page
    pictures = open_run(run).channel("mixed", 2).visualizations
    assert pictures[0].worth == worth_of(pictures[0])
    assert any(said.startswith("Path through the layers before") for said in pictures[0].explained)
    assert "Path through the layers before: " in page
    assert pictures[0].warning == warning_of(pictures[0])
