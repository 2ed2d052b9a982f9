"""Circuits as a job: of a run and without one, the same bytes, on pages and where results are read."""

import re
import shutil
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY_NETWORK, write_tiny_data
from tiny_network import trained

from exemplar_ray import open_run
from exemplar_ray.data.decode import decode_and_crop
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.network.trunk import to_input
from exemplar_ray.report.circuits import bar_of

TINY = Preprocess(mean=(117, 117, 117), resize=36, crop=32)
NETWORK = ["--model", TINY_NETWORK, "--preprocess", "{resize: 36, crop: 32, mean: [117, 117, 117]}"]
MADE = ["--removed", "2", "--top", "6"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster):
    """A run of two layers of the tiny network, and what their channels are made of."""
    from exemplar_ray.cli import main

    folder = tmp_path_factory.mktemp("circuits")
    write_tiny_data(folder / "data", shards=2)
    flags = [*NETWORK, "--layer", "conv1", "mixed", "--top-k", "4"]
    assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *flags]) == 0
    assert main(["circuits", str(folder / "run"), *MADE]) == 0
    return folder / "run"


def rows(folder, table):
    return pq.read_table(folder / f"{table}.parquet").to_pylist()


def test_every_channel_has_its_edges_of_each_kind(run):
    module, edges = trained(), rows(run / "circuits", "circuits")
    kinds = {(edge["layer"], edge["from_layer"], edge["kind"]) for edge in edges}
    assert kinds == {
        (layer, source, kind)
        for layer, source in (("conv1", "image"), ("mixed", "conv1"))
        for kind in ("literal", "expanded", "gated", "exemplars")
    }
    for edge in edges:
        if edge["kind"] not in ("literal", "expanded"):
            continue
        channel, source = edge["channel"], edge["from_channel"]
        if edge["layer"] == "conv1":
            # Of the image after it was divided by 60, as the channel's row says.
            expected = module.conv1.weight[channel, source]
        else:
            expected = (module.wide.weight[channel] if channel < 8 else module.narrow.weight[channel - 8])[source]
        expected = expected.detach().numpy()
        assert np.allclose(np.array(edge["weights"]).reshape(expected.shape), expected, rtol=1e-5)
        assert edge["l2"] == pytest.approx(np.linalg.norm(expected), rel=1e-5)
        assert edge["sum"] == pytest.approx(expected.sum(), rel=1e-4, abs=1e-6)
    of_one = [edge for edge in edges if (edge["layer"], edge["channel"], edge["kind"]) == ("mixed", 3, "expanded")]
    assert [edge["rank"] for edge in of_one] == list(range(1, 7))
    assert sorted((edge["l2"] for edge in of_one), reverse=True) == [edge["l2"] for edge in of_one]


def test_what_it_comes_to_on_exemplars_is_what_a_plain_hook_sees(run):
    module, exemplars = trained(), rows(run / "circuits", "circuit_exemplars")
    strongest = {
        (row["layer"], row["channel"], row["rank"]): row for row in pq.read_table(run / "exemplars.parquet").to_pylist()
    }
    assert len(exemplars) == (8 + 12) * 4
    caught = {}
    for name in ("conv1", "wide", "narrow"):
        getattr(module, name).register_forward_hook(lambda _m, _i, out, name=name: caught.update({name: out[0]}))
    for row in exemplars:
        of_run = strongest[row["layer"], row["channel"], row["rank"]]
        assert (row["shard"], row["row"]) == (of_run["shard"], of_run["row"])
        crop = decode_and_crop(of_run["image"]["bytes"], TINY)
        with torch.no_grad():
            module(to_input(torch.tensor(crop[None]), TINY))
        own = caught["conv1"] if row["layer"] == "conv1" else torch.cat([caught["wide"], caught["narrow"]])
        value = float(own[row["channel"], row["peak_y"], row["peak_x"]])
        assert value == float(own[row["channel"]].max())
        assert row["activation_pre_relu"] == pytest.approx(value, rel=1e-5, abs=1e-6)
        whole = sum(row["contributions"]) + row["others_excite"] + row["others_inhibit"] + row["bias"]
        assert whole == pytest.approx(value, rel=1e-4, abs=1e-5)
        if row["layer"] == "mixed":
            layer, number = (module.wide, row["channel"]) if row["channel"] < 8 else (module.narrow, row["channel"] - 8)
            assert row["bias"] == pytest.approx(float(layer.bias[number].detach()), rel=1e-4, abs=1e-6)


