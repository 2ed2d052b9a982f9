"""A user's model file: run as a script is, whatever it does; and its networks, whatever they are made of."""

import os
import pickle
import random
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.network import user_file
from exemplar_ray.network.loading import trunk_of
from exemplar_ray.network.models import load_network, weights_sha256
from exemplar_ray.network.resolve import NetworkRequest, resolve_network
from exemplar_ray.network.spec import TrunkSpec

HEAD = "import torch\nfrom torch import nn\n"
CONV = "nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())"
PREPROCESS = {"resize": 36, "crop": 32, "mean": [117, 117, 117]}
IMAGES = Preprocess(**PREPROCESS)


@pytest.fixture
def write(tmp_path):
    """Write files, and return the path of the first."""

    def writing(text, name="net.py", **others):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD + textwrap.dedent(text))
        for other, content in others.items():
            path.with_name(f"{other}.py").write_text(HEAD + textwrap.dedent(content))
        return str(path)

    return writing


def load(path, factory="make", weights="random:0"):
    return load_network(f"{path}:{factory}", weights, preprocess=IMAGES)


def refused(path, message, factory="make", weights="random:0"):
    with pytest.raises(UsageError, match=message) as caught:
        load(path, factory, weights)
    assert "\n" not in str(caught.value)


# Running the file ------------------------------------------------------------------------


def test_a_file_with_dataclasses_and_postponed_annotations_runs(write, tmp_path):
    path = write("")
    (tmp_path / "net.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import NamedTuple\n"
        "import enum, pickle\nfrom torch import nn\n"
        "@dataclass\nclass Settings:\n    width: int = 4\n    of: Settings | None = None\n"
        "class Kind(enum.Enum):\n    A = 1\n"
        "class Net(nn.Sequential):\n    pass\n"
        "same = pickle.loads(pickle.dumps(Kind.A))\n"
        "def make():\n    assert same is Kind.A\n    return Net(nn.Conv2d(3, Settings().width, 3))\n"
    )
    module = load(path).module
    assert module[0].out_channels == 4
    assert type(pickle.loads(pickle.dumps(module))) is type(module)


def test_files_of_one_name_in_two_folders_and_their_neighbours_do_not_meet(write):
    """Each has the `utils` beside it, and an installed module of that name stays what it was."""
    files = [
        write(
            "import utils\nimport yaml\ndef make(): return utils.block()",
            f"{folder}/net.py",
            utils=f"def block(): return nn.Conv2d(3, {width}, 3)",
            yaml="mine = True",
        )
        for folder, width in (("a", 4), ("b", 6))
    ]
    import yaml

    networks = [load(path) for path in (*files, files[0])]
    assert [network.module.out_channels for network in networks] == [4, 6, 4]
    assert sys.modules["yaml"] is yaml
    assert not hasattr(yaml, "mine")
    hashes = [network.architecture.source_sha256 for network in networks]
    assert hashes[0] == hashes[2] != hashes[1]
    first, second = (user_file._run[path, "make"].module.__name__ for path in files)
    assert first != second
    assert {first, second} <= sys.modules.keys()
    assert not [entry for entry in sys.path if entry == os.path.dirname(files[0])]


