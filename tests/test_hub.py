"""Data and finished runs on the Hugging Face Hub, over HTTP: one commit, one listing, one line on how to get access."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
from conftest import TINY_FLAGS, encode, random_picture, start_ray_head, write_tiny_data
from hub_server import CUT, UNAVAILABLE, Fault, Repository, hub_server
from images_as_people_have_them import samples_of, write_tar
from session import session

from exemplar_ray import open_run
from exemplar_ray.data.listed import LeftOut
from exemplar_ray.data.shards import discover, inspect, open_shard
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import UsageError
from exemplar_ray.storage.hub import resolve_revisions

FLAGS = [*TINY_FLAGS, "--sample", "bottom", "q50"]
ANSWER = ("exemplars.parquet", "channels.parquet", "classes.parquet", "images.parquet")
SHARDS = 3
# The driver's; workers have none.
TOKEN = "hf_driver"


@pytest.fixture(scope="module")
def hub():
    with hub_server() as hub:
        hub.tokens.update({TOKEN, "hf_stranger"})
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data, on the disk."""
    folder = tmp_path_factory.mktemp("data")
    write_tiny_data(folder, shards=SHARDS)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def head(hub, home):
    """A Ray that takes jobs, whose workers find the Hub, and have no token."""
    yield from start_ray_head(hub.environment(home), jobs=True)


@pytest.fixture(scope="module")
def command(hub, home, head):
    """Run a command on that Ray, with a token; return (exit status, what it printed)."""
    with session({**hub.environment(home, TOKEN), "RAY_ADDRESS": head["address"]}) as run:
        yield run


@pytest.fixture
def here(hub, home, monkeypatch):
    """Let this process find the Hub, too; call it with a token or None."""

    def log_in(token, url=hub.url):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)

    log_in(TOKEN)
    return log_in


@pytest.fixture(scope="module")
def on_a_disk(folder, command, tmp_path_factory):
    """The run folder of the data on the disk."""
    run = tmp_path_factory.mktemp("disk") / "run"
    status, text = command("run", "--data", folder, "--out", run, *FLAGS)
    assert status == 0, text
    return run


def offer(hub, folder, **how):
    """Make a new data set; return it and its URI."""
    name = f"org/birds-{len(hub.repositories)}"
    hub.repositories[name] = Repository(**how)
    hub.repositories[name].upload(folder, "data/")
    return hub.repositories[name], f"hf://datasets/{name}"


def assert_same_answer(run, other):
    for name in ANSWER:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


def test_a_run_on_the_hub_is_the_run_on_a_disk_and_lists_once(hub, folder, command, on_a_disk, tmp_path):
    repository, uri = offer(hub, folder)
    before = len(hub.requests)
    status, text = command("run", "--data", f"{uri}/data/*.parquet", "--out", tmp_path / "run", *FLAGS)
    assert status == 0, text
    assert_same_answer(tmp_path / "run", on_a_disk)
    for part in (on_a_disk / "parts").glob("*.parquet"):
        assert (tmp_path / "run" / "parts" / part.name).read_bytes() == part.read_bytes()

    # Who reads run.json sees the commit, and that it is the same run.
    commit = repository.branches["main"]
    plan, there = (json.loads((run / "run.json").read_text()) for run in (tmp_path / "run", on_a_disk))
    assert plan["revisions"] == {f"{uri}@main": commit}
    assert [shard["uri"] for shard in plan["shards"]] == [
        f"{uri}@{commit}/data/{shard['name']}" for shard in there["shards"]
    ]
    assert plan["identity"] == there["identity"]
    assert f"{uri}@main is read at commit {commit}" in text

    # Workers ask whether the repository is there and for bytes, the driver lists each page once.
    asked = hub.requests[before:]
    listed = [request.path for request in asked if request.kind == "tree"]
    assert len(listed) == len(set(listed)) >= 2
    assert {request.token for request in asked if request.kind == "tree"} == {TOKEN}
    of_workers = [request for request in asked if request.token is None and request.kind in ("info", "resolve")]
    assert of_workers
    assert all(commit in request.path for request in of_workers)
    # The content server is another host: no token goes there.
    assert {request.token for request in asked if request.kind == "content"} == {None}


