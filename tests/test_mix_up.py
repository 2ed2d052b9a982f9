"""Where gather and scan do not agree: rounding, no function of the image, or another image."""

import dataclasses
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY_FLAGS, TINY_NETWORK, encode, random_picture, write_tiny_data
from test_samples import gathered, scanned_once
from test_scan_and_gather import scan_it, tiny

from exemplar_ray.data.shards import discover, imagenet_schema, inspect
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import ShardError, UsageError
from exemplar_ray.exemplars.gather import gather_shard
from exemplar_ray.exemplars.rerank.selection import Selection, rerank
from exemplar_ray.exemplars.topk import TOP
from exemplar_ray.network.loading import trunk_of
from exemplar_ray.network.models import load_network


def network(factory, **changes):
    """A spec of a network with the weights of `trained`, whatever questions it would not answer; its reference."""
    spec, _ = tiny(layer=("mixed",), **{"statistic": ("max",), **changes})
    model = TINY_NETWORK.replace(":trained", f":{factory}")
    found = load_network(model, spec.network.weights, check_factory=False, preprocess=spec.network.preprocess)
    named = {"model": model, "model_source_sha256": found.architecture.source_sha256}
    spec = dataclasses.replace(spec, network=dataclasses.replace(spec.network, **named))
    return spec, trunk_of(spec.reference_trunk, "cpu")


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    [path] = write_tiny_data(tmp_path_factory.mktemp("mix_up") / "d", shards=1, rows=20)
    return inspect(discover([str(path)]))[0][0]


@pytest.mark.parametrize("factory", ["cancelling", "float32_only"])
def test_a_network_that_makes_much_of_rounding_can_be_finished(shard, factory):
    spec, trunk = network(factory)
    scores = scan_it(trunk, spec, shard).part.scores
    step = 2.0**-7
    assert set(np.round(scores.activation / step) * step) == set(scores.activation)
    # As other kernels might round.
    off = scores._replace(activation=scores.activation + np.float32(step))
    found = gather_shard(trunk, spec, shard, off)
    assert found.beyond_rounding == len(scores.row)
    assert found.exact.activation.tolist() == scores.activation.tolist()


def test_of_many_images_only_some_are_asked(shard, monkeypatch):
    from exemplar_ray.exemplars import mix_up

    monkeypatch.setattr(mix_up, "_IMAGES_ASKED", 3)
    asked = []
    explains = mix_up._Network.explains
    monkeypatch.setattr(mix_up._Network, "explains", lambda self, *given: asked.append(1) or explains(self, *given))
    spec, trunk = network("cancelling", top_k=20)
    scores = scan_it(trunk, spec, shard).part.scores
    off = scores.activation + np.float32(2.0**-7)
    assert gather_shard(trunk, spec, shard, scores._replace(activation=off)).beyond_rounding == len(off)
    assert 3 <= len(asked) < 20
    off[-1] += 1
    with pytest.raises(ShardError, match=r"changed: row .*\(1 such rows\)"):
        gather_shard(trunk, spec, shard, scores._replace(activation=off))


def test_a_mix_up_cannot_hide_behind_rounding(shard):
    spec, trunk = network("cancelling")
    scores = scan_it(trunk, spec, shard).part.scores
    weak = scores._replace(activation=scores.activation * np.float32(0.7))
    for wrong in (weak, scores._replace(row=(scores.row + 1) % 20)):
        with pytest.raises(ShardError, match=r"changed: row .* the scan recorded .* the network gives the same again"):
            gather_shard(trunk, spec, shard, wrong)


def test_screening_that_is_off_by_half_can_be_finished(shard):
    spec, trunk = network("cancelling_a_little", precision="bfloat16")
    scores = scan_it(trunk_of(spec.scan_trunk, "cpu"), spec, shard).part.scores
    exact = gather_shard(trunk, spec, shard, scores).exact.activation
    top = scores.ranking == TOP
    assert (np.abs(scores.activation - exact)[top] > 0.25 * np.abs(exact)[top]).any()
    with pytest.raises(ShardError, match="changed: row"):
        gather_shard(trunk, spec, shard, scores._replace(activation=scores.activation + np.float32(10)))


@pytest.mark.parametrize("factory", ["dropping", "counting"])
def test_a_network_that_gives_another_answer_each_time_is_blamed_itself(shard, factory):
    spec, trunk = network(factory)
    scores = scan_it(trunk, spec, shard).part.scores
    with pytest.raises(UsageError, match="gives another answer each time: the max of mixed channel .* eval mode"):
        gather_shard(trunk, spec, shard, scores)


@pytest.mark.parametrize("factory", ["of_the_batch", "of_the_batch_in_float32"])
def test_so_is_one_whose_numbers_hang_on_the_batch(shard, factory):
    spec, trunk = network(factory)
    scores = scan_it(trunk, spec, shard).part.scores
    with pytest.raises(UsageError, match="depend on the other images of its batch: the max of mixed channel"):
        gather_shard(trunk, spec, shard, scores)


def test_what_is_no_number_alone_is_left_out_and_told_of(shard):
    spec, trunk = network("rooting", statistic=("center",))
    precise = trunk_of(dataclasses.replace(spec.reference_trunk, precision="float64"), "cpu")  # never below 0
    scores = scan_it(precise, spec, shard).part.scores
    assert np.isfinite(scores.activation).all()
    exact = gather_shard(trunk, spec, shard, scores).exact.activation
    assert 0 < np.isnan(exact).sum() < len(exact)
    wrong = scores._replace(activation=scores.activation + np.float32(1))
    with pytest.raises(ShardError, match="changed: row"):
        gather_shard(trunk, spec, shard, wrong)


