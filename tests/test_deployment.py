"""What is pinned is pinned the same everywhere; cluster.yaml and jobs/kuberay.yaml are taken by those they are for."""

import copy
import functools
import gzip
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import jsonschema
import pytest
import yaml
from conftest import PROJECT, TESTS
from object_store import environment, object_store
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from exemplar_ray.config import RUN_KEYS

RUN_LOCK = dict(line.split("==") for line in (PROJECT / "requirements.lock").read_text().split())
FIRST, *OTHERS = (PROJECT / "requirements-dev.lock").read_text().splitlines()
DEV_LOCK = dict(line.split("==") for line in OTHERS)
LOCK = RUN_LOCK | DEV_LOCK
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
CLUSTER = yaml.safe_load((PROJECT / "cluster.yaml").read_text())
RAY_JOB = yaml.safe_load((PROJECT / "jobs" / "kuberay.yaml").read_text())
DOCKERFILE = (PROJECT / "jobs" / "Dockerfile").read_text()


def test_the_lock_is_plain_and_is_what_is_installed():
    for name, version in LOCK.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
        assert metadata.version(name) == version


def test_every_direct_dependency_is_locked_to_a_version_that_it_allows():
    extras = PYPROJECT["optional-dependencies"]
    wanted = [*PYPROJECT["dependencies"], *itertools.chain.from_iterable(extras.values())]
    assert len(wanted) > 15
    locked = {canonicalize_name(name): version for name, version in LOCK.items()}
    for requirement in map(Requirement, wanted):
        assert locked[requirement.name] in requirement.specifier


def needed_by(wanted):
    """Return the names of some requirements, and of all that these need here."""
    seen, rest = set(), list(map(Requirement, wanted))
    while rest:
        requirement = rest.pop()
        for extra in ("", *requirement.extras):
            if (here := (canonicalize_name(requirement.name), extra)) not in seen:
                seen.add(here)
                needs = map(Requirement, metadata.requires(here[0]) or [])
                rest += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def test_what_a_job_installs_is_what_it_needs_and_what_the_tests_need_is_beside_it():
    assert FIRST == "--requirement requirements.lock"
    assert not RUN_LOCK.keys() & DEV_LOCK.keys()
    # Ray starts AWS's machines with boto3; another one than the locked botocore's would replace that.
    wanted = [*PYPROJECT["dependencies"], *PYPROJECT["optional-dependencies"]["cluster"], "boto3"]
    assert {canonicalize_name(name) for name in RUN_LOCK} == needed_by(wanted)
    of_tests = {Requirement(one).name for one in PYPROJECT["optional-dependencies"]["dev"]}
    # Ray and others need three of these, and torch-lucent says that it needs pytest.
    assert of_tests & needed_by(wanted) == {"jsonschema", "packaging", "psutil", "pytest"}
    for name, text in (("Makefile", "requirements-dev.lock"), ("cluster.yaml", "/requirements.lock")):
        assert re.search(rf"install .*--requirement \S*{text}", (PROJECT / name).read_text())


def test_every_version_pinned_anywhere_is_the_locked_one():
    files = ["cluster.yaml", "jobs/Dockerfile", "jobs/kuberay.yaml", "jobs/imagenet.yaml", "Makefile", ".ci/run"]
    texts = {name: (PROJECT / name).read_text() for name in files}
    versions = {name: re.findall(r"(?<![\d.])\d+\.\d+\.\d+(?![\d.])", text) for name, text in texts.items()}
    # Ray's is the only one that is written out; everything else comes from the lock file.
    assert {version for found in versions.values() for version in found} == {LOCK["ray"]}
    assert {name: len(found) for name, found in versions.items() if found} == {
        "cluster.yaml": 2,
        "jobs/Dockerfile": 3,
        "jobs/kuberay.yaml": 2,
    }
    assert RAY_JOB["spec"]["rayClusterSpec"]["rayVersion"] == LOCK["ray"]
    pythons = re.findall(r"\bpy(?:thon)?3\.?(\d+)\b", "".join(texts.values()))
    assert len(pythons) >= 4
    assert set(pythons) == {str(sys.version_info.minor)}
    assert f"3.{pythons[0]}" in SpecifierSet(PYPROJECT["requires-python"])
    for name in ("cluster.yaml", "jobs/Dockerfile"):
        assert re.search(r"pip install .*--requirement \S*requirements\.lock", texts[name])
        assert re.search(r"pip install .*--no-deps", texts[name])