def test_a_branch_that_moves_moves_no_run(hub, folder, command, here, on_a_disk, tmp_path):
    repository, uri = offer(hub, folder)
    first = repository.branches["main"]
    write_tiny_data(tmp_path / "other", shards=SHARDS, first_seed=1000)
    moved = []

    def move(request):
        # While workers read.
        if request.kind == "resolve" and request.token is None and not moved:
            moved.append(repository.upload(tmp_path / "other", "data/"))

    run, same = tmp_path / "run", ["run", "--data", f"{uri}/data", "--out", tmp_path / "run", *FLAGS]
    hub.on_request = move
    try:
        assert command(*same)[0] == 0
    finally:
        hub.on_request = None
    assert moved
    assert_same_answer(run, on_a_disk)

    # Between invocations: what is scanned again is what was scanned.
    (run / "parts" / "000001.json").unlink()
    (run / "exemplars.parquet").unlink()
    status, text = command(*same)
    assert (status, text.count("scan 1/1")) == (0, 1), text
    assert_same_answer(run, on_a_disk)
    assert json.loads((run / "run.json").read_text())["revisions"] == {f"{uri}@main": first}

    # Another commit, asked for, is another run's if its shards differ.
    plan = (run / "run.json").read_bytes()
    status, text = command("run", "--data", f"{uri}@{moved[0]}/data", "--out", run, *FLAGS)
    assert (status, text.count("\n")) == (2, 1), text
    assert "shard train-00000-of-00003.parquet changed after it was scanned" in text
    assert (run / "run.json").read_bytes() == plan

    # A new run is of what is there now.
    assert resolve_revisions([f"{uri}/data"]) == {f"{uri}@main": moved[0]}


def test_the_commit_is_no_part_of_a_shards_name(hub, folder, here):
    repository, uri = offer(hub, folder)
    main = repository.branches["main"]
    other = repository.commit({**repository.commits[main], "README.md": b"words"}, branch="v2")
    local, _ = inspect(discover([str(folder)]))
    for place, commit in (("", main), ("@main", main), ("@v2", other), (f"@{other}", other)):
        shards, names = inspect(discover([f"{uri}{place}/data"]))
        assert [(s.name, s.size, s.rows, s.footer) for s in shards] == [
            (s.name, s.size, s.rows, s.footer) for s in local
        ]
        assert [s.uri for s in shards] == [f"{uri}@{commit}/data/{s.name}" for s in local]
        assert names == ["tench", "goldfish", "great white shark"]
    # Also where names begin further up: with a folder on the disk, and with another data set.
    _, second = offer(hub, folder)
    for shard in discover([f"{uri}/data", f"{second}@main/data", str(folder)]):
        assert "@" not in shard.name
    assert len(discover([f"{uri}/data", f"{uri}@main/data/*.parquet"])) == SHARDS
    repository.commit({"data/train-00000-of-00003.parquet": b"other"}, branch="v3")
    with pytest.raises(UsageError, match=f"'{uri}/data/train-00000-of-00003.parquet' is in the data at two revisions"):
        discover([f"{uri}/data", f"{uri}@v3/data"])


@pytest.mark.parametrize(
    ("how", "token", "place", "says"),
    [
        ({"gated": True}, None, "/data", ("is gated", "accept its terms on {page},", "set HF_TOKEN", "no token on")),
        ({"gated": True}, "hf_stranger", "/data", ("is gated", "accept its terms on {page},", "does not open it")),
        ({"private": True}, None, "/data", ("or it is private", "set HF_TOKEN", "no token on")),
        ({"private": True}, "hf_stranger", "/data", ("or it is private", "does not open it")),
        ({}, TOKEN, "-not/data", ("is not on the Hugging Face Hub", "check the name at {page}-not;")),
        ({}, "hf_expired", "/data", ("does not know the token", "hf auth login")),
        ({}, TOKEN, "@v9/data", ("has no revision 'v9'",)),
        ({}, TOKEN, "/data/test-*.parquet", ("no parquet shard, tar or image matches", "/data/test-*.parquet'")),
        ({}, TOKEN, "/nowhere", ("no parquet shard, tar or image matches",)),
    ],
)
def test_what_cannot_be_read_is_one_line_that_says_what_to_do(
    hub, folder, cli, here, tmp_path, how, token, place, says
):
    _, uri = offer(hub, folder, **how)
    here(token)
    status, text = cli("run", "--data", f"{uri}{place}", "--out", tmp_path / "run", *FLAGS)
    assert (status, text.count("\n")) == (2, 1), text
    for words in says:
        assert words.format(page=uri.replace("hf:/", hub.url)) in text
    assert not (tmp_path / "run").exists()


