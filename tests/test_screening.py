"""Scans in half precision or from faster pixels: the exemplars are the reference's, or doubt is said aloud."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from awkward_images import broken_images, scored_images
from conftest import BVLC, SAMPLE, TINY_FLAGS, encode, needs_shared, random_picture, write_tiny_data
from PIL import Image

from exemplar_ray.cli import main
from exemplar_ray.data import decode_fast
from exemplar_ray.data.decode import UndecodableImageError, decode_and_crop
from exemplar_ray.data.decode_fast import decoder_of
from exemplar_ray.data.preprocess import INTERPOLATIONS, Preprocess

FLAGS = [*TINY_FLAGS, "--sample", "bottom"]
PREPROCESS = Preprocess(mean=(0, 0, 0), resize=36, crop=32)
ANSWER = ["layer", "channel", "sample", "rank", "activation", "shard", "row"]


def answer(run):
    return pq.read_table(run / "exemplars.parquet", columns=ANSWER).to_pylist()


def summary(run):
    return json.loads((run / "summary.json").read_text())


# The fast decoder --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_fast_pixels_are_off_by_a_level_where_they_are_resized_bilinearly_and_nowhere_else(interpolation, mode):
    preprocess = dataclasses.replace(PREPROCESS, interpolation=interpolation)
    off = []
    for seed, (width, height) in enumerate([(48, 40), (200, 90), (37, 300), (31, 33), (640, 481), (238, 456)]):
        # Black and white squares: what a resizing overshoots most at.
        squares = np.kron(
            np.random.default_rng(seed).integers(0, 2, (height // 4 + 1, width // 4 + 1)), np.ones((4, 4))
        )
        squares = Image.fromarray((squares[:height, :width] * 255).astype(np.uint8))
        for picture in (random_picture(seed, width, height), squares):
            data = encode(picture.convert(mode), "JPEG", quality=80)
            exact, fast = (decoder_of(decoder)(data, preprocess) for decoder in ("reference", "fast"))
            assert fast.shape == exact.shape
            off.append(np.abs(fast.astype(int) - exact).ravel())
    off = np.concatenate(off)
    if interpolation == "bilinear":
        assert off.max() == 1
    else:
        assert not off.any()


def test_what_the_fast_decoder_does_not_take_goes_the_references_way():
    for name, data in scored_images().items():
        exact, fast = (decoder_of(decoder)(data, PREPROCESS) for decoder in ("reference", "fast"))
        assert np.abs(fast.astype(int) - exact).max() <= 1, name
    for name, data in broken_images().items():
        with pytest.raises(UndecodableImageError):
            decode_fast.decode_and_crop(data, PREPROCESS)
        assert name
    cmyk = encode(random_picture(3).convert("CMYK"), "JPEG")
    assert (decode_fast.decode_and_crop(cmyk, PREPROCESS) == decode_and_crop(cmyk, PREPROCESS)).all()


def test_a_cut_jpeg_is_skipped_by_both():
    whole = encode(random_picture(1, 300, 200), "JPEG")
    for decoder in ("reference", "fast"):
        with pytest.raises(UndecodableImageError):
            decoder_of(decoder)(whole[: len(whole) // 2], PREPROCESS)


# In a run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """60 images in 3 shards: more of a channel than a scan keeps with the margins below."""
    folder = tmp_path_factory.mktemp("screening") / "data"
    write_tiny_data(folder, shards=3, rows=20)
    return folder


@pytest.fixture(scope="module")
def exact(data, ray_cluster):
    """The answer of a run that screens nothing."""
    assert main([str(word) for word in ("run", "--data", data, "--out", data.parent / "exact", *FLAGS)]) == 0
    return answer(data.parent / "exact")


def run(cli, data, out, *flags):
    status, text = cli("run", "--data", data, "--out", out, *FLAGS, *flags)
    assert status == 0, text
    return text


@pytest.mark.parametrize("screening", [["--precision", "bfloat16"], ["--precision", "float16"], ["--decode", "fast"]])
def test_every_screening_gives_the_references_exemplars(cli, data, exact, tmp_path, ray_cluster, screening):
    text = run(cli, data, tmp_path / "screened", *screening, "--margin", "3")
    assert "exemplars are recomputed exactly" in text
    assert answer(tmp_path / "screened") == exact
    assert summary(tmp_path / "screened")["unsettled"] == []
    assert pq.read_table(tmp_path / "screened" / "channels.parquet")["settled"].to_pylist() == [True] * 12


def test_a_margin_of_none_is_said_aloud_and_settled_by_a_second_scan(cli, data, exact, tmp_path, ray_cluster):
    flags = ["--precision", "bfloat16", "--margin", "0"]
    text = run(cli, data, tmp_path / "run", *flags, "--no-settle")
    doubtful = summary(tmp_path / "run")["unsettled"]
    assert f"NOT SETTLED: {len(doubtful)} channels" in text
    assert doubtful
    settled = pq.read_table(tmp_path / "run" / "channels.parquet")["settled"].to_pylist()
    top = sorted(one["channel"] for one in doubtful if one["sample"] == "top")
    assert [channel for channel, sure in enumerate(settled) if not sure] == top
    _, status = cli("status", tmp_path / "run")
    assert "not settled" in status
    pages = cli("report", tmp_path / "run")
    assert pages[0] == 0

    # The same command without the flag goes on from there: nothing is screened again.
    records = [(path, path.read_bytes()) for path in sorted((tmp_path / "run" / "parts").glob("*.json"))]
    text = run(cli, data, tmp_path / "run", *flags)
    assert "channels are in doubt: scanning once more" in text
    assert summary(tmp_path / "run")["unsettled"] == []
    assert all(path.read_bytes() == content for path, content in records)
    assert answer(tmp_path / "run") == exact
    assert "nothing to do" in run(cli, data, tmp_path / "run", *flags)


def test_screening_is_part_of_what_a_run_is(cli, data, tmp_path, ray_cluster):
    run(cli, data, tmp_path / "run")
    status, text = cli("run", "--data", data, "--out", tmp_path / "run", *TINY_FLAGS, "--precision", "bfloat16")
    assert (status, "precision: float32 there, bfloat16 here" in text) == (2, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "float61"], "unknown precision 'float61'; did you mean 'float16'"),
        (["--decode", "slow"], "unknown decode 'slow'"),
        (["--margin", "-1"], "margin is a whole number from 0, not -1"),
        (["--compile", "perhaps"], "compile is one of auto, always, never, not 'perhaps'"),
    ],
)
def test_what_cannot_be_had_is_one_line(cli, data, tmp_path, flags, message):
    status, text = cli("run", "--data", data, "--out", tmp_path / "run", *TINY_FLAGS, *flags)
    assert (status, text.count("\n"), message in text) == (2, 1, True), text


@needs_shared
def test_a_trained_network_is_screened_without_a_doubt(cli, tmp_path, ray_cluster):
    """512 channels of BVLC GoogLeNet over 200 real images."""
    shards = sorted(SAMPLE.rglob("*.parquet"))[:2]
    flags = ["--model", f"{BVLC}:load", "--preprocess", "{mean: [123, 117, 104]}", "--layer", "mixed4a"]
    # So few images would not be screened by themselves.
    flags += ["--batch-size", "8"]
    for name, screening in (("exact", []), ("screened", ["--precision", "bfloat16", "--decode", "fast"])):
        status, text = cli("run", "--data", *shards, "--out", tmp_path / name, *flags, *screening)
        assert status == 0, text
    assert "in doubt" not in text
    assert answer(tmp_path / "screened") == answer(tmp_path / "exact")
    assert summary(tmp_path / "screened")["largest_error"] > 0