def packed(folder, tmp_path):
    """Return the names of the files that Ray takes along of a working folder."""
    from ray._private.runtime_env.packaging import create_package

    target = tmp_path / "packed.zip"
    create_package(str(folder), target, include_gitignore=True)
    return {name for name in zipfile.ZipFile(target).namelist() if not name.endswith("/")}


def test_data_and_results_in_the_working_folder_are_not_submitted(tmp_path):
    folder = tmp_path / "clone"
    lies_there = ["data/train-0.parquet", "run/parts/000000.parquet", "run-2/report/index.html", "pages/index.html"]
    lies_there += ["demo/data/a.parquet", "benchmark/stages.png", "mine.parquet", ".venv/lib/torch.py", ".git/HEAD"]
    taken = ["find_exemplars.py", "imagenet.yaml"]
    for name in (*lies_there, *(f"jobs/{name}" for name in taken), "my_network.py", "run.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    shutil.copy(PROJECT / ".rayignore", folder)
    assert packed(folder, tmp_path) == {*(f"jobs/{name}" for name in taken), "my_network.py", "run.yaml", ".rayignore"}


def test_of_this_project_a_job_takes_what_it_runs(tmp_path):
    names = packed(PROJECT, tmp_path)
    assert {"jobs/find_exemplars.py", "jobs/imagenet.yaml", "exemplar_ray/data/shards.py", "README.md"} <= names
    assert not {name.split("/")[0] for name in names} & {"tests", "docs", ".git", ".venv", "demo"}
    assert (tmp_path / "packed.zip").stat().st_size < 10e6


def rays_validation(config):
    """What `ray up` does with a cluster configuration before it asks AWS for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_cluster_yaml_passes_rays_own_validation():
    rays_validation(CLUSTER)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["max_wrokers"], 3),
        (["docker", "worker_imgae"], "rayproject/ray"),
        (["max_workers"], "16"),
        (["available_node_types", "gpu-spot", "resources", "GPU"], 0.5),
        (["available_node_types", "head", "node_config"], None),
        (["head_node_type"], "haed"),
        (["available_node_types", "gpu-spot", "min_workers"], 99),
    ],
)
def test_rays_validation_refuses_mistakes(path, value):
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        rays_validation(with_value(CLUSTER, path, value))


def with_value(tree, path, value):
    """Return a copy with one more value, or another one; `None` takes it out."""
    tree = copy.deepcopy(tree)
    inner = tree
    for step in path[:-1]:
        inner = inner[step]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return tree


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """An AWS account on a server of our own; the head's role as Ray makes it, the workers' as the docs do."""
    import boto3
    from ray.autoscaler._private.aws import config, utils

    # They know the server of another test.
    for remembered in (utils.resource_cache, utils.client_cache, config._get_subnets_or_die):
        remembered.cache_clear()
    with object_store() as url:
        for name, value in environment(url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes an SSH key there.
        iam = boto3.client("iam")
        # Ray makes its own where it is missing, and waits half a minute for it.
        for name in ("ray-autoscaler-v1", "exemplar-ray-worker"):
            iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
            iam.create_instance_profile(InstanceProfileName=name)
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        yield boto3.client("ec2")


def test_aws_takes_the_machines_of_cluster_yaml(aws):
    from botocore.exceptions import ParamValidationError
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = bootstrap_aws(rays_validation(CLUSTER))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    nodes = {name: node["node_config"] for name, node in config["available_node_types"].items()}
    machines = {}
    for name, node in nodes.items():
        [machine] = provider.create_node(node, {}, 1)
        [[machine]] = [r["Instances"] for r in aws.describe_instances(InstanceIds=[machine])["Reservations"]]
        machines[name] = machine
    assert machines["head"]["InstanceType"] == "m6i.large"
    assert "InstanceLifecycle" not in machines["head"]
    for name, kind in (("gpu-spot", "g5.2xlarge"), ("cpu-spot", "m6i.xlarge")):
        assert machines[name]["InstanceType"] == kind
        assert machines[name]["InstanceLifecycle"] == "spot"
        assert machines[name]["IamInstanceProfile"]["Arn"].endswith("/exemplar-ray-worker")
    # What Ray gives the head only, and why the workers need one of their own.
    assert config["head_node"]["IamInstanceProfile"]["Arn"].endswith("/ray-autoscaler-v1")
    with pytest.raises(ParamValidationError):
        provider.create_node({**nodes["gpu-spot"], "InstanceMarketOption": {}}, {}, 1)


def test_whoever_makes_the_security_group_before_decides_who_may_come(aws):
    """As docs/cluster/aws.md does it; Ray's own lets everybody at the SSH port, and nobody at another."""
    from ray.autoscaler._private.aws.config import bootstrap_aws

    def open_to():
        bootstrap_aws(rays_validation(CLUSTER))
        filters = [{"Name": "group-name", "Values": [name]}]
        [found] = aws.describe_security_groups(Filters=filters)["SecurityGroups"]
        rules = found["IpPermissions"]
        return {(rule.get("FromPort"), one["CidrIp"]) for rule in rules for one in rule["IpRanges"]}, found["GroupId"]

    name = CLUSTER["provider"]["security_group"]["GroupName"]
    opened, group = open_to()
    assert opened == {(22, "0.0.0.0/0")}
    aws.delete_security_group(GroupId=group)
    lines = (PROJECT / "docs" / "cluster" / "aws.md").read_text().splitlines()
    [opening] = [shlex.split(line) for line in lines if "authorize-security-group-ingress" in line]
    permissions = json.loads(opening[opening.index("--ip-permissions") + 1].replace("YOUR.ADDRESS", "203.0.113.7"))
    aws.create_security_group(GroupName=name, Description="exemplar-ray's machines")
    aws.authorize_security_group_ingress(
        GroupName=opening[opening.index("--group-name") + 1], IpPermissions=permissions
    )
    assert open_to()[0] == {(22, "203.0.113.7/32")}


def test_who_has_no_token_runs_nothing_on_either_cluster():
    from ray.autoscaler._private.util import prepare_config

    options = dict(re.findall(r"--env (\w+)=(\S+)", " ".join(CLUSTER["docker"]["run_options"])))
    assert options["RAY_AUTH_MODE"] == "token"
    mounted = prepare_config(copy.deepcopy(CLUSTER))["file_mounts"]
    for name in ("RAY_AUTH_TOKEN_PATH", "HF_TOKEN_PATH"):
        assert str(Path(options[name]).parent) in mounted
    # Not in the folder that goes along with jobs.
    assert CLUSTER["file_mounts"]["/home/ray/secrets"].startswith("~/")
    assert RAY_JOB["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for path in (PROJECT / "jobs" / "kuberay.yaml", PROJECT / "cluster.yaml", PROJECT / "jobs" / "imagenet.yaml"):
        assert not re.search("runtime-env|runtimeEnvYAML: |env_vars", path.read_text())


def closed(schema):
    """Refuse unknown fields wherever fields are named, as the API server does when it is strict."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(inner) for key, inner in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    return schema


@pytest.fixture(scope="module")
def kuberay():
    """KubeRay's own schema of a RayJob, closed."""
    schema = closed(json.loads(gzip.decompress((TESTS / "kuberay" / "rayjobs-v1.json.gz").read_bytes())))
    return jsonschema.Draft202012Validator(schema)


def test_the_ray_job_passes_kuberays_schema(kuberay):
    assert (RAY_JOB["apiVersion"], RAY_JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert [error.message for error in kuberay.iter_errors(RAY_JOB)] == []


WORKERS = ["spec", "rayClusterSpec", "workerGroupSpecs", 0]
WORKER = [*WORKERS, "template", "spec", "containers", 0]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "backOffLimit"], 2),
        (["spec", "backoffLimit"], "2"),
        (["spec", "submissionMode"], 1),
        (["spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"], 0),
        ([*WORKERS, "minReplica"], 0),
        ([*WORKERS, "maxReplicas"], "sixteen"),
        ([*WORKERS, "groupName"], None),
        ([*WORKER, "resource"], {}),
        ([*WORKER, "resources", "limits", "memory"], "24 GB"),
        ([*WORKER, "volumeMounts", 0, "mountPaht"], "/dev/shm"),
        ([*WORKER, "envFrom", 0, "secretRef"], "exemplar-ray"),
        ([*WORKERS, "template", "spec", "containers"], None),
    ],
)
def test_the_schema_refuses_mistakes(kuberay, path, value):
    assert not kuberay.is_valid(with_value(RAY_JOB, path, value))


