"""The compiled trunk: the same numbers, made once a machine, and never in place of what it cannot do."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY_FLAGS, TINY_NETWORK

from exemplar_ray.exemplars.resolve import resolve
from exemplar_ray.exemplars.spec import RunSpec
from exemplar_ray.exemplars.to_resolve import ToResolve
from exemplar_ray.network import compiled_trunk as compiled
from exemplar_ray.network import machine_cache
from exemplar_ray.network.compiled_trunk import CannotCompileError, CompiledForm, CompiledTrunk, compiled_trunk
from exemplar_ray.network.loading import scanning_trunk, trunk_of
from exemplar_ray.network.trunk import Pooled

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")

PREPROCESS = {"resize": 36, "crop": 32, "mean": [117, 117, 117]}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EXEMPLAR_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def resolved(factory="trained", **changes):
    changes = {"layer": ("conv1", "mixed", "mixed_pre_relu", "classifier"), "statistic": ("max", "mean"), **changes}
    spec = RunSpec(model=TINY_NETWORK.replace(":trained", f":{factory}"), preprocess=PREPROCESS, **changes)
    return resolve(ToResolve(spec)).spec


def form_of(spec, batch_size=4, threads=1):
    return CompiledForm(spec.scan_trunk, batch_size, threads)


def built(spec):
    """Return what builds the scan's trunk, or, for another spec, that one's."""
    return lambda of=spec.scan_trunk: trunk_of(of, "cpu")


def crops(count=4):
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, values in theirs.items():
            np.testing.assert_allclose(ours[key], values, rtol=1e-4, atol=1e-5)


def must_not_build(spec):
    raise AssertionError("the cache has it")


def test_compiled_activations_are_the_networks_and_come_from_the_cache_the_second_time(cache):
    spec = resolved()
    first, new = compiled_trunk(form_of(spec), built(spec))
    again, new_again = compiled_trunk(form_of(spec), must_not_build)
    assert (new, new_again) == (True, False)
    expected = built(spec)()(crops())
    for trunk in (first, again):
        assert_same(trunk(crops()), expected)
    assert [path.suffix for path in sorted(cache.iterdir()) if path.suffix != ".lock"] == [".so"]


def test_a_small_run_takes_what_was_compiled_and_waits_for_no_compiler(cache):
    form = form_of(resolved())
    kept = scanning_trunk.__wrapped__
    assert not isinstance(kept(form, "cpu", "made").trunk, CompiledTrunk)
    assert not list(cache.glob("*.so"))
    assert isinstance(kept(form, "cpu", "auto").trunk, CompiledTrunk)
    assert isinstance(kept(form, "cpu", "made").trunk, CompiledTrunk)
    assert not isinstance(kept(form, "cpu", "never").trunk, CompiledTrunk)


def test_whatever_changes_the_numbers_or_the_machine_code_is_compiled_anew(cache, monkeypatch):
    spec = resolved(layer=("conv1",))
    forms = (form_of(spec), form_of(spec, batch_size=5), form_of(spec, threads=2))
    names = {compiled._key(form) for form in forms}
    others = [
        resolved("trained_otherwise", layer=("conv1",)),
        resolved(layer=("mixed",)),
        resolved(layer=("conv1",), channels="0-3"),
        resolved(layer=("conv1",), statistic=("max",)),
        resolved(layer=("conv1",), precision="bfloat16"),
    ]
    names |= {compiled._key(form_of(other)) for other in others}
    monkeypatch.setattr(compiled, "_processor", lambda: "another")
    assert len(names | {compiled._key(form_of(spec))}) == 9
    # K is none of it.
    assert compiled._key(form_of(resolved(layer=("conv1",), top_k=3))) == compiled._key(form_of(spec))


def test_a_library_is_named_by_the_code_that_it_was_made_of(monkeypatch, tmp_path):
    """This package's, with its constants; that of the registries' libraries; a user's file with all that it imports."""
    spec = resolved(layer=("conv1",))
    registered = replace(spec, network=replace(spec.network, model="inceptionv1", model_source_sha256=None))
    names = {compiled._key(form_of(spec)), compiled._key(form_of(registered))}

    folder = tmp_path / "network"
    shutil.copytree(Path(machine_cache.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(machine_cache, "__file__", str(folder / "machine_cache.py"))
    assert compiled._key(form_of(spec)) in names
    for file in ("models.py", "torchvision_models.py", "preparation.py", "weights.py"):
        (folder / file).write_text((folder / file).read_text() + "# changed\n")
        names.add(compiled._key(form_of(spec)))
    changed = tmp_path / "preprocess.py"
    changed.write_text("# changed\n")
    monkeypatch.setattr(machine_cache.preprocess, "__file__", str(changed))
    names.add(compiled._key(form_of(spec)))
    assert len(names) == 7

    version = machine_cache.metadata.version
    for library in ("torch-lucent", "torchvision", "efficientnet-lite-pytorch"):
        monkeypatch.setattr(
            machine_cache.metadata, "version", lambda name, of=library: "9" if name == of else version(name)
        )
        names.add(compiled._key(form_of(registered)))
    (tmp_path / "site-packages" / "timm-9.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    names.add(compiled._key(form_of(spec)))
    assert len(names) == 11
    names.add(compiled._key(form_of(replace(spec, network=replace(spec.network, model_source_sha256="0" * 64)))))
    assert len(names) == 12


def test_a_network_that_looks_before_it_computes_is_not_compiled(cache):
    spec = resolved("deciding", layer=("conv1", "classifier"))
    with pytest.raises(CannotCompileError):
        compiled_trunk(form_of(spec), built(spec))
    assert list(cache.glob("*.so")) == []


def test_what_is_not_the_networks_is_thrown_away(cache, monkeypatch):
    spec = resolved(layer=("conv1",))
    monkeypatch.setitem(compiled._TOLERANCE, "float32", -1.0)
    with pytest.raises(CannotCompileError, match="the compiled max of conv1 is not the network's"):
        compiled_trunk(form_of(spec), built(spec))
    assert list(cache.glob("*.so")) == []


def test_machine_code_that_takes_far_longer_is_thrown_away(cache, monkeypatch):
    spec = resolved(layer=("conv1",))
    monkeypatch.setattr(compiled, "_TIMES_AS_LONG", 0.0)
    with pytest.raises(CannotCompileError, match="as machine code it takes .* times as long"):
        compiled_trunk(form_of(spec), built(spec))
    assert list(cache.glob("*.so")) == []


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_compiled_network_of_a_narrow_type_is_nearer_to_the_exact_one(cache, precision):
    """Than the network in that type, as its weights are rounded together."""
    spec = resolved("normalised", layer=("second",), precision=precision, statistic=("mean",))
    trunk = compiled_trunk(form_of(spec), built(spec))[0]
    plain, exact = built(spec)(), built(spec)(replace(spec.scan_trunk, precision="float32"))
    weights = {name: one.clone() for name, one in plain.tensors.items()}
    key = ("second", "mean")
    errors = [
        (one(crops()).activations[key] - exact(crops()).activations[key]).square().mean() for one in (trunk, plain)
    ]
    assert errors[0] < 0.5 * errors[1]
    # The network that was compiled has kept its own.
    assert all(torch.equal(one, weights[name]) for name, one in plain.tensors.items())


def test_activations_that_are_no_numbers_are_no_sign_that_it_is_the_network():
    key, numbers, nothing = ("conv1", "max"), torch.ones(4, 8), torch.full((4, 8), torch.nan)
    # Before a ReLU that is not there, they are.
    compiled._refuse_another_network(
        Pooled({key: numbers}, {key: nothing}), Pooled({key: numbers}, {key: nothing}), "float32"
    )
    for found, expected in ((nothing, nothing), (nothing, numbers), (numbers, nothing)):
        with pytest.raises(CannotCompileError, match="the compiled max of conv1 is not the network's"):
            compiled._refuse_another_network(Pooled({key: found}, {}), Pooled({key: expected}, {}), "float32")


def test_what_screens_with_the_same_numbers_has_a_library_of_its_own(cache):
    """Fast pixels go through the same network in float32, but more is asked of it."""
    for spec in (resolved(), resolved(decode="fast")):
        trunk, new = compiled_trunk(form_of(spec), built(spec))
        expected = built(spec)()(crops())
        assert new
        assert bool(expected.pre_relu) == spec.screened
        assert_same(trunk(crops()), expected)


def records(run):
    return [json.loads(path.read_text()) for path in sorted((run / "parts").glob("*.json"))]


def test_a_run_compiles_once_loads_once_a_worker_and_gives_the_same(tiny_data, tmp_path, cache, cli, ray_cluster):
    """On a Ray of its own, whose workers know the cache and have served no other run."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    flags = ["--data", tiny_data, *TINY_FLAGS, "--batch-size", "4"]
    command = [sys.executable, "-m", "exemplar_ray", "run", *flags, "--out", tmp_path / "always", "--compile", "always"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {(record["compiled"], record["worker"]["trunks_loaded"]) for record in records(tmp_path / "always")} == {
        (True, 1)
    }
    by_worker = {r["worker"]["process"]: r["worker"]["trunks_compiled"] for r in records(tmp_path / "always")}
    assert sum(by_worker.values()) == 1

    status, text = cli("run", *flags, "--out", tmp_path / "never", "--compile", "never")
    assert status == 0, text
    loaded = {
        (record["worker"]["process"], record["worker"]["trunks_loaded"]) for record in records(tmp_path / "never")
    }
    assert len(loaded) == len({process for process, _ in loaded})
    assert {record["compiled"] for record in records(tmp_path / "never")} == {False}
    compiled_exemplars, plain = (pq.read_table(tmp_path / way / "exemplars.parquet") for way in ("always", "never"))
    assert compiled_exemplars.to_pylist() == plain.to_pylist()


def test_what_cannot_be_compiled_is_run_as_it_is_or_refused(cli, tiny_data, tmp_path, cache, monkeypatch):
    flags = ["--model", TINY_NETWORK.replace(":trained", ":deciding"), "--layer", "classifier", *TINY_FLAGS[4:]]
    monkeypatch.setattr("exemplar_ray.executor.resources._IMAGES_WORTH_COMPILING", 0)
    status, text = cli("run", "--data", tiny_data, "--out", tmp_path / "auto", *flags)
    assert status == 0, text
    assert "the network was not compiled, which takes longer: " in text
    status, text = cli("run", "--data", tiny_data, "--out", tmp_path / "always", *flags, "--compile", "always")
    assert (status, text.strip().count("\n") <= 8) == (2, True), text
    assert "cannot be compiled on" in text
    assert "run with --compile never" in text
