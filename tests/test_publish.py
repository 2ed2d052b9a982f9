"""A run as a data set on the Hub: what is in the folder, what must not be, the card, and one commit over HTTP."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys

import huggingface_hub
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import TINY_FLAGS, TINY_NETWORK, python_without, write_tiny_data
from hub_server import UNAVAILABLE, Fault, Repository, hub_server
from huggingface_hub import DatasetCard, DatasetCardData

from exemplar_ray import open_run
from exemplar_ray.cli import main
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.network.models import load_network
from exemplar_ray.report.dataset_folder import FOLDERS, TABLES, VISUALIZATIONS, public_uri, subset_of
from exemplar_ray.runs.manifest import RUN
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder

TOKEN, STRANGER = "hf_user", "hf_stranger"
# https://huggingface.co/docs/hub/repositories-licenses, and the sizes of its datasetcard.md
_DOCUMENTED_LICENCES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
    ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0
    isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
    pddl lgpl-lr deepfloyd-if-license llama2 gemma unknown other
"""
LICENCES = set(_DOCUMENTED_LICENCES.split())
SIZES = {"n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1T"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster):
    """All kinds of tables; model, weights and data by paths of this machine."""
    folder = tmp_path_factory.mktemp("at-home-with-me")
    write_tiny_data(folder / "data")
    shutil.copy(TINY_NETWORK.split(":")[0], folder / "net.py")
    torch.save(load_network(TINY_NETWORK, "pretrained").module.state_dict(), folder / "tiny.pth")
    flags = [*TINY_FLAGS, "--sample", "bottom", "--class-top-k", "1", "--weights", str(folder / "tiny.pth")]
    flags[1] = f"{folder / 'net.py'}:trained"
    assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *flags]) == 0
    made = ["--channels", "0-2", "--negative", "--size", "32", "--steps", "2"]
    assert main(["visualize", str(folder / "run"), *made]) == 0
    assert main(["circuits", str(folder / "run"), "--top", "2", "--removed", "1"]) == 0
    assert main(["report", str(folder / "run")]) == 0
    (folder / "run" / "failed").mkdir(exist_ok=True)
    (folder / "run" / "failed" / "000009.json").write_text("{}")
    return folder / "run"