def test_the_ray_job_runs_our_script_on_gpu_workers_that_fit_it():
    spec = RAY_JOB["spec"]
    python, script, config_flag, config, out_flag, out = spec["entrypoint"].split()
    assert (python, config_flag, out_flag, out[:5]) == ("python", "--config", "--out", "s3://")
    [folder] = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, flags=re.M)
    for path in (script, config):
        assert (PROJECT / Path(path).relative_to(folder)).is_file()
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]
    cluster = spec["rayClusterSpec"]
    group, without_gpu = cluster["workerGroupSpecs"]
    assert (cluster["enableInTreeAutoscaling"], group["minReplicas"], without_gpu["minReplicas"]) == (True, 0, 0)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    pods = [node["template"]["spec"] for node in (cluster["headGroupSpec"], group, without_gpu)]
    [head], [worker], [other] = (pod["containers"] for pod in pods)
    assert head["image"] == worker["image"] == other["image"]
    assert head["envFrom"] == worker["envFrom"] == other["envFrom"] == [{"secretRef": {"name": "exemplar-ray"}}]
    assert {pod["serviceAccountName"] for pod in pods} == {"exemplar-ray"}
    assert "nvidia.com/gpu" not in {**head["resources"]["limits"], **other["resources"]["limits"]}
    job = yaml.safe_load((PROJECT / "jobs" / "imagenet.yaml").read_text())
    assert job["gpus_per_task"] <= worker["resources"]["limits"]["nvidia.com/gpu"]
    assert job["cpus_per_task"] < int(group["rayStartParams"]["num-cpus"])
    assert f"--tag {head['image']} ." in DOCKERFILE