def test_neighbours_named_like_what_everything_uses_harm_nobody(write, tmp_path):
    for name in ("numpy", "random", "profile", "torchvision"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not meant')\n")
    sound = write(f"import numpy as np\ndef make():\n    np.zeros(3)\n    return {CONV}")
    assert load(sound).module[0].out_channels == 4
    assert sys.modules["random"] is random
    refused(write("import random"), "imports 'random', which is a module of Python's and also .*rename")


@pytest.mark.parametrize("place", ["make", "beside"])
def test_a_file_in_a_package_imports_relatively(write, tmp_path, place):
    text = "def make():\n    from .blocks import block\n    return block()"
    if place == "beside":
        text = "from .blocks import block\ndef make(): return block()"
    path = write(text, f"{place}_nets/net.py", __init__="", blocks="def block(): return nn.Conv2d(3, 5, 3)")
    assert load(path).module.out_channels == 5
    (tmp_path / f"{place}_nets" / "__init__.py").unlink()
    user_file._run.clear()
    refused(path, "no known parent package.*__init__.py")


def test_what_a_file_imports_is_part_of_what_it_is(write, tmp_path):
    """At the top, in the function, in a package beside it, and what these import; libraries are not."""
    alone = write(f"import numpy\ndef make(): return {CONV}", "alone.py")
    assert load(alone).architecture.source_sha256 == user_file.UserCode.sha256(user_file._run[alone, "make"], "make")
    import hashlib

    content = (tmp_path / "alone.py").read_bytes()
    assert load(alone).architecture.source_sha256 == hashlib.sha256(content + b":make").hexdigest()

    (tmp_path / "parts").mkdir()
    for name, text in (("__init__", ""), ("deep", "WIDTH = 4\n")):
        (tmp_path / "parts" / f"{name}.py").write_text(text)
    path = write(
        "import first, importlib\ndef make():\n    importlib.import_module('late')\n    return first.block()",
        first="from parts import deep\ndef block(): return nn.Conv2d(3, deep.WIDTH, 3)",
        late="",
    )
    hashes = [load(path).architecture.source_sha256]
    for changed in ("first.py", "late.py", "parts/deep.py", "parts/__init__.py", "net.py"):
        file = tmp_path / changed
        file.write_text(file.read_text() + "\n# changed\n")
        hashes.append(load(path).architecture.source_sha256)
    assert len(set(hashes)) == 6
    (tmp_path / "parts" / "deep.py").write_text("WIDTH = 7\n")
    assert load(path).module.out_channels == 7


def test_the_hash_is_the_same_in_every_process_and_folder(write, tmp_path):
    texts = {"text": "import blocks\ndef make(): return blocks.block()", "blocks": f"def block(): return {CONV}"}
    path, other = write(**texts), write(**texts, name="elsewhere/net.py")
    there = subprocess.run(
        [sys.executable, "-c", "import sys\nfrom exemplar_ray.network.models import load_network\n"
         "print(load_network(sys.argv[1], 'random:0').architecture.source_sha256)", f"{path}:make"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert load(path).architecture.source_sha256 == there == load(other).architecture.source_sha256


def test_a_file_is_run_once_a_process_unless_it_changed(write, tmp_path):
    path = write(f"import os\nprint('x', file=open({str(tmp_path / 'runs')!r}, 'a'))\ndef make(): return {CONV}")
    for _ in range(3):
        load(path)
    assert (tmp_path / "runs").read_text().count("x") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import argparse\nargparse.ArgumentParser().parse_args()", "net.py' reads the command line's arguments where"),
        ("import sys\nx = [int(one) for one in sys.argv[1:]]", "net.py' reads the command line's arguments where"),
        ("import sys\nx = int(sys.argv[1])", r"net.py' fails: IndexError.*\(net.py, line 4\)"),
        (
            "raise SystemExit('usage: net.py CHECKPOINT')",
            "net.py' ends the program .*usage: net.py CHECKPOINT.*__main__",
        ),
        ("import sys; sys.exit()", "net.py' ends the program"),
        ("assert False", r"net.py' fails: AssertionError \(net.py, line 3\)"),
        ("class Odd(BaseException): pass\nraise Odd('a\\nb')", "net.py' fails: Odd: a b"),
        ("def make(:\n", r"net.py' fails: SyntaxError.*line 3"),
        ("import blocks_that_are_not_there", "net.py' fails: ModuleNotFoundError.*blocks_that_are_not_there"),
        ("x = 'a\0b'", "net.py' fails: (SyntaxError|ValueError)"),
    ],
)
def test_what_goes_wrong_where_a_file_is_imported_is_one_line(write, text, message, capfd):
    refused(write(text), message)
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_stays_one(write):
    with pytest.raises(KeyboardInterrupt):
        load(write("raise KeyboardInterrupt"))


def test_a_file_leaves_nothing_behind(write, tmp_path, capsys):
    path = write(
        f"""
        import os, random, sys
        import numpy as np
        torch.manual_seed(1); np.random.seed(1); random.seed(1)
        torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False); torch.set_num_threads(1)
        sys.path.insert(0, {str(tmp_path / "late")!r}); os.chdir('/')
        print('noise', sys.argv)
        def make():
            import late_one
            random.seed(2); np.random.seed(2)
            assert os.getcwd() == '/'
            print('more noise')
            return {CONV}
        """
    )
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "late_one.py").touch()
    torch.set_num_threads(2)

    def state():
        return (
            torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate(), torch.get_default_dtype(),
            torch.is_grad_enabled(), torch.get_num_threads(), list(sys.path), list(sys.argv), os.getcwd(),
            list(sys.meta_path),
        )  # fmt: skip

    before = state()
    load(path)
    assert state() == before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"noise ['{path}']" in captured.err