def test_a_pinned_commit_that_is_gone_or_closed_is_one_line(hub, folder, here):
    repository, uri = offer(hub, folder)
    pins = resolve_revisions([uri])
    repository.private = True
    here("hf_stranger")
    with pytest.raises(UsageError, match="or it is private"):
        discover([f"{uri}/data"], pins)
    repository.private, repository.commits = False, {}
    with pytest.raises(UsageError, match=f"has no revision '{pins[f'{uri}@main']}'"):
        discover([f"{uri}/data"], pins)


def test_a_hub_that_is_gone_switched_off_or_misspelt_is_one_line(cli, here, tmp_path, monkeypatch):
    def run_on(uri):
        status, text = cli("run", "--data", uri, "--out", tmp_path / "run", *FLAGS)
        assert (status, text.count("\n")) == (2, 1), text
        return text

    assert "Invalid HF URI 'hf://datasets/imagenet-1k'" in run_on("hf://datasets/imagenet-1k")
    here(TOKEN, "http://127.0.0.1:9")
    assert "no answer from the Hugging Face Hub" in run_on("hf://datasets/org/birds")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "unset the `HF_HUB_OFFLINE` environment variable" in run_on("hf://datasets/org/birds")


def test_the_token_of_a_login_opens_a_private_data_set(hub, folder, home, here):
    _, uri = offer(hub, folder, private=True, readers={TOKEN})
    here(None)
    with pytest.raises(UsageError, match="or it is private"):
        discover([f"{uri}/data"])
    (home / "token").write_text(TOKEN)
    try:
        assert len(inspect(discover([f"{uri}/data"]))[0]) == SHARDS
    finally:
        (home / "token").unlink()


def test_workers_without_a_token_fail_their_shards_at_once_and_find_it_in_a_file_that_no_job_tells_of(
    hub, folder, command, head, home, on_a_disk, tmp_path
):
    _, uri = offer(hub, folder, gated=True, readers={TOKEN})
    data = ["--data", f"{uri}/data", "--out", tmp_path / "run", *FLAGS]
    status, text = command("run", *data)
    assert (status, f"{SHARDS} of {SHARDS} shards have no result" in text) == (1, True), text
    for position in range(SHARDS):
        record = json.loads((tmp_path / "run" / "failed" / f"{position:06d}.json").read_text())
        assert record["attempts"] == 1
        assert "is gated: accept its terms on" in record["reason"]
        assert "there is no token on" in record["reason"]

    # Where HF_TOKEN_PATH says, and `hf auth login` puts it; as the README starts a job.
    (home / "token").write_text(TOKEN)
    ray = [str(Path(sys.executable).parent / "ray"), "job"]
    submit = [*ray, "submit", "--address", head["dashboard"], "--", sys.executable, "-m", "exemplar_ray", "run"]
    before = len(hub.requests)
    try:
        done = subprocess.run([str(part) for part in (*submit, *data)], capture_output=True, text=True)
    finally:
        (home / "token").unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = subprocess.run([*ray, "list", "--address", head["dashboard"]], capture_output=True, text=True)
    assert "SUCCEEDED" in jobs.stdout
    assert TOKEN not in done.stdout + done.stderr + jobs.stdout + jobs.stderr
    assert {request.token for request in hub.requests[before:] if request.kind == "resolve"} == {TOKEN}
    assert_same_answer(tmp_path / "run", on_a_disk)


