"""What is pinned is pinned the same everywhere, and cluster.yaml is one that Ray takes."""

import json
import re
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT

from exemplar_ray.cli import _RUN_KEYS

LOCK = dict(line.split("==") for line in (PROJECT / "requirements.lock").read_text().split())
CLUSTER = yaml.safe_load((PROJECT / "cluster.yaml").read_text())


def test_the_lock_is_plain_and_is_what_is_installed():
    for name, version in LOCK.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
        assert metadata.version(name) == version


def test_every_direct_dependency_is_locked():
    project = (PROJECT / "pyproject.toml").read_text()
    names = re.findall(r'^ +"([a-z0-9-]+)(?:\[\w+\])?>=', project, flags=re.M)
    assert len(names) > 15
    locked = {name.lower().replace("_", "-") for name in LOCK}
    assert set(names) <= locked


def test_cluster_yaml_is_valid_by_rays_own_schema():
    import jsonschema
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(CLUSTER, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**CLUSTER, "max_wrokers": 3}, schema)


def test_cluster_yaml_has_a_head_without_a_gpu_and_spot_gpu_workers_of_the_locked_ray():
    head = CLUSTER["available_node_types"][CLUSTER["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    [worker] = [node for node in CLUSTER["available_node_types"].values() if node is not head]
    assert worker["resources"]["GPU"] == 1
    assert worker["min_workers"] == 0 < worker["max_workers"]
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    for image in (CLUSTER["docker"]["head_image"], CLUSTER["docker"]["worker_image"]):
        assert f"ray:{LOCK['ray']}-py311" in image


def test_the_imagenet_job_fits_a_worker_of_the_cluster_and_has_known_keys():
    job = yaml.safe_load((PROJECT / "jobs" / "imagenet.yaml").read_text())
    assert job.keys() <= _RUN_KEYS.keys()
    assert (job["model"], job["layer"], job["channels"]) == ("inceptionv1", "mixed4a", "all")
    worker = CLUSTER["available_node_types"]["gpu-spot"]["resources"]
    assert job["gpus_per_task"] <= worker["GPU"]
    assert job["cpus_per_task"] < worker["CPU"]
