"""`find_exemplars`: a module in hand or a name, in a notebook or a program; its identity, and going on elsewhere."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PROJECT, TINY_FLAGS, TINY_NETWORK, encode, random_picture, write_tiny_data
from nbclient import NotebookClient
from tiny_network import TinyNetwork, trained, trained_otherwise
from torch import nn
from torchvision import models, transforms
from torchvision.transforms import v2

from exemplar_ray import IncompleteError, Preprocess, UsageError, find_exemplars, open_run
from exemplar_ray.data.decode import decode_and_crop
from exemplar_ray.exemplars.plan import EXEMPLARS, Plan
from exemplar_ray.network import module_in_hand
from exemplar_ray.network.structure import structure_sha256
from exemplar_ray.network.transforms import preprocess_of
from exemplar_ray.network.trunk import to_input
from exemplar_ray.report.provenance import arguments_of
from exemplar_ray.runs.run_folder import RunFolder

KEYS = {"layer": "mixed", "top_k": 3, "preprocess": {"resize": 36, "crop": 32, "mean": [117, 117, 117]}}

# What a notebook or a program has in hand: its classes are in no file that a worker has.
OF_A_NOTEBOOK = """
import time, torch
from torch import nn
from exemplar_ray import find_exemplars

class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.2)
        return x

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 6, 5, stride=2)
        self.slow = Slow()

    def forward(self, x):
        return self.slow(self.conv(x).relu())

def find(data, out, **keys):
    return find_exemplars(Net(), layer="slow", data=data, out=out, top_k=3, **keys,
                          preprocess={"resize": 36, "crop": 32, "mean": [117, 117, 117], "scale": 255})