# What factories give ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make(width, *, depth): pass", r"needs arguments \(width, depth\)"),
        ("def make(): pass", "returned nothing, not a torch.nn.Module"),
        (f"def make(): return {CONV}, {{}}", "returned a tuple of 2, not a torch.nn.Module"),
        (f"def make(): return {CONV}.state_dict()", "returned a state dict"),
        (f"def make(): return {{'a': {CONV}}}", "returned a dict"),
        ("def make(): return nn.Conv2d", "returned the class Conv2d"),
        ("def make(): return make", "returned a function"),
        (f"async def make(): return {CONV}", "returned a coroutine"),
        (f"make = {CONV}", "is a network, not a function"),
        ("def make(): raise SystemExit(3)", r"make\(\)' ends the program .*3"),
        ("def make(): assert False", r"make\(\)' fails: AssertionError \(net.py, line 3\)"),
        (f"def make(): return torch.jit.script({CONV})", "TorchScript"),
        (f"def make(): return torch.jit.trace({CONV}, torch.zeros(1, 3, 32, 32))", "TorchScript"),
        (f"def make():\n    with torch.device('meta'):\n        return {CONV}", "weights that are not there"),
        (
            f"def make():\n    x = {CONV}\n    x.register_buffer('f', torch.ones(2) * 1j)\n    return x",
            "complex numbers",
        ),
        ("def make(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(3), nn.Conv2d(3, 3, 3))", "lazy layers.*fails"),
    ],
)
def test_what_is_no_network_to_work_with_is_one_line(write, text, message):
    refused(write(text), message)