def test_what_passes_is_waited_for(hub, folder, command, on_a_disk, tmp_path):
    _, uri = offer(hub, folder)
    # Of the driver and of workers; one of two workers is refused more often than it asks, and its shard tried again.
    hub.faults += [Fault(kind, UNAVAILABLE, TOKEN) for kind in ("info", "tree", "resolve")]
    hub.faults += [Fault("tree", CUT), Fault("content", CUT), Fault("content", UNAVAILABLE)]
    hub.faults += [Fault("info", UNAVAILABLE, None)] * 5
    hub.faults += [Fault("resolve", UNAVAILABLE, None)]
    status, text = command("run", "--data", f"{uri}/data", "--out", tmp_path / "run", *FLAGS)
    assert (status, hub.faults) == (0, []), text
    assert_same_answer(tmp_path / "run", on_a_disk)


def test_a_finished_run_is_read_from_the_hub(hub, cli, here, on_a_disk, tmp_path):
    result = hub.repositories["user/result"] = Repository(private=True, readers={TOKEN})
    result.upload(on_a_disk)
    uri = "hf://datasets/user/result"
    local, there = cli("status", on_a_disk), cli("status", uri)
    # What is printed is wrapped.
    assert (there[0], "".join(there[1].split())) == (0, "".join(local[1].replace(str(on_a_disk), uri).split()))
    assert cli("report", on_a_disk, "--out", tmp_path / "local")[0] == 0
    assert cli("report", uri, "--out", tmp_path / "report")[0] == 0
    pages = [path for path in sorted((tmp_path / "local").rglob("*")) if path.is_file()]
    assert pages
    for page in pages:
        there = (tmp_path / "report" / page.relative_to(tmp_path / "local")).read_bytes()
        # Pages say of which folder they are.
        assert there.replace(uri.encode(), str(on_a_disk).encode()) == page.read_bytes(), page

    run, same = open_run(uri), open_run(str(on_a_disk))
    # What is uploaded while somebody reads is not read.
    result.commit({"run.json": b"{}"})
    assert run.table().equals(same.table())
    assert run.channels(channel=3).equals(same.channels(channel=3))
    for sample in ("top", "bottom"):
        exemplars = run.exemplars(channel=3, sample=sample)
        assert exemplars == same.exemplars(channel=3, sample=sample)
        assert exemplars[0].image.size == (48, 40)
    with pytest.raises(UsageError, match="was written by another version"):
        open_run(uri)


def test_a_run_that_cannot_be_read_from_the_hub_is_one_line(hub, cli, here, on_a_disk):
    for how, says in (({"private": True}, "or it is private"), ({"gated": True}, "is gated: accept its terms on")):
        _, uri = offer(hub, on_a_disk, **how)
        status, text = cli("status", f"{uri}/data")
        assert (status, text.count("\n")) == (2, 1), text
        assert says in text


@pytest.mark.parametrize(
    "place", ["datasets/org/run", "datasets/org/run@main/below", "org/model", "buckets/org/bucket"]
)
def test_nothing_is_written_to_the_hub(hub, cli, here, folder, on_a_disk, place):
    before = len(hub.requests)
    uri = f"hf://{place}"
    for line in (["run", "--data", folder, "--out", uri, *FLAGS], ["merge", uri], ["report", on_a_disk, "--out", uri]):
        status, text = cli(*line)
        assert (status, text.count("\n")) == (2, 1), text
        assert f"'{uri}' is on the Hugging Face Hub, where a run folder can be read but not written" in text
    status, text = cli("report", uri)
    assert (status, text.count("\n")) == (2, 1), text
    assert f"'{uri}/report' is on the Hugging Face Hub" in text
    assert hub.requests[before:] == []


def test_the_address_of_a_files_content_is_asked_for_once_and_again_when_it_has_expired(hub, tmp_path, here):
    images = [LabelledImage(random.Random(i).randbytes(2000), f"{i}.png", 0) for i in range(550)]
    write_images(images, str(tmp_path / "d"), None, 1000)
    _, uri = offer(hub, tmp_path / "d")
    [shard], _ = inspect(discover([f"{uri}/data"]))

    def requests():
        before = len(hub.requests)
        with open_shard(shard) as reader:
            assert [image.data for image in reader.images()] == [image.data for image in images]
        return Counter(request.kind for request in hub.requests[before:])

    # The footer and 6 row groups.
    assert requests() == {"resolve": 1, "content": 7}
    hub.uses = 3
    try:
        assert requests() == {"resolve": 3, "content": 7 + 2}
    finally:
        hub.uses = None


