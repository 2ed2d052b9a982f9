"""Exact on real images: the notebook's loop is the oracle.

The oracle's numbers over all 800 images are in `tests/oracle` (`make exactness` computes
them anew); over some of the images the loop runs here and now.
"""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import BVLC, SAMPLE, TESTS, needs_shared
from notebook_loop import MEANS, network, notebook_loop, sample_images

pytestmark = [needs_shared, pytest.mark.usefixtures("ray_cluster")]

RELATIVE = 1e-4
OF_STRONGEST = 1e-6
NETWORKS = {
    "inceptionv1": ["--model", "inceptionv1", "--weights", "random:0", "--layer", "mixed4a"],
    "bvlc": ["--model", f"{BVLC}:load", "--preprocess", "{mean: [123, 117, 104]}"],
}
# Compiled, as large data are scanned; the other is scanned by the reference, as so few images are by themselves.
NETWORKS["inceptionv1"] += ["--compile", "always"] if shutil.which("g++") else ["--batch-size", "8"]
NETWORKS["bvlc"] += ["--layer", "mixed4a", "mixed5b", "classifier"]
ORACLES = {"inceptionv1": "inceptionv1-random-0.npz", "bvlc": "bvlc-googlenet.npz"}
CHANNELS = {"inceptionv1": 508, "bvlc": 512}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run each network over the 800 images, once: name -> exemplars without images, classes, channels."""
    from exemplar_ray.cli import main

    folder = tmp_path_factory.mktemp("exactness")
    tables = {}

    def run(name):
        if name not in tables:
            assert main(["run", "--data", str(SAMPLE), "--out", str(folder / name), *NETWORKS[name]]) == 0
            file = folder / name / "exemplars.parquet"
            exemplars = pq.read_table(file, columns=[c for c in pq.read_schema(file).names if c != "image"])
            tables[name] = [
                exemplars,
                *(pq.read_table(folder / name / f"{t}.parquet") for t in ("classes", "channels")),
            ]
            file.unlink()  # more than a gigabyte of images
        return tables[name]

    return run


def assert_equals_oracle(exemplars, images, activations):
    """Same images in the same order wherever the oracle's own gap is clear, and the same numbers."""
    ours = exemplars.filter(pa.compute.equal(exemplars["layer"], "mixed4a"))
    channels, top_k = len(images), 10
    assert len(ours) == channels * top_k
    shard = pa.compute.extract_regex(ours["shard"], r"train-(?P<n>\d+)-").combine_chunks().field("n").cast("int64")
    numbers = (shard.to_numpy() * 100 + ours["row"].to_numpy()).reshape(channels, top_k)
    found = ours["activation"].to_numpy().reshape(channels, top_k)
    expected = activations[:, :top_k]
    # A weak activation is what is left of strong ones that cancel: rounding goes by the channel's strongest.
    tolerance = RELATIVE * np.abs(activations) + OF_STRONGEST * np.abs(activations[:, :1])
    # In a channel that hardly ever fires the strongest, too, is what is left.
    tolerance += np.finfo(np.float32).eps * activations.max()
    assert (np.abs(found - expected) <= tolerance[:, :top_k]).all()
    clear_below = activations[:, :-1] - activations[:, 1:] > tolerance[:, :-1]
    clear_above = np.hstack([np.ones((channels, 1), bool), clear_below[:, :-1]])
    clear = clear_above & clear_below
    assert clear.mean() > 0.8
    assert (numbers == images[:, :top_k])[clear].all()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_channel_equals_the_oracle_over_the_800_images(runs, name):
    oracle = np.load(TESTS / "oracle" / ORACLES[name])
    assert oracle["images"].shape == (CHANNELS[name], 11)
    assert_equals_oracle(runs(name)[0], oracle["images"], oracle["activations"])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_channel_equals_the_loop_run_now_over_40_images(tmp_path, cli, name):
    shard = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(SAMPLE / "train-00000-of-00008.parquet").slice(0, 40), shard)
    status, text = cli("run", "--data", shard, "--out", tmp_path / "run", *NETWORKS[name], "--layer", "mixed4a")
    assert status == 0, text
    images, activations = notebook_loop(network(name), MEANS[name], sample_images([shard]))
    assert_equals_oracle(pq.read_table(tmp_path / "run" / "exemplars.parquet"), images, activations)


def test_the_strongest_image_of_a_class_logit_is_of_that_class(runs):
    """478 of the 800 classes present, by an independent script over the same images."""
    exemplars, _, _ = runs("bvlc")
    logits = exemplars.filter(
        pa.compute.and_(pa.compute.equal(exemplars["layer"], "classifier"), pa.compute.equal(exemplars["rank"], 1))
    )
    assert len(logits) == 1000
    own = pa.compute.sum(pa.compute.equal(logits["channel"].cast("int64"), logits["label"])).as_py()
    assert abs(own - 478) <= 3


def test_the_class_with_the_highest_mean_logit_is_the_channels_own(runs):
    """The same 478 by the class table: each class has one image here, so its mean is that image's."""
    _, classes, _ = runs("bvlc")
    logits = classes.filter(pa.compute.equal(classes["layer"], "classifier")).to_pandas()
    assert len(logits) == 1000 * 800
    assert (logits["images"] == 1).all()
    favourite = logits.loc[logits.groupby("channel")["mean"].idxmax()]
    own = int((favourite["channel"] == favourite["label"]).sum())
    top_1 = logits.loc[logits.groupby("label")["mean"].idxmax()]
    right = int((top_1["channel"] == top_1["label"]).sum())
    print(f"classes whose highest mean logit is their own: {own} of 800; top-1: {right} of 800")
    assert abs(own - 478) <= 3


def test_selectivity_rises_with_depth(runs):
    _, _, channels = runs("bvlc")
    mean = channels.to_pandas().groupby("layer")["selectivity"].mean()
    print(f"mean selectivity: mixed4a {mean['mixed4a']:.3f}, mixed5b {mean['mixed5b']:.3f}")
    assert mean["mixed4a"] + 0.05 < mean["mixed5b"]