def test_what_the_dockerfile_copies_is_enough_to_install(tmp_path):
    """Its COPY lines done by hand, then its last RUN line, of which the wheel is looked at instead of installed."""
    image = tmp_path / "image"
    image.mkdir()
    for line in re.findall(r"^COPY --chown=ray (.+)$", DOCKERFILE, flags=re.M):
        *sources, target = line.split()
        for source in (PROJECT / name for name in sources):
            if source.is_dir():
                shutil.copytree(source, image / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, image / target)
    [options] = re.findall(r"^RUN pip install --no-cache-dir (.+) \.$", DOCKERFILE, flags=re.M)
    command = [sys.executable, "-m", "pip", "wheel", *options.split(), "--wheel-dir", tmp_path, "."]
    built = subprocess.run(command, cwd=image, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = tmp_path.glob("exemplar_ray-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    assert packed == {str(path.relative_to(PROJECT)) for path in (PROJECT / "exemplar_ray").rglob("*.py")}
    for name in ("find_exemplars.py", "imagenet.yaml"):
        assert (image / "jobs" / name).is_file()


def test_cluster_yaml_has_a_head_without_a_gpu_and_spot_workers():
    head, gpu, cpu = (CLUSTER["available_node_types"][name] for name in ("head", "gpu-spot", "cpu-spot"))
    assert CLUSTER["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert (gpu["resources"]["GPU"], "GPU" in cpu["resources"]) == (1, False)
    for worker in (gpu, cpu):
        assert worker["min_workers"] == 0 < worker["max_workers"]
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert CLUSTER["max_workers"] == gpu["max_workers"] + cpu["max_workers"]


def test_ray_starts_gpu_machines_for_the_scan_and_others_for_what_needs_none():
    """Ray's own choice of machines."""
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

    job = yaml.safe_load((PROJECT / "jobs" / "imagenet.yaml").read_text())
    scorer = functools.partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))

    def chosen(demand, tasks):
        kinds = CLUSTER["available_node_types"]
        return get_nodes_for(kinds, {"head": 1}, "head", 20, [demand] * tasks, scorer)[0]

    scan = {"CPU": job["cpus_per_task"], "GPU": job["gpus_per_task"]}
    assert chosen(scan, 5) == {"gpu-spot": 5}
    assert chosen({"CPU": 1}, 12) == {"cpu-spot": 3}


def test_the_imagenet_job_fits_a_worker_of_the_cluster_and_has_known_keys():
    job = yaml.safe_load((PROJECT / "jobs" / "imagenet.yaml").read_text())
    assert job.keys() <= RUN_KEYS.keys()
    assert (job["model"], job["layer"], job["channels"]) == ("inceptionv1", "mixed4a", "all")
    worker = CLUSTER["available_node_types"]["gpu-spot"]["resources"]
    assert job["gpus_per_task"] <= worker["GPU"]
    assert job["cpus_per_task"] < worker["CPU"]
