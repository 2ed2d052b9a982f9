"""`visualize_channels`: of a run or a module in hand, in a program or a notebook; what it returns shows itself."""

import base64
import io
import os
import re
import shutil

import nbformat
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PROJECT, TESTS, TINY_FLAGS, TINY_NETWORK, write_tiny_data
from nbclient import NotebookClient
from PIL import Image
from tiny_network import trained, trained_otherwise
from torch import nn

from exemplar_ray import IncompleteError, UsageError, find_exemplars, visualize_channels
from exemplar_ray.results.visualization import Visualizations
from exemplar_ray.runs.run_folder import RunFolder

PREPROCESS = {"resize": 36, "crop": 32, "mean": [117, 117, 117]}
FEW_STEPS = {"size": 32, "steps": 6}
OF_MODEL = {"layer": "mixed", "preprocess": PREPROCESS, **FEW_STEPS}


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster):
    """A run of a module in hand, whose own classes workers have from its folder only."""
    folder = tmp_path_factory.mktemp("visualized")
    write_tiny_data(folder / "data", shards=2)
    keys = {"layer": "mixed", "channels": "0-5", "statistic": ["mean", "max"], "top_k": 3, "preprocess": PREPROCESS}
    return find_exemplars(trained(), data=str(folder / "data"), out=str(folder / "run"), **keys)


def table_of(folder):
    return pq.read_table(os.path.join(folder, "visualizations.parquet"))


def test_a_run_in_hand_has_pictures_at_once_and_they_are_the_commands(run, tmp_path, cli):
    assert (run.visualizations.exist, run.channel("mixed", 2).visualizations) == (False, [])
    with pytest.raises(UsageError, match="has no pictures of this result; make them with exemplar-ray visualize"):
        run.visualizations.table()
    made = visualize_channels(run, channels=range(4), negative=True, **FEW_STEPS)
    assert made.table().select(["channel", "objective"]).to_pylist() == [
        {"channel": channel, "objective": objective} for channel in range(4) for objective in ("channel", "channel-")
    ]
    assert "image" not in made.table().column_names
    # The run that was open before knows of them.
    assert [one["objective"] for one in run.channel("mixed", 2).visualizations] == ["channel", "channel-"]
    assert made.of_channel("mixed", 2)[0].picture.size == (32, 32)
    copy = tmp_path / "run"
    shutil.copytree(run.uri, copy)
    shutil.rmtree(copy / "visualizations")
    words = ["--channels", "0-3", "--negative", "--size", "32", "--steps", "6"]
    assert cli("visualize", copy, *words)[0] == 0
    assert table_of(copy / "visualizations") == table_of(made.uri)


def test_again_there_is_nothing_to_do_by_whichever_name_of_the_run(run, capsys):
    visualize_channels(run, channels=range(4), negative=True, **FEW_STEPS)
    capsys.readouterr()
    again = visualize_channels(run.uri, channels="0-3", negative=True, **FEW_STEPS)
    assert "nothing to do" in capsys.readouterr().out
    assert len(again.table()) == 8


def test_a_module_in_hand_without_a_run_is_what_its_factory_gives(tmp_path, cli):
    made = visualize_channels(model=trained(), out=str(tmp_path / "in-hand"), channels="0,2", **OF_MODEL)
    flags = [*TINY_FLAGS[:4], *TINY_FLAGS[6:], "--channels", "0,2", "--size", "32", "--steps", "6"]
    assert cli("visualize", *flags, "--out", tmp_path / "by-name")[0] == 0
    assert table_of(made.uri) == table_of(tmp_path / "by-name")
    assert made.table()["ratio_to_top"].null_count == 2
    assert len(list((tmp_path / "in-hand").glob("network-*.pt"))) == 1
    # The folder is enough, wherever it lies.
    moved = tmp_path / "moved"
    shutil.move(made.uri, moved)
    (moved / "parts" / "000000.json").unlink()
    again = visualize_channels(model=trained(), out=str(moved), channels="0,2", **OF_MODEL)
    assert table_of(again.uri) == table_of(tmp_path / "by-name")
    with pytest.raises(UsageError, match="is of a run of another network"):
        visualize_channels(model=trained_otherwise(), out=str(moved), channels="0,2", **OF_MODEL)


def test_pictures_show_themselves_and_an_untrained_network_is_called_so(run, tmp_path):
    html = visualize_channels(run, channels=range(4), negative=True, **FEW_STEPS)._repr_html_()
    assert re.findall(r"mixed:(\d)</div>", html) == ["0", "1", "2", "3"]
    assert html.count("times the strongest image") == 4
    assert "UNTRAINED" not in html
    keys = {**OF_MODEL, "size": 16, "steps": 1}
    untrained = visualize_channels(model=many(), out=str(tmp_path / "out"), **{**keys, "layer": "0"})
    html = untrained._repr_html_()
    assert "UNTRAINED NETWORK" in html
    assert html.count("<img") == 24
    assert "and 6 more channels" in html
    assert len(html) < 300_000