LOCKED = """
import threading
class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lock, self.rest = nn.Conv2d(3, 4, 3), threading.Lock(), (i for i in range(3))
    def forward(self, x): return self.conv(x)
"""
NETWORKS = {
    "weight_norm": "def make(): return nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3)))",
    "locked": LOCKED + "def make(): return Locked()",
    "lazy": "def make():\n"
    "    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(4))",
    "half": "def make(): return nn.Sequential(nn.Conv2d(3, 4, 3)).bfloat16()",
    "tied": "def make():\n    x = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))\n"
    "    x[1].weight = x[0].weight\n    return x",
    "parallel": "def make(): return nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 3)))",
    "compiled": "def make(): return torch.compile(nn.Sequential(nn.Conv2d(3, 4, 3)), backend='eager')",
    "numpy": "import numpy, random\ndef make():\n    x = nn.Sequential(nn.Conv2d(3, 4, 3))\n"
    "    x[0].weight.data = torch.from_numpy(numpy.random.randn(4, 3, 3, 3) * random.random())\n    return x",
    "own_train": "class Frozen(nn.Sequential):\n    def train(self, mode=True): super().train(False)\n"
    "def make(): return Frozen(nn.Conv2d(3, 4, 3))",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_all_kinds_are_the_same_on_every_worker(write, name):
    path = write(NETWORKS[name])
    first, second = (load(path, weights=f"random:{seed}") for seed in (0, 1))
    again = load_network(f"{path}:make", "random:0", check_factory=False, preprocess=IMAGES)
    assert first.weights_sha256 == again.weights_sha256 != second.weights_sha256
    assert all(
        value.dtype == torch.float32 for value in first.module.state_dict().values() if value.is_floating_point()
    )
    with torch.no_grad():
        assert first.module(torch.ones(1, 3, 32, 32)).equal(again.module(torch.ones(1, 3, 32, 32)))


def test_one_network_that_is_handed_out_each_time_is_copied_or_refused(write):
    shared = write(f"net = {CONV}\nnet.requires_grad_(False).apply(lambda m: [p.fill_(1) for p in m.parameters()])\n"
                   "def make(): return net")  # fmt: skip
    first, second = (load(shared, weights="pretrained").module for _ in range(2))
    first[0].weight.data.zero_()
    assert second[0].weight.all()
    refused(
        write(LOCKED + "net = Locked()\ndef make(): return net", "locked.py"), "one network each time.*cannot be copied"
    )


def test_a_function_in_a_network_computes_with_the_weights_that_were_loaded(write, tmp_path):
    """A copy's function would go on with the network that it was made with."""
    path = write(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)
                self.steps = [lambda x: self.conv(x)]
            def forward(self, x): return self.steps[0](x)
        def make(): return Net()
        """
    )
    torch.save({"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.ones(4)}, tmp_path / "weights.pth")
    with torch.no_grad():
        assert (load(path, weights=str(tmp_path / "weights.pth")).module(torch.rand(1, 3, 8, 8)) == 1).all()


def test_weights_that_are_drawn_when_the_file_is_imported_are_not_passed_off_as_trained(write):
    path = write(f"net = {CONV}\ndef make(): return net")
    refused(path, "makes other weights each time that its file is imported", weights="pretrained")
    refused(path, "same weights whatever the seed")
    refused(write(f"def make(): return {CONV}", "drawn.py"), "builds other weights each time", weights="pretrained")
    fixed = write(f"def make():\n    torch.manual_seed(3)\n    return {CONV}", "fixed.py")
    assert load(fixed, weights="pretrained").trained


def test_quantised_weights_have_a_hash(write):
    text = """
        def make():
            torch.manual_seed({seed})
            pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            net = nn.Sequential(*pooled, nn.Linear(4, 4), nn.LSTM(4, 5))
            return torch.ao.quantization.quantize_dynamic(net, {{nn.Linear, nn.LSTM}}, dtype=torch.qint8)
    """
    networks = [load(write(text.format(seed=seed), f"quantised{seed}.py"), weights="pretrained") for seed in (0, 1)]
    hashes = [weights_sha256(network.module[3]) for network in networks]
    assert hashes[0] != hashes[1]
    assert weights_sha256(networks[0].module[4]) != weights_sha256(networks[1].module[4])


# On a worker -----------------------------------------------------------------------------


def resolved(path, *layers):
    """What a worker is to compute of a file's network."""
    request = NetworkRequest(f"{path}:make", "random:0", layers, "all", PREPROCESS)
    return TrunkSpec(resolve_network(request).spec, ("max",))


def test_a_file_that_is_another_one_where_it_is_loaded_is_refused(write, tmp_path):
    path = write("import blocks\ndef make(): return blocks.block()", blocks=f"def block(): return {CONV}")
    spec = resolved(path, "0")
    trunk_of(spec, "cpu")
    trunk_of.cache_clear()
    (tmp_path / "blocks.py").write_text((tmp_path / "blocks.py").read_text() + "# the same weights\n")
    with pytest.raises(
        UsageError, match=r"the file of '.*net.py:make', or a file that it imports, is not the run's on"
    ):
        trunk_of(spec, "cpu")
    (tmp_path / "net.py").unlink()
    with pytest.raises(UsageError, match="model file '.*net.py' does not exist on"):
        trunk_of(spec, "cpu")
    other = replace(spec, network=replace(spec.network, model="efficientnet-lite0", model_source_sha256=None))
    with pytest.raises(UsageError, match="the weights of 'efficientnet-lite0' on .* are not the run's"):
        trunk_of(other, "cpu")


def test_a_lazy_network_is_sized_by_the_images_of_the_run(write):
    path = write("def make(): return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))")
    spec = resolved(path, "0", "3")
    crops = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert trunk_of(spec, "cpu")(crops).activations["3", "max"].shape == (2, 5)
    with pytest.raises(UsageError, match="lazy layers.*size of its images is not known"):
        load_network(f"{path}:make", "random:0")
    assert isinstance(load(path).module[3], nn.Linear)