"""


def answer(run):
    """All that a result says but where the images were read."""
    return pq.read_table(run / EXEMPLARS).to_pylist()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("found") / "data", shards=4)[0].parent


@pytest.fixture(scope="module")
def found(data, ray_cluster):
    """A run of a module in hand: its folder."""
    out = data.parent / "run"
    find_exemplars(trained(), data=str(data), out=str(out), statistic=["mean", "max"], **KEYS)
    return out


def test_a_module_in_hand_gives_what_its_factory_gives(found, data, tmp_path, cli):
    command = ["run", "--data", data, "--out", tmp_path / "run", *TINY_FLAGS, "--statistic", "mean", "max"]
    assert cli(*command)[0] == 0
    assert answer(found) == answer(tmp_path / "run")
    network = open_run(str(found)).plan.spec.network
    assert network.title == "TinyNetwork, a module in hand, its own weights"


def test_again_there_is_nothing_to_do_and_another_network_is_refused(found, data, capsys):
    again = find_exemplars(trained(), data=[str(data)], out=str(found), statistic=["mean", "max"], **KEYS)
    assert "nothing to do" in capsys.readouterr().out
    assert len(again.exemplars(channel=3, statistic="mean")) == 3
    before = sorted(os.listdir(found))
    for other in (trained_otherwise(), nn.Sequential(trained())):
        with pytest.raises(UsageError, match="is of a run of another network, whose weights or structure differ"):
            find_exemplars(other, data=str(data), out=str(found), statistic=["mean", "max"], **KEYS)
    with pytest.raises(UsageError, match="these keys differ: statistic"):
        find_exemplars(trained(), data=str(data), out=str(found), **KEYS)
    assert sorted(os.listdir(found)) == before


def test_the_run_folder_is_enough_for_every_command_wherever_it_lies(found, tmp_path, cli):
    moved = tmp_path / "moved"
    shutil.copytree(found, moved)
    (moved / "parts" / "000002.json").unlink()
    (moved / EXEMPLARS).unlink()
    status, said = cli("status", moved)
    assert (status, "1 pending" in said) == (1, True), said
    arguments = arguments_of(Plan.read(RunFolder(str(moved))), str(moved))
    assert arguments[arguments.index("--model") + 1].startswith(f"module:{moved}/network-")
    assert cli(*arguments)[0] == 0
    assert answer(moved) == answer(found)
    (moved / EXEMPLARS).unlink()
    assert cli("merge", moved)[0] == 0
    status, said = cli("check", moved)
    assert (status, "images" in said) == (0, True), said
    assert cli("report", moved)[0] == 0
    page = (moved / "report" / "index.html").read_text()
    assert "TinyNetwork, a module in hand" in page
    assert "module:" not in page.replace("--model module:", "")
    assert cli("publish", moved, "me/it", "--dry-run", tmp_path / "dry")[0] == 0
    assert str(tmp_path) not in (tmp_path / "dry" / "run.json").read_text()


def test_a_name_will_do_and_every_key_of_a_run(data, tmp_path, ray_cluster):
    preprocess = Preprocess(resize=36, crop=32, mean=(117, 117, 117))
    keys = {"channels": range(2, 4), "sample": "bottom", "max_skipped": 1, "retries": 2, "compile": "never"}
    run = find_exemplars(
        TINY_NETWORK, data=str(data), out=str(tmp_path / "run"), layer="mixed", preprocess=preprocess, top_k=3, **keys
    )
    assert run.table()["channel"].unique().to_pylist() == [2, 3]
    assert set(run.table()["sample"].to_pylist()) == {"top", "bottom"}


def test_shards_that_fail_are_named_and_the_next_call_does_only_these(data, tmp_path, ray_cluster):
    shutil.copytree(data, tmp_path / "data")
    broken = sorted((tmp_path / "data").iterdir())[1]
    content = broken.read_bytes()
    broken.write_bytes(b"no parquet")
    call = partial(find_exemplars, trained(), data=str(tmp_path / "data"), out=str(tmp_path / "run"), **KEYS)
    with pytest.raises(
        IncompleteError, match=rf"^1 of 4 shards have no result \({broken.name}: .*\); call it again to"
    ):
        call()
    broken.write_bytes(content)
    run = call()
    assert run.summary.scored == 40
    assert run.partial is None


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        (TinyNetwork, {}, "model is a name or a torch.nn.Module, not type .*; call it, to give what it makes"),
        (None, {}, "model is a name or a torch.nn.Module, not NoneType None"),
        (trained(), {"layers": "mixed"}, "find_exemplars has no argument 'layers'; did you mean 'layer'"),
        (trained(), {"layer": "mixd"}, "did you mean 'mixed'"),
        (trained(), {"weights": "random:3"}, "has the same weights whatever the seed, so it loads its own"),
        (trained(), {"top_k": 0}, "top_k is a whole number from 1, not 0"),
        (trained(), {"preprocess": None}, "this model brings no preprocessing of its own"),
        (
            trained(),
            {"preprocess": transforms.RandomCrop(3)},
            "the transform's RandomCrop has no word here, only Resize",
        ),
        (torch.jit.trace(trained(), torch.zeros(1, 3, 32, 32)), {}, "give the network that it was made of"),
    ],
)
def test_what_cannot_be_is_one_line(model, keys, message, data, tmp_path, ray_cluster):
    with pytest.raises(UsageError, match=message) as raised:
        find_exemplars(model, data=str(data), out=str(tmp_path / "run"), **{**KEYS, **keys})
    assert "\n" not in str(raised.value)


def test_what_cannot_be_written_down_is_one_line(data, tmp_path):
    network = trained()
    network.lock = threading.Lock()
    with pytest.raises(UsageError, match="the network cannot be handed to workers .TypeError: .*'file.py:"):
        find_exemplars(network, data=str(data), out=str(tmp_path / "run"), **KEYS)
    assert not (tmp_path / "run").exists()


def test_foreign_files_are_left_alone(data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="has no run.json but holds notes.txt"):
        find_exemplars(trained(), data=str(data), out=str(tmp_path), **KEYS)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_module_in_hand_is_left_as_it_is(data, tmp_path, ray_cluster):
    network = trained().train().double()
    find_exemplars(network, data=str(data), out=str(tmp_path / "run"), **KEYS)
    assert network.training
    assert network.conv1.weight.dtype == torch.float64
    assert not network.mixed._forward_hooks


# In a notebook ----------------------------------------------------------------------------


def test_killed_and_continued_in_a_notebook_which_shows_the_run(ray_head, tmp_path):
    write_tiny_data(tmp_path / "data", shards=12)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "RAY_ADDRESS": ray_head["address"]}
    program = f"{OF_A_NOTEBOOK}\nfind({str(tmp_path / 'data')!r}, {str(tmp_path / 'run')!r})\n"
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen([sys.executable, tmp_path / "program.py"], env=environment, start_new_session=True)
    records = tmp_path / "run" / "parts"
    deadline = time.monotonic() + 120
    while len(list(records.glob("*.json"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert len(finished) < 12
    # What the program was in need not be there any more.
    (tmp_path / "program.py").unlink()

    cells = [
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n{OF_A_NOTEBOOK}",
        f"import ray; ray.init(address={ray_head['address']!r}, logging_level='ERROR', log_to_driver=False); None",
        f"find({str(tmp_path / 'data')!r}, {str(tmp_path / 'run')!r})",
        "ray.is_initialized()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = notebook.cells[2].outputs
    said = "".join(one.text for one in outputs if one.output_type == "stream")
    assert "12 shards, " in said
    assert "already done" in said
    assert "UNTRAINED" not in said
    # One line a phase, brought up to date in place.
    lines = [one.data["text/html"] for one in outputs if one.output_type == "display_data"]
    assert sum(line.startswith("scan <progress") for line in lines) == 1
    scanned = int(said.partition(" already done")[0].rpartition(", ")[2])
    assert f'<progress value="{12 - scanned}" max="{12 - scanned}" aria-label="scan">' in lines[0]
    assert "images/s" in lines[0]
    assert outputs[-1].output_type == "execute_result"
    assert outputs[-1].data["text/html"] == open_run(str(tmp_path / "run"))._repr_html_()
    # The Ray that was there goes on.
    assert notebook.cells[3].outputs[0].data["text/plain"] == "True"
    assert {name: (records / name).stat().st_mtime_ns for name in finished} == finished


# Structure --------------------------------------------------------------------------------

STRUCTURES = {
    "as it is": "",
    "a class's code": "Net.forward = lambda self, x: self.conv(x).sigmoid()",
    "an attribute": "net.extra = 2.0",
    "what a layer is made with": "net.conv.stride = (1, 1)",
    "a function that it calls": "def act(x):\n    return x.relu() + 1",
    "a constant that it reads": "SLOPE = 0.2",
    "a part's class": "net.slow = nn.Identity()",
    "a hook": "net.conv.register_forward_hook(lambda module, inputs, output: output * 2)",
    "a hook that closes over something": "net.conv.register_forward_hook(doubled(3))",
    "a function in an attribute": "net.act = torch.sigmoid",
    "a tensor beside the state": "net.table = torch.arange(3.0)",
    "a tensor that is not in the state dict": "net.register_buffer('b', torch.ones(2), persistent=False)",
    "a list of modules": "net.others = [nn.ReLU()]",
    "a default": "Net.helper = lambda self, x=1: x",
}
OF_STRUCTURES = """
import sys, torch
from functools import partial
from torch import nn
sys.path.insert(0, {project!r})
from exemplar_ray.network.structure import structure_sha256
SLOPE = 0.1
def act(x):
    return nn.functional.leaky_relu(x, SLOPE)