@pytest.mark.parametrize("changes", [{}, {"samples": ("top", "bottom", "random")}, {"precision": "bfloat16"}])
def test_a_number_that_recomputing_does_not_give_is_not_ranked(changes):
    values = np.random.default_rng(0).permutation(40).reshape(20, 2).astype(np.float32)
    spec, merged = scanned_once(values, **changes)
    exact = values.copy()
    lost = int(values[:, 0].argmax())
    exact[lost, 0] = np.nan
    hashes = [bytes([i]) * 32 for i in range(20)]
    selection = Selection(spec, merged, len(values))

    def gather(wanted):
        return {p: gathered(one, exact[one.row, one.channel], [0] * 20, hashes) for p, one in wanted.items()}, {}

    assert rerank(selection, gather) == {}
    selected = selection.result()
    assert np.isfinite(selected.scores.activation).all()
    top = [i for i, sample in enumerate(selected.samples) if sample == "top" and selected.scores.channel[i] == 0]
    assert selected.scores.row[top].tolist() == np.argsort(-np.nan_to_num(exact[:, 0], nan=-1))[:3].tolist()
    assert selected.not_finite.row.tolist() == [lost] * len(selected.not_finite.row)
    assert len(selected.not_finite.row) >= 1
    assert np.isfinite(selected.largest_error)


@pytest.mark.filterwarnings("error")
def test_a_channel_of_which_screening_saw_no_number_is_in_doubt():
    """Float16 ends at 65,504."""
    values = np.random.default_rng(0).permutation(400).reshape(200, 2).astype(np.float32)
    seen = values.copy()
    seen[:, 1] = np.inf
    spec, merged = scanned_once(seen, precision="float16", samples=("top", "bottom"))
    selection = Selection(spec, merged, len(values))
    hashes = [bytes([i]) * 32 for i in range(200)]

    def gather(wanted):
        return {p: gathered(one, values[one.row, one.channel], [0] * 200, hashes) for p, one in wanted.items()}, {}

    assert rerank(selection, gather) == {}
    assert selection.unsettled() == [(0, 1)]
    assert selection.result().unsettled == [(0, 1, "top")]
    exact = scanned_once(values, samples=("top", "bottom"))[1].scores
    selection.replace(exact.take(exact.channel == 1), {(0, 1): 200})
    assert rerank(selection, gather) == {}
    selected = selection.result()
    assert selected.unsettled == []
    assert selected.certainty[0].settled.all()
    assert selected.scores.activation[selected.scores.channel == 1].max() == values[:, 1].max()
    # A channel that gives no number in full precision, either, has none.
    selection = Selection(spec, merged, len(values))
    assert rerank(selection, gather) == {}
    selection.replace(exact.take(exact.channel == 2), {(0, 1): 0})
    assert rerank(selection, gather) == {}
    assert selection.result().unsettled == []
    assert selection.result().certainty[0].settled.all()


def test_a_shard_whose_images_were_exchanged_is_scanned_again(tmp_path, cli, ray_cluster):
    """Behind the run's back: its footer is the same."""
    pictures = [encode(random_picture(i), "BMP") for i in range(8)]
    images = [{"bytes": data, "path": f"{i}.bmp"} for i, data in enumerate(pictures)]
    path = tmp_path / "data" / "train-00000.parquet"
    path.parent.mkdir()
    # Without checksums, as most files are.
    table = pa.table({"image": images, "label": [0] * 8}, schema=imagenet_schema(None))
    pq.write_table(table, path, compression="none", use_dictionary=False)
    run = ("run", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY_FLAGS)
    assert cli(*run)[0] == 0
    expected = pq.read_table(tmp_path / "run" / "exemplars.parquet", columns=["row"])["row"].to_pylist()
    content = path.read_bytes()
    one, other = content.index(pictures[0]), content.index(pictures[1])
    content = bytearray(content)
    content[one : one + len(pictures[0])], content[other : other + len(pictures[1])] = pictures[1], pictures[0]
    stamp = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    (tmp_path / "run" / "summary.json").unlink()
    status, said = cli(*run)
    assert status == 0, said
    assert re.search("changed: row .*; it is scanned again", said)
    assert "its file changed (other bytes in row group 0)" in said
    rows = pq.read_table(tmp_path / "run" / "exemplars.parquet", columns=["row"])["row"].to_pylist()
    assert rows == [{0: 1, 1: 0}.get(row, row) for row in expected]


def test_negative_labels_are_none_in_what_is_gathered(tmp_path):
    images = [LabelledImage(encode(random_picture(i)), f"{i}.png", [-1, -100, 7][i % 3]) for i in range(9)]
    paths, _ = write_images(images, str(tmp_path / "d"), None, 1000)
    spec, trunk = tiny(top_k=9, class_top_k=2)
    [shard], _ = inspect(discover([str(paths[0])]))
    scanned = scan_it(trunk, spec, shard)
    assert {int(label) for label in scanned.part.scores.label} == {-1, 7}
    assert [tally.labels.tolist() for tally in scanned.part.classes] == [[7]] * len(spec.readouts)
    strongest = scanned.part.scores.take(scanned.part.scores.ranking == TOP)
    images = gather_shard(trunk, spec, shard, strongest).images
    assert images["label"].to_pylist() == [None, None, 7] * 3
    assert images.schema.field("label").type == pa.int64()