@pytest.fixture(scope="module")
def dry(run, tmp_path_factory):
    """What would be uploaded."""
    folder = tmp_path_factory.mktemp("dry") / "folder"
    assert main(["publish", str(run), "user/name", "--dry-run", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def without_images(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers") / "folder"
    assert main(["publish", str(run), "user/name", "--dry-run", str(folder), "--without-images"]) == 0
    return folder


def contents(folder):
    """{path: bytes} of all files, parquet ones as all that they hold."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                content += repr(table.schema.metadata).encode() + repr(table.to_pylist()).encode()
            found[path.relative_to(folder).as_posix()] = content
    return found


def card_of(folder):
    return (folder / "README.md").read_text()


def edited(run, folder, name, change):
    """A copy of the run with a JSON file changed."""
    shutil.copytree(run, folder)
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    return folder


# The folder -------------------------------------------------------------------------------


def test_it_holds_result_pages_and_card_and_nothing_else(run, dry):
    names = {path.relative_to(dry).as_posix() for path in dry.rglob("*") if path.is_file()}
    pages = {f"report/{path.relative_to(run / 'report').as_posix()}" for path in (run / "report").rglob("*.*")}
    beside = {f"{folder}/{name}" for folder in FOLDERS for name in (RUN, SUMMARY)}
    assert names == pages | set(TABLES) | {"README.md", RUN, SUMMARY} | beside
    for name in TABLES:
        assert (dry / name).read_bytes() == (run / name).read_bytes()


def test_it_is_a_run_that_can_be_read(run, dry):
    there, here = open_run(str(dry)), open_run(str(run))
    assert there.table().equals(here.table())
    assert there.plan.fingerprint == here.plan.fingerprint
    for one, other in zip(there.exemplars(channel=3), here.exemplars(channel=3), strict=True):
        assert one.image.tobytes() == other.image.tobytes()
    assert there.channel("mixed", 2).visualizations == here.channel("mixed", 2).visualizations != []
    assert there.channel("mixed", 2).circuit == here.channel("mixed", 2).circuit is not None


def test_it_says_nothing_of_this_machine(run, dry):
    home = str(run.parent).encode()
    assert home in (run / RUN).read_bytes()
    assert home in (run / "report" / "index.html").read_bytes()
    assert all(home in (run / beside / RUN).read_bytes() for beside in FOLDERS)
    hosts = {shard["host"] for shard in json.loads((run / SUMMARY).read_text())["shards"]}
    assert hosts
    for name, content in contents(dry).items():
        assert home not in content, name
        assert str(dry).encode() not in content, name
    assert "host" not in (dry / SUMMARY).read_text()
    plan = Plan.read(RunFolder(str(dry)))
    assert plan.spec.network.model == "net.py:trained"
    assert plan.spec.network.weights == "tiny.pth"
    assert [shard.uri for shard in plan.shards] == [shard.name for shard in plan.shards]


def test_what_opens_a_storage_is_not_published(run, tmp_path):
    secrets = ["AKIAKEY", "s3cr/et+x", "TOKENVALUE", "SIGNATURE", "passw0rd"]
    uris = [
        "s3://AKIAKEY:s3cr/et+x@bucket/a/train-00000.parquet",
        "https://me:passw0rd@example.org/b/train-00001.parquet?token=TOKENVALUE",
        "https://example.org/c/train-00002.parquet?X-Signature=SIGNATURE#TOKENVALUE",
        "simplecache::s3://AKIAKEY:passw0rd@bucket/train-00003.parquet",
    ]

    def change(plan):
        for shard, uri in zip(plan["shards"], uris, strict=False):
            shard["uri"] = uri
        plan["spec"]["weights"] = "https://example.org/weights/net.pth?token=TOKENVALUE"
        plan["spec"]["weights_title"] = "weights net.pth?token=TOKENVALUE"

    hostile = edited(run, tmp_path / "run", RUN, change)
    summary = json.loads((hostile / SUMMARY).read_text())
    (hostile / SUMMARY).write_text(json.dumps({**summary, "weights": "weights net.pth?token=TOKENVALUE"}))
    assert main(["publish", str(hostile), "user/name", "--dry-run", str(tmp_path / "dry")]) == 0
    for name, content in contents(tmp_path / "dry").items():
        for secret in secrets:
            assert secret.encode() not in content, (name, secret)
    shards = Plan.read(RunFolder(str(tmp_path / "dry"))).shards
    assert [shard.uri for shard in shards[:4]] == [
        "s3://bucket/a/train-00000.parquet",
        "https://example.org/b/train-00001.parquet",
        "https://example.org/c/train-00002.parquet",
        shards[3].name,
    ]


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("hf://datasets/user/name@0123abc/data/a.parquet", "hf://datasets/user/name@0123abc/data/a.parquet"),
        ("s3://bucket/a@b/c.parquet", "s3://bucket/a@b/c.parquet"),
        ("http://localhost:9000/a.parquet", "http://localhost:9000/a.parquet"),
        ("sftp://me:pa@ss:w/ord@host:22/a.parquet", "sftp://host:22/a.parquet"),
        ("file:///home/me/a.parquet", "a.parquet"),
        ("local:///home/me/a.parquet", "a.parquet"),
        ("zip://a.parquet::/home/me/a.zip", "a.zip"),
        ("/home/me/a.parquet", "a.parquet"),
    ],
)
def test_of_a_uri_stays_what_others_may_see(uri, public):
    assert public_uri(uri) == public


def test_without_images_no_file_holds_one(run, dry, without_images):
    """Neither as bytes, nor as text, nor as a picture made from it."""
    images = [row["image"]["bytes"] for row in pq.read_table(run / "exemplars.parquet").to_pylist() if row["image"]]
    images += [row["image"]["bytes"] for row in pq.read_table(run / "images.parquet").to_pylist()]
    assert len(images) > 36
    tells = {image[:200] for image in images} | {base64.b64encode(image)[:200] for image in images}
    magic = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"iVBORw0KGgo", b"data:image/")

    def with_pictures(folder):
        # Kernels are drawn, too; they are the network's.
        of_images = {name: re.sub(rb'<img class="kernel"[^>]*>', b"", held) for name, held in contents(folder).items()}
        return {name for name, held in of_images.items() if any(tell in held for tell in (*tells, *magic))}

    assert {"exemplars.parquet", "images.parquet", VISUALIZATIONS} < with_pictures(dry)
    assert with_pictures(without_images) == set()
    assert not {"images.parquet"} & set(contents(without_images))


def test_without_images_everything_else_is_there(run, without_images):
    here = pq.read_table(run / "exemplars.parquet")
    there = pq.read_table(without_images / "exemplars.parquet")
    assert there.schema.equals(here.schema, check_metadata=True)
    assert there["image"].null_count == len(there) == len(here)
    assert there.drop_columns(["image"]).equals(here.drop_columns(["image"]))
    here, there = (pq.read_table(folder / VISUALIZATIONS) for folder in (run, without_images))
    assert there.schema.equals(here.schema, check_metadata=True)
    assert there.drop_columns(["image"]).equals(here.drop_columns(["image"]))
    [first, *_] = open_run(str(without_images)).exemplars(channel=3, sample="bottom")
    with pytest.raises(UsageError, match="published without its images"):
        _ = first.image
    channel = open_run(str(without_images)).channel("mixed", 2)
    with pytest.raises(UsageError, match="published without its images"):
        _ = channel.visualizations[0].picture
    assert "feature visualisation" not in channel._repr_html_()
    assert "channel-" in channel._repr_html_()
    assert "**Without images.**" in card_of(without_images)
    page = (without_images / "report" / "mixed" / "3.html").read_text()
    assert first["image_path"] in page
    assert "data-view" not in page  # nothing to switch
    assert "images" not in {config["config_name"] for config in DatasetCard(card_of(without_images)).data.configs}


def test_a_published_run_without_images_can_be_reported_but_not_drawn(without_images, tmp_path, cli):
    assert cli("report", without_images, "--out", tmp_path / "pages")[0] == 0
    assert (tmp_path / "pages" / "mixed" / "3.html").exists()
    status, text = cli("report", without_images, "--figure", "mixed:0", "--out", tmp_path / "figure.png")
    assert (status, "published without them" in text) == (2, True)


@pytest.mark.parametrize(("beside", "word"), [("visualizations", "visualisation"), ("circuits", "circuit")])
def test_what_is_of_another_result_stays_at_home(beside, word, run, tmp_path):
    stale = edited(run, tmp_path / "run", f"{beside}/{SUMMARY}", lambda summary: summary.update(of_run="0" * 64))
    assert main(["publish", str(stale), "user/name", "--dry-run", str(tmp_path / "dry")]) == 0
    assert not (tmp_path / "dry" / beside).exists()
    configs = {config["config_name"] for config in DatasetCard(card_of(tmp_path / "dry")).data.configs}
    assert configs == {subset_of(name) for name in TABLES if not name.startswith(f"{beside}/")}
    assert word not in card_of(tmp_path / "dry")


def test_equal_runs_give_equal_folders(run, dry, tmp_path):
    assert main(["publish", str(run), "user/name", "--dry-run", str(tmp_path / "again")]) == 0
    assert contents(dry) == contents(tmp_path / "again")


# The card ---------------------------------------------------------------------------------


def test_the_cards_head_is_what_the_hub_documents(dry):
    card = DatasetCard(card_of(dry), ignore_metadata_errors=False)
    head = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card_of(dry), re.DOTALL)[1])
    assert head == DatasetCardData(**head).to_dict() == card.data.to_dict()
    assert head["license"] in LICENCES
    assert re.fullmatch(r"[a-z0-9.-]+", head["license_name"])
    assert set(head["size_categories"]) <= SIZES
    assert head["size_categories"] == ["n<1K"]
    assert "task_categories" not in head
    assert all(isinstance(tag, str) for tag in head["tags"])
    assert [config["config_name"] for config in head["configs"]] == [subset_of(name) for name in TABLES]
    assert [config["config_name"] for config in head["configs"] if config.get("default")] == ["exemplars"]
    for config in head["configs"]:
        [file] = config["data_files"]
        assert file["split"] == "train"
        assert (dry / file["path"]).is_file()


def test_a_licence_is_named_where_one_is_given(run, tmp_path):
    flags = ["--dry-run", str(tmp_path / "dry"), "--licence", "cc-by-4.0"]
    assert main(["publish", str(run), "user/name", *flags]) == 0
    head = DatasetCard(card_of(tmp_path / "dry")).data.to_dict()
    assert head["license"] == "cc-by-4.0"
    assert "license_name" not in head
    assert "Published under `cc-by-4.0`" in card_of(tmp_path / "dry")


def test_the_card_says_how_it_was_made_and_how_to_load_it(run, dry):
    text = card_of(dry)
    network = Plan.read(RunFolder(str(run))).spec.network
    for part in (network.weights_sha256, "net.py:trained", "80 images searched in 8 shards", "every top 3 is settled"):
        assert part in text
    assert "exemplar-ray run --data 'train-0000*-of-00008.parquet' --out RUN --model net.py:trained" in text
    assert 'datasets.load_dataset("user/name", "exemplars", split="train")' in text
    assert 'open_run("hf://datasets/user/name")' in text
    assert "Not stated." in text
    assert "UNTRAINED" not in text
    assert "PARTIAL" not in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (dry / link).is_file()


def test_the_card_warns_and_its_words_stay_words(run, tmp_path):
    def change(plan):
        plan["spec"].update(trained=False, model_title="a`b` <script>\n# head\n---", model_source_sha256="0" * 64)

    hostile = edited(run, tmp_path / "run", RUN, change)
    summary = json.loads((hostile / SUMMARY).read_text())
    doubt = {"layer": "mixed", "statistic": "mean", "channel": 2, "sample": "top"}
    summary |= {"partial": "7 of 8 shards", "unsettled": [doubt]}
    summary["fingerprint"] = Plan.read(RunFolder(str(hostile))).fingerprint
    (hostile / SUMMARY).write_text(json.dumps(summary))
    assert main(["publish", str(hostile), "user/name", "--dry-run", str(tmp_path / "dry")]) == 0
    text = card_of(tmp_path / "dry")
    head, body = text.split("\n---\n", 1)
    assert yaml.safe_load(head)["pretty_name"] == "Exemplars of a`b` <script>\n# head\n---: mixed"
    assert body.startswith("\n# Exemplars of `` a`b` <script> # head --- ``\n")
    for warning in ("UNTRAINED NETWORK", "PARTIAL RESULT: only 7 of 8 shards", "NOT SETTLED: mixed:2"):
        assert warning in body
    assert len(re.findall(r"^# ", body, re.MULTILINE)) == 1
    assert "<script>" not in re.sub(r"`` .*? ``", "", body)


def test_datasets_loads_every_subset(dry, without_images, tmp_path):
    program = (
        "import sys, datasets\n"
        "from huggingface_hub import DatasetCard\n"
        "for folder in sys.argv[1:]:\n"
        "    for config in DatasetCard.load(folder + '/README.md').data.configs:\n"
        "        table = datasets.load_dataset(folder, config['config_name'], split='train')\n"
        "        print(config['config_name'], len(table), sorted(table[0]) == sorted(table.column_names))\n"
        "    table = datasets.load_dataset(folder, split='train')\n"
        "    print(table[0]['image'] and table[0]['image'].size, table.features['label'].int2str(table[0]['label']))\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program, str(dry), str(without_images)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {subset_of(name): pq.read_metadata(dry / name).num_rows for name in TABLES}
    lines, name = done.stdout.splitlines(), pq.read_table(dry / "exemplars.parquet")["class_name"][0].as_py()
    said = [f"{config} {count} True" for config, count in rows.items()]
    of_numbers = [line for line in said if not line.startswith("images ")]
    assert lines == [*said, f"(48, 40) {name}", *of_numbers, f"None {name}"]


def test_a_run_without_labels_has_no_subset_of_classes(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for name in ("classes.parquet", "class_exemplars.parquet"):
        pq.write_table(pq.read_table(run / name).slice(0, 0), tmp_path / "run" / name)
    assert main(["publish", str(tmp_path / "run"), "user/name", "--dry-run", str(tmp_path / "dry")]) == 0
    configs = {config["config_name"] for config in DatasetCard(card_of(tmp_path / "dry")).data.configs}
    assert configs == {subset_of(name) for name in TABLES} - {"classes", "class_exemplars"}
    assert (tmp_path / "dry" / "classes.parquet").exists()


# The Hub ----------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that this process finds, with a token of `user`."""
    with hub_server() as hub:
        hub.tokens |= {TOKEN, STRANGER}
        hub.writers[TOKEN] = {"user"}
        hub.licences |= LICENCES
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def uploaded(hub, name="user/name"):
    """{path: bytes} at the head."""
    repository = hub.repositories[name]
    return repository.commits[repository.branches["main"]]


def writes(hub):
    return [request.kind for request in hub.requests if request.kind in ("create", "commit")]


def test_the_hub_gets_what_the_dry_run_showed_in_one_commit(run, dry, hub, cli, tmp_path):
    status, text = cli("publish", run, "user/name")
    assert status == 0, text
    repository = hub.repositories["user/name"]
    # Progress of uploads goes to standard error, which the fixture puts last.
    assert text.splitlines()[0] == f"published: {hub.url}/datasets/user/name/commit/{repository.branches['main']}"
    assert writes(hub) == ["create", "commit"]
    assert not repository.private
    files = uploaded(hub)
    assert files.pop(".gitattributes")
    assert files == {path.relative_to(dry).as_posix(): path.read_bytes() for path in dry.rglob("*") if path.is_file()}

    # As the card says, in another process.
    program = (
        "import datasets; from exemplar_ray import open_run\n"
        "print(len(datasets.load_dataset('user/name', 'exemplars', split='train')))\n"
        "run = open_run('hf://datasets/user/name')\n"
        "print(len(run.table()), run.exemplars(channel=3)[0].image.size)\n"
    )
    command = [sys.executable, "-c", program]
    environment = {**hub.environment(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = pq.read_metadata(run / "exemplars.parquet").num_rows
    assert done.stdout.split("\n")[:2] == [str(rows), f"{rows} (48, 40)"]


def test_publishing_again_replaces_what_was_there(run, hub, cli):
    assert cli("publish", run, "user/name", "--private", "--message", "first words")[0] == 0
    repository = hub.repositories["user/name"]
    assert repository.private
    before = uploaded(hub)
    stale = {"report/images/old.jpg": b"", "report/mixed/99.html": b"", "visualizations/old.json": b""}
    repository.commit({**before, **stale, "notes.txt": b"mine"})
    assert cli("publish", run, "user/name")[0] == 0
    assert uploaded(hub) == {**before, "notes.txt": b"mine"}
    assert writes(hub) == ["create", "commit", "commit"]
    assert len(repository.commits) == 4


def test_numbers_only(run, without_images, hub, cli):
    assert cli("publish", run, "user/name", "--without-images")[0] == 0
    assert set(uploaded(hub)) - {".gitattributes"} == set(contents(without_images))


def refused(hub, cli, *arguments):
    """What is said where nothing is written."""
    before = {name: dict(repository.branches) for name, repository in hub.repositories.items()}
    status, text = cli("publish", *arguments)
    assert status == 2
    assert {name: dict(repository.branches) for name, repository in hub.repositories.items()} == before
    [line] = [line for line in text.splitlines() if line]
    return line


def test_without_a_token_it_says_how_to_get_one(run, hub, cli, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token" in (line := refused(hub, cli, run, "user/name"))
    assert "hf auth login" in line
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        ("hf_expired", "user/name", "does not know the token"),
        (TOKEN, "other/name", "may not write to data set 'other/name'"),
        (STRANGER, "user/name", "may not write to data set 'user/name'"),
    ],
)
def test_who_may_not_write_is_told_so(run, hub, cli, monkeypatch, token, name, said):
    monkeypatch.setenv("HF_TOKEN", token)
    assert said in refused(hub, cli, run, name)


def test_who_may_read_but_not_write_is_told_so(run, hub, cli):
    hub.repositories["other/name"] = Repository()
    hub.repositories["other/name"].commit({".gitattributes": b""})
    assert "may not write to data set 'other/name'" in refused(hub, cli, run, "other/name")


def test_nothing_else_is_written_over(run, hub, cli):
    hub.repositories["user/name"] = Repository()
    hub.repositories["user/name"].commit({".gitattributes": b"", "README.md": b"", "data/train.parquet": b""})
    assert "is no published run" in refused(hub, cli, run, "user/name")


def test_what_is_to_be_private_is_never_public(run, hub, cli):
    assert cli("publish", run, "user/name")[0] == 0
    assert "for everybody to see" in refused(hub, cli, run, "user/name", "--private")


def test_images_that_are_in_the_history_are_not_hidden(run, hub, cli):
    assert cli("publish", run, "user/name")[0] == 0
    assert "would stay in its history" in refused(hub, cli, run, "user/name", "--without-images")


def test_a_card_that_the_hub_does_not_take_makes_nothing(run, hub, cli):
    line = refused(hub, cli, run, "user/name", "--licence", "cc-by-5.0")
    assert '"license" must be one of' in line
    assert writes(hub) == []


def test_a_hub_that_does_not_answer_is_one_line(run, hub, cli, monkeypatch):
    hub.faults.append(Fault("create", UNAVAILABLE))
    assert "answered 503" in refused(hub, cli, run, "user/name")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "no answer from the Hugging Face Hub" in refused(hub, cli, run, "user/name")


def test_who_was_overtaken_writes_over_nothing(run, hub, cli):
    assert cli("publish", run, "user/name")[0] == 0

    def overtake(request):
        if request.kind == "preupload":
            hub.on_request = None
            repository = hub.repositories["user/name"]
            repository.commit({**uploaded(hub), "notes.txt": b"mine"})

    hub.on_request = overtake
    status, text = cli("publish", run, "user/name", "--licence", "mit")
    assert (status, "changed by somebody else" in text) == (2, True)
    assert "notes.txt" in uploaded(hub)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["name"], "is called user/name, not 'name'"),
        (["user/na me"], "is called user/name, not 'user/na me'"),
        (["user/name", "--licence", "CC BY"], "such as cc-by-4.0, not 'CC BY'"),
        (["user/name", "--dry-run", "full"], "'full' is not an empty folder"),
        (["user/name", "--dry-run", "hf://datasets/user/name"], "is no local folder"),
    ],
)
def test_mistakes_are_one_line(run, cli, tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    status, text = cli("publish", run, *flags)
    assert status == 2
    assert said in text
    assert len(text.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"]


def test_publishing_needs_neither_torch_nor_ray(run, tmp_path):
    program = "from exemplar_ray.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = ("user/name", "--dry-run", tmp_path / "dry")
    python_without("ray torch torchvision lucent datasets", program, "publish", run, *flags)