def doubled(by):
    return lambda module, inputs, output: output * by
class Net(nn.Module):
    '''What is said of it.'''
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 5, stride=2)
        self.slow = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6))
        self.sizes = {{"a": (3, 4), "b": {{"x", "y", "z"}}}}
        self.scale = partial(torch.mul, other=2)
    def forward(self, x):
        return self.slow(act(self.conv(x)))
def change():
    global Net, act, SLOPE, net
    net = Net()
    exec(CHANGE, globals())
    return structure_sha256(net)
"""


def test_structures_tell_what_decides_and_are_the_same_in_another_process(tmp_path):
    """Each is taken twice, in processes whose hash seeds differ: one runs a script, one a module that it imports."""
    source = OF_STRUCTURES.format(project=str(PROJECT))
    each = "if not os.fork(): print(change(), flush=True); os._exit(0)\n    os.wait()\n"
    script = f"import os\n{source}\nfor CHANGE in {list(STRUCTURES.values())!r}:\n    {each}"
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "imported.py").write_text(
        "# Another file, with other lines.\n\n" + script.replace("What is said", "Else")
    )
    (tmp_path / "main.py").write_text("import imported\n")
    hashes = []
    for seed, program in enumerate(("script.py", "main.py")):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        done = subprocess.run([sys.executable, tmp_path / program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        hashes.append(done.stdout.split())
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == len(STRUCTURES)


def test_weights_are_no_part_of_the_structure_but_of_the_file():
    one, other = trained(), trained_otherwise()
    assert structure_sha256(one) == structure_sha256(other) == structure_sha256(trained().train())
    written = [module_in_hand.written_down(module).sha256 for module in (one, other, trained())]
    assert written[0] == written[2] != written[1]


@pytest.mark.parametrize(
    ("network", "trained_"),
    [
        (models.resnet18(weights=None), False),
        (models.swin_t(weights=None), False),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), False),
        # Nothing in it tells.
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4, affine=False)), True),
        (trained(), True),
    ],
)
def test_a_network_that_was_never_trained_is_called_so_where_it_shows(network, trained_, tmp_path):
    (tmp_path / "network.pt").write_bytes(module_in_hand.written_down(network).content)
    assert module_in_hand.module_in_hand(str(tmp_path / "network.pt"), "pretrained").is_trained == trained_
    learnt = next((part for part in network.modules() if isinstance(part, module_in_hand._NORMALISATIONS)), None)
    if not trained_ and learnt is not None:
        learnt.weight.data += 0.01
        (tmp_path / "network.pt").write_bytes(module_in_hand.written_down(network).content)
        assert module_in_hand.module_in_hand(str(tmp_path / "network.pt"), "pretrained").is_trained


# Transforms -------------------------------------------------------------------------------

TRANSFORMS = {
    "a preset": models.get_model_weights("vit_b_16").DEFAULT.transforms(),
    "version 1": transforms.Compose(
        [
            transforms.Resize(48),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.2] * 3),
        ]
    ),
    "squashed, version 2": v2.Compose(
        [
            v2.RGB(),
            v2.Resize((40, 40), interpolation=v2.InterpolationMode.LANCZOS),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    ),
    "grey": transforms.Compose(
        [
            transforms.Grayscale(),
            transforms.Resize(28),
            transforms.CenterCrop(28),
            transforms.ToTensor(),
            transforms.Normalize((0.1307,), (0.3081,)),
        ]
    ),
    "nested": transforms.Compose(
        [
            transforms.Compose(
                [transforms.Resize([40], transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(40)]
            ),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float32),
        ]
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms_are_said_in_keys_and_give_the_same_tensors(transform):
    preprocess = preprocess_of(transform)
    for seed, size in enumerate([(60, 50), (41, 77)]):
        picture = random_picture(seed, *size)
        crop = decode_and_crop(encode(picture), preprocess)
        ours = to_input(torch.from_numpy(crop.copy())[None], preprocess)[0]
        theirs = transform(picture)
        assert ours.shape == theirs.shape
        assert np.abs(ours.numpy() - np.asarray(theirs)).max() < 1e-6


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([transforms.Resize(40), transforms.ToTensor()], "without a crop images have to be squashed to a square"),
        ([transforms.ToTensor(), transforms.Resize((40, 40))], "the transform's Resize is not its first step"),
        ([transforms.CenterCrop(32), transforms.ToTensor()], "does not resize"),
        ([transforms.Resize((9, 9)), transforms.Grayscale(), transforms.ToTensor()], "Grayscale is not its first step"),
        ([transforms.Grayscale(3), transforms.Resize((9, 9)), transforms.ToTensor()], "three channels of grey"),
        ([transforms.Resize((40, 40))], "makes no tensor of 0..1"),
        ([transforms.Resize((40, 40)), transforms.ToTensor(), lambda x: x * 2], "the transform's <lambda> has no word"),
        ([transforms.Resize(40, max_size=50), transforms.CenterCrop(40), transforms.ToTensor()], "has a largest size"),
        ([transforms.Resize(40), transforms.CenterCrop((32, 30)), transforms.ToTensor()], "crops to .32, 30."),
        ([transforms.Resize((9, 9)), *[transforms.CenterCrop(8)] * 2, transforms.ToTensor()], "sets crop once more"),
        ([v2.Resize((9, 9)), v2.ToImage(), v2.ToDtype(torch.float32, scale=False)], "does not give float32 of 0..1"),
    ],
)
def test_transforms_that_cannot_be_said_are_refused(steps, message):
    with pytest.raises(UsageError, match=message):
        preprocess_of(transforms.Compose(steps))