def test_channels_say_whether_their_inputs_explain_them(run):
    for row in rows(run / "circuits", "circuit_channels"):
        assert row["residual"] < 1e-5
        assert len(row["removed"]) == 2
        assert row["exemplars"] == 4
        # Between these layers nothing is not linear: what is foretold is what happens.
        predicts = dict(row["predicts"])
        assert row["through"] == (["relu"] if row["layer"] == "mixed" else ["div"])
        assert set(predicts) <= {"exemplars", "expanded", "gated"}
        assert all(value == pytest.approx(1) for value in predicts.values())
    circuit = open_run(run).channel("mixed", 3).circuit
    assert [edge["from_channel"] for edge in circuit.inputs()] == [
        edge["from_channel"] for edge in circuit.inputs("literal")
    ]
    assert circuit.inputs()[0].kernel.shape == (3, 3)
    circuit.row["activation_left"] = 0.95
    assert "does not explain it: without its 2 strongest inputs 95 %" in circuit.doubt


def test_what_a_channel_is_used_by_is_the_other_way_round(run):
    edges = {
        (edge["channel"], edge["from_channel"]): edge
        for edge in rows(run / "circuits", "circuits")
        if (edge["layer"], edge["kind"]) == ("mixed", "expanded")
    }
    uses = [use for use in rows(run / "circuits", "circuit_uses") if use["layer"] == "conv1"]
    assert {use["next_layer"] for use in uses} == {"mixed"}
    both = [use for use in uses if (use["next_channel"], use["channel"]) in edges]
    assert len(both) > 20
    for use in both:
        edge = edges[use["next_channel"], use["channel"]]
        same = ("weights", "l2", "sum", "rank", "share", "sign")
        assert {name: use[name] for name in same} == {name: edge[name] for name in same}


def test_running_again_does_nothing_and_lost_groups_come_back_the_same(run, tmp_path, cli):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    status, said = cli("circuits", copy, *MADE)
    assert (status, "nothing to do" in said) == (0, True), said
    tables = sorted((copy / "circuits").glob("*.parquet"))
    assert len(tables) == 4
    before = [table.read_bytes() for table in tables]
    (copy / "circuits" / "parts" / "000001.json").unlink()
    status, said = cli("status", copy / "circuits")
    assert (status, "1 pending" in said) == (1, True), said
    status, said = cli("circuits", copy, *MADE, "--cpus-per-task", "2")
    assert (status, "already done" in said) == (0, True), said
    assert [table.read_bytes() for table in tables] == before
    status, said = cli("circuits", copy, *MADE, "--from-layer", "image")
    assert (status, "these keys differ: from_layer" in said) == (2, True), said


def test_a_network_without_a_run_has_circuits_too(run, tmp_path, cli):
    flags = [*NETWORK, "--layer", "mixed", "--channels", "3,9", "--top", "2", "--out", tmp_path / "out"]
    status, said = cli("circuits", *flags)
    assert status == 0, said
    assert "mixed: 2 channels, made of the 8 of conv1, after relu; literal, expanded" in said
    assert f"drawn: {tmp_path / 'out' / 'circuits.html'}" in said
    page = (tmp_path / "out" / "circuits.html").read_text()
    assert page.count("data:image/png") == 2 * 2
    assert "tiny_network:trained" in page
    edges = rows(tmp_path / "out", "circuits")
    of_run = [
        edge
        for edge in rows(run / "circuits", "circuits")
        if edge["layer"] == "mixed"
        and edge["channel"] in (3, 9)
        and edge["kind"] in ("literal", "expanded")
        and edge["rank"] <= 2
    ]
    assert sorted(map(str, edges)) == sorted(map(str, of_run))