def many():
    """30 channels, and a normalisation that tells that nobody trained it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 30, 3), nn.BatchNorm2d(30)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"step": 3}, "visualize_channels has no argument 'step'; did you mean 'steps'"),
        ({"steps": 0}, "steps is a whole number from 1, not 0"),
        ({"top_k": 3}, "visualize_channels has no argument 'top_k'"),
        ({"model": trained()}, "says already what model is; leave out --model"),
        ({"preprocess": PREPROCESS}, "says already what preprocess is"),
        ({"statistic": ["mean", "max"]}, "pictures are made for one statistic at a time"),
        ({"channels": 9}, "channel 9 of 'mixed' is not in the run"),
    ],
)
def test_what_cannot_be_of_a_run_is_one_line(keys, message, run):
    with pytest.raises(UsageError, match=message) as raised:
        visualize_channels(run, **keys)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "takes a finished run, or model, layer and out"),
        ({"model": TINY_NETWORK, "layer": "mixed"}, "takes a finished run, or model, layer and out"),
        ({"model": 3, "layer": "mixed", "out": "OUT"}, "model is a name or a torch.nn.Module, not int 3"),
        ({"model": trained(), "layer": "mixed", "out": "OUT", "steps": 0}, "steps is a whole number from 1, not 0"),
        ({"run": 3}, "a run folder is a path or a URI, not 3"),
    ],
)
def test_what_cannot_be_without_one_is_one_line_and_nothing_is_written(keys, message, tmp_path):
    keys = {key: str(tmp_path / "out") if value == "OUT" else value for key, value in keys.items()}
    with pytest.raises(UsageError, match=message):
        visualize_channels(**keys)
    assert not (tmp_path / "out").exists()


# In a notebook ----------------------------------------------------------------------------

OF_A_NOTEBOOK = """
import sys; sys.path[:0] = [{project!r}, {tests!r}]
import ray; ray.init(address={address!r}, logging_level="ERROR", log_to_driver=False)
from tiny_network import trained
from exemplar_ray import visualize_channels
keys = dict(layer="mixed", preprocess={preprocess}, size=32)
"""


def test_a_notebook_shows_how_many_pictures_are_finished_and_the_last_of_them(ray_head, tmp_path):
    here = {"project": str(PROJECT), "tests": str(TESTS), "address": ray_head["address"], "preprocess": PREPROCESS}
    call = "visualize_channels(model=trained(), out={!r}, steps=6, negative=True, diverse=2, **keys)"
    cells = [
        OF_A_NOTEBOOK.format(**here),
        call.format(str(tmp_path / "out")),
        # What is shown meanwhile is nothing that the job depends on.
        "from exemplar_ray.visualize import job\njob.small_pictures = lambda part: [('x', None)]",
        call.format(str(tmp_path / "again")),
        "ray.is_initialized()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = notebook.cells[1].outputs
    line, glimpse = [one.data["text/html"] for one in outputs if one.output_type == "display_data"]
    # 12 channels, each up, down and in two that differ: 18 groups.
    assert '<progress value="48" max="48" aria-label="visualize">' in line
    assert "48/48 pictures" in line
    names = re.findall(r'alt="mixed:(\d+) (channel-?|diverse-[12])"', glimpse)
    assert 1 <= len(names) <= 8
    for content in re.findall(r"base64,([^\"]+)", glimpse):
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (32, 32)
    assert outputs[-1].output_type == "execute_result"
    assert outputs[-1].data["text/html"] == Visualizations(RunFolder(str(tmp_path / "out")))._repr_html_()
    again = notebook.cells[3].outputs
    assert [one.data["text/html"][:5] for one in again if one.output_type == "display_data"] == ["visua"]
    assert table_of(tmp_path / "again") == table_of(tmp_path / "out")
    assert notebook.cells[4].outputs[0].data["text/plain"] == "True"


def test_a_log_counts_pictures_too(tmp_path, cli, ray_cluster):
    flags = [*TINY_FLAGS[:4], *TINY_FLAGS[6:], "--channels", "0-5", "--diverse", "3", "--size", "32", "--steps", "2"]
    said = cli("visualize", *flags, "--out", tmp_path / "out")[1]
    done = re.findall(r"^visualize (\d+)/24  mixed:\S+ (channel|diverse): (\d+) pictures on ", said, flags=re.M)
    assert len(done) == 8
    assert done[-1][0] == "24"
    assert sum(int(number) for _, _, number in done) == 24
    assert re.search(r"s, of which the pictures [\d.]+ s: [\d.]+ pictures/(s|min)$", said, flags=re.M)
    assert "images" not in said


# Groups that fail -------------------------------------------------------------------------


class Fragile(nn.Module):
    """Gives no gradients while a file is there."""

    def __init__(self, switch):
        super().__init__()
        self.network, self.switch = trained(), str(switch)

    def forward(self, x):
        if torch.is_grad_enabled() and os.path.exists(self.switch):
            raise RuntimeError("out of order")
        return self.network(x)


def test_groups_that_fail_are_named_and_the_next_call_goes_on(tmp_path, ray_cluster):
    switch = tmp_path / "switch"
    switch.touch()
    keys = {"model": Fragile(switch), "out": str(tmp_path / "out"), "channels": "0-4"}
    keys |= {**OF_MODEL, "layer": "network.mixed"}
    with pytest.raises(IncompleteError, match=r"^2 of 2 groups have no result \(.*out of order") as incomplete:
        visualize_channels(**keys)
    # In the order in which they failed, which is any.
    assert "network.mixed:0-3 channel: " in str(incomplete.value)
    assert "network.mixed:4 channel: " in str(incomplete.value)
    switch.unlink()
    assert len(visualize_channels(**keys).table()) == 5