# Data sets by name and split ----------------------------------------------------------------


def card(*configs):
    """A data set's card that says which files are which."""
    return f"---\n{json.dumps({'configs': list(configs)})}\n---\n# Birds\n".encode()


def offer_files(hub, files):
    """Make a new data set of {path: content}; return it and its name."""
    name = f"org/birds-{len(hub.repositories)}"
    hub.repositories[name] = Repository()
    hub.repositories[name].commit(files)
    return hub.repositories[name], name


def test_a_data_set_by_its_name_and_split_is_the_run_on_a_disk(hub, folder, command, on_a_disk, tmp_path):
    files = {f"data/{path.name}": path.read_bytes() for path in folder.iterdir()}
    one = next(iter(files.values()))
    repository, name = offer_files(hub, {**files, "data/test-00000-of-00001.parquet": one, "README.md": b"# Birds"})
    run, data = tmp_path / "run", ["--data", name, "--split", "train"]
    before = len(hub.requests)
    status, text = command("run", *data, "--out", run, *FLAGS)
    assert status == 0, text
    assert_same_answer(run, on_a_disk)
    commit = repository.branches["main"]
    assert f"hf://datasets/{name}@main is read at commit {commit}" in text
    plan, there = (json.loads((folder / "run.json").read_text()) for folder in (run, on_a_disk))
    assert plan["identity"] == there["identity"]
    assert [shard["uri"] for shard in plan["shards"]] == [
        f"hf://datasets/{name}@{commit}/data/{shard['name']}" for shard in there["shards"]
    ]
    # Bytes are read at the commit, and nothing is copied.
    asked = [request.path for request in hub.requests[before:] if request.kind == "resolve"]
    assert asked
    assert all(f"/{commit}/" in path for path in asked)

    # The branch moves, and the run does not.
    repository.commit({"data/train-00000-of-00001.parquet": one})
    status, text = command("run", *data, "--out", run, *FLAGS)
    assert (status, "nothing to do" in text) == (0, True), text
    status, text = command("plan", "--data", f"hf://datasets/{name}@{commit}", "--split", "test", *TINY_FLAGS)
    assert (status, "1 shards, 10 images" in text) == (0, True), text


def images_of(uri, **how):
    """What is read of data: (path, label) of each row by shard, and the names of classes."""
    shards, names = inspect(discover([uri], **how))
    found = {}
    for shard in shards:
        with open_shard(shard) as reader:
            found[shard.name] = [(image.path, image.label) for image in reader.images()]
            assert [image.label for image in reader.select(range(5))] == [label for _, label in found[shard.name]][:5]
    return found, names


def test_the_card_says_which_files_are_which_and_tars_and_images_are_read_where_they_are(hub, here, tmp_path):
    pictures = [encode(random_picture(i)) for i in range(4)]
    tar = write_tar(tmp_path / "a.tar", samples_of([(picture, i) for i, picture in enumerate(pictures)])).read_bytes()
    tars = {f"wds/part-{i}.tar": tar for i in range(2)}
    where = {"config_name": "default", "data_files": [{"split": "birds", "path": "wds/*.tar"}]}
    _, name = offer_files(hub, {**tars, "README.md": card(where), "figure.png": pictures[0]})
    found, _ = images_of(f"hf://datasets/{name}")
    assert found == {f"part-{i}.tar": [(f"{row:06d}.png", row) for row in range(4)] for i in range(2)}

    photos = {f"photos/train/{kind}/{i}.png": pictures[i] for kind in ("ant", "bee") for i in range(2)}
    more = {"photos/train/metadata.csv": b"file_name,label", "photos/test/ant/9.png": pictures[3]}
    _, name = offer_files(hub, {**photos, **more})
    before = len(hub.requests)
    left_out = LeftOut()
    found, names = images_of(f"hf://datasets/{name}", split="train", left_out=left_out)
    rows = [("ant/0.png", 0), ("ant/1.png", 0), ("bee/0.png", 1), ("bee/1.png", 1)]
    assert (found, names) == ({"images-00000-of-00001": rows}, ["ant", "bee"])
    assert left_out.lines() == [f"1 other files are left out, such as 'hf://datasets/{name}/photos/train/metadata.csv'"]
    # A file is asked for when it is read, here twice, and never listed for its size.
    asked = Counter(request.kind for request in hub.requests[before:])
    assert asked["resolve"] == 4 + 4
    # By a folder and a glob, too; a path that names a file is not looked for as a data set.
    found, names = images_of(f"hf://datasets/{name}/photos/train")
    assert (found, names) == ({"images-00000-of-00001": rows}, ["ant", "bee"])
    with pytest.raises(UsageError, match="no parquet shard, tar or image matches 'photos/train.tar'"):
        discover(["photos/train.tar"])
    found, _ = images_of(f"hf://datasets/{name}/photos/*/ant/*.png")
    assert found == {"images-00000-of-00001": [("test/ant/9.png", 0), ("train/ant/0.png", 1), ("train/ant/1.png", 1)]}