def test_the_pages_show_circuits_whose_links_lead_somewhere(run, tmp_path, cli):
    assert cli("report", run, "--out", tmp_path / "pages")[0] == 0
    page = (tmp_path / "pages" / "mixed" / "3.html").read_text()
    assert 'id="made-of"' in page
    assert page.count('class="edge"') >= 4 * 6
    assert len(page) < 400_000
    links = 0
    for name in (tmp_path / "pages").rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#]+)"', name.read_text()):
            if not target.startswith(("data:", "http")):
                links += 1
                assert (name.parent / target).exists(), (name, target)
    assert links > 100
    assert '<a href="../conv1/' in page
    assert '<a href="../mixed/' in (tmp_path / "pages" / "conv1" / "0.html").read_text()
    # The next layer is not in the run: it is named, and there is no link.
    assert "<span><bdi>classifier</bdi>:" in page


def test_inputs_that_excite_stand_apart_from_those_that_inhibit(run, tmp_path, cli):
    assert cli("report", run, "--out", tmp_path / "pages")[0] == 0
    page = (tmp_path / "pages" / "mixed" / "3.html").read_text()
    edges = open_run(str(run)).channel("mixed", 3).circuit.inputs("expanded")
    assert {edge["sum"] > 0 for edge in edges} == {True, False}
    for way, excites in (("excite", True), ("inhibit", False)):
        [shown] = re.findall(rf'<ul aria-labelledby="expanded-{way}">(.*?)</ul>', page, re.DOTALL)
        expected = [edge["from_channel"] for edge in edges if (edge["sum"] > 0) == excites]
        assert [int(channel) for channel in re.findall(r"</bdi>:(\d+)", shown)] == expected


def test_a_bar_is_made_of_pieces_that_add_up(run):
    for exemplar in rows(run / "circuits", "circuit_exemplars"):
        bar = bar_of(exemplar)
        assert sum(value for _, value, _, _ in bar.pieces) == pytest.approx(bar.total, rel=1e-4, abs=1e-4)
        assert bar.zero == pytest.approx(sum(width for _, value, _, width in bar.pieces if value < 0))
        # Side by side, without a gap: what inhibits from zero to the left, what excites to the right.
        covered = sorted((x, x + width) for _, _, x, width in bar.pieces if width)
        assert covered[0][0] == pytest.approx(0, abs=1e-6)
        assert covered[-1][1] == pytest.approx(100)
        assert all(one[1] == pytest.approx(other[0], abs=1e-6) for one, other in pairwise(covered))
        assert all((x < bar.zero - 1e-9) == (value < 0) for _, value, x, width in bar.pieces if width)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top", "-1"], "top is a whole number from 0, not -1"),
        (["--from-layer", "conv9"], "'conv9' gives no tensor that can be followed, or runs more than once"),
        (["--from-layer", "wide"], "some of what it is given does not come from there"),
        (["--statistic", "max"], "the run has no statistic 'max'"),
        (["--channels", "40"], "channel 40 is out of range"),
        (["--layer", "conv1"], "says already what layer is"),
    ],
)
def test_what_cannot_be_is_one_line(flags, message, run, cli):
    status, said = cli("circuits", run, *flags)
    assert (status, message in said, said.count("\n")) == (2, True, 1), said


def test_attention_is_refused_in_a_line(tmp_path, cli, ray_cluster):
    flags = ["--model", "torchvision:vit_b_16", "--layer", "encoder.layers.encoder_layer_3"]
    status, said = cli("circuits", *flags, "--weights", "random:0", "--out", tmp_path / "out")
    assert (status, "gives tokens; circuits are made of layers" in said, said.count("\n")) == (2, True, 1), said
    assert not (tmp_path / "out").exists()