BIRDS = {"config_name": "birds", "data_files": "birds/*"}
BEES = {"config_name": "bees", "data_files": [{"split": "train", "path": ["bees/*.parquet"]}]}


TRAIN, TEST = ({f"data/{split}-00000-of-00001.parquet": b""} for split in ("train", "test"))
SEVERAL = "several configurations: bees, birds; name the files of one by a glob, such as 'hf://datasets/org/birds-\\d+/"


@pytest.mark.parametrize(
    ("files", "split", "says"),
    [
        (TRAIN | TEST, None, "has several splits: train, test; choose one with --split NAME"),
        (TRAIN, "trian", "has no split 'trian'; did you mean 'train'"),
        (TRAIN, "train[:10%]", "has no split 'train\\[:10%\\]'"),
        ({"train.csv": b"a", "README.md": b"# Birds"}, None, "neither parquet files, tars nor images.*'train.csv'"),
        ({"photos.zip": b"PK"}, "train", "write shards of it: exemplar-ray shard org/birds-\\d+ DIR --split train$"),
        ({"README.md": card(BEES, BIRDS), "bees/x.parquet": b""}, None, f"{SEVERAL}bees/\\*.parquet'"),
        (
            {"README.md": card({"config_name": "x", "data_files": 7})},
            None,
            "card of .* is unclear: Expected data_files",
        ),
        ({".gitattributes": b""}, None, "has no files of data"),
        ({"train.parquet": b"", "train.png": b""}, None, "stands for parquet shards and images; choose with a glob"),
    ],
)
def test_what_a_data_set_does_not_make_clear_is_asked(hub, here, files, split, says):
    _, name = offer_files(hub, files)
    for data in (name, f"hf://datasets/{name}"):
        with pytest.raises(UsageError, match=says) as refused:
            discover([data], split=split)
        assert "\n" not in str(refused.value)


def test_a_split_is_of_a_data_set_and_a_name_may_be_of_nothing(hub, folder, here, cli, tmp_path, monkeypatch):
    _, uri = offer(hub, folder)
    monkeypatch.chdir(folder.parent)
    for data in (folder, f"{uri}/data", f"{folder.parent.name}/{folder.name}"):
        status, text = cli("run", "--data", data, "--split", "train", "--out", tmp_path / "run", *FLAGS)
        assert (status, text.count("\n")) == (2, 1), text
        assert "--split is of a data set on the Hub that is given by its name" in text or "is no file or folder" in text
    status, text = cli("run", "--data", "org/nothing", "--out", tmp_path / "run", *FLAGS)
    assert (status, text.count("\n")) == (2, 1), text
    assert "'org/nothing' is no file or folder here" in text
    assert "data set 'org/nothing' is not on the Hugging Face Hub" in text
    # What is here wins.
    (folder.parent / "org").mkdir(exist_ok=True)
    (folder.parent / "org" / "nothing").symlink_to(folder)
    assert len(discover(["org/nothing"])) == SHARDS
