"""Runs and channels in a notebook: run in a real one, looked at as a browser would."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import nbformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PROJECT, TINY_FLAGS, encode, write_tiny_data
from nbclient import NotebookClient
from PIL import Image

from exemplar_ray import open_run
from exemplar_ray.cli import main
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.runs.manifest import RUN
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder

SAMPLES = ("top", "bottom", "random")  # in the order of results


class Shown(HTMLParser):
    """HTML as it is shown: its text, its images, everything it refers to."""

    VOID = ("img",)

    def __init__(self, text):
        super().__init__()
        self.html, self.text, self.images, self.links, self.open, self.tags = text, "", [], [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data} "


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("notebook")
    write_tiny_data(folder / "data")
    flags = [
        *TINY_FLAGS,
        "--layer",
        "mixed",
        "classifier",
        "--statistic",
        "mean",
        "max",
        "--sample",
        "bottom",
        "random",
    ]
    assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *flags]) == 0
    return folder / "run"


def changed(run, folder, plan=(), summary=()):
    """A copy of the run whose plan's spec and summary say something else."""
    shutil.copytree(run, folder)
    values = json.loads((folder / RUN).read_text())
    values["spec"].update(plan)
    (folder / RUN).write_text(json.dumps(values))
    values = json.loads((folder / SUMMARY).read_text())
    values |= {"fingerprint": Plan.read(RunFolder(str(folder))).fingerprint, **dict(summary)}
    (folder / SUMMARY).write_text(json.dumps(values))
    return open_run(str(folder))


def test_a_notebook_shows_run_and_channel(run, tmp_path):
    cells = [
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\nfrom exemplar_ray import open_run",
        f"run = open_run({str(run)!r}); run",
        'run.channel("mixed", 3)',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    _, (of_run,), (of_channel,) = (cell.outputs for cell in notebook.cells)
    assert of_run.data["text/html"] == open_run(str(run))._repr_html_()
    assert of_channel.data["text/html"] == open_run(str(run)).channel("mixed", 3)._repr_html_()
    assert of_channel.data["text/plain"] == "<mixed:3, max: 3 exemplars>"


def test_a_channel_has_its_exemplars_statistics_and_classes(run):
    opened = open_run(str(run))
    channel = opened.channel("mixed", 3, "mean")
    which = {"layer": "mixed", "statistic": "mean", "channel": 3}
    assert channel.exemplars == opened.exemplars(**which)
    assert channel.exemplars[0].image.size == (48, 40)
    assert channel.statistics == opened.channels(**which).to_pylist()[0]
    means = channel.classes["mean"].to_pylist()
    assert means == sorted(opened.classes(**which)["mean"].to_pylist(), reverse=True)
    assert opened.channel("mixed", 3).statistic == "max"
    assert opened.channel("classifier", 4).exemplars[0]["layer"] == "classifier"


def test_the_pictures_are_the_exemplars_crops_in_order(run):
    channel = open_run(str(run)).channel("mixed", 3)
    shown = Shown(channel._repr_html_())
    rows = [row for sample in SAMPLES for row in channel.exemplars if row["sample"] == sample]
    assert len(shown.images) == len(rows) == 9
    for image, row in zip(shown.images, rows, strict=True):
        kind, data = image["src"].split(",")
        assert kind == "data:image/jpeg;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (112, 112) == (int(image["width"]), int(image["height"]))
        expected = np.asarray(row.view.resize((112, 112), Image.Resampling.LANCZOS), float)
        assert np.abs(np.asarray(picture, float) - expected).mean() < 4
        assert image["alt"].startswith(f"{row['class_name']}, rank {row['rank']}, {row['sample']}, activation ")
    assert f"{rows[0]['activation']:.4g}" in shown.text
    assert "active on" in shown.text
    assert "of 80 images" in shown.text
    for name in set(channel.classes["class_name"].to_pylist()):
        assert name in shown.text


def test_it_needs_nothing_else_and_takes_the_notebooks_colours(run):
    opened = open_run(str(run))
    for shown in (Shown(opened._repr_html_()), Shown(opened.channel("mixed", 3)._repr_html_())):
        assert all(link.startswith("data:image/jpeg;base64,") for link in shown.links)
        assert not shown.tags & {"script", "style", "link"}
        colours = set(re.findall(r"(?:color|background):([^;\"]+)", shown.html))
        assert colours <= {"inherit", "none", "#e0432f"}


def test_a_run_says_what_was_searched_and_which_channels_it_has(run):
    text = Shown(open_run(str(run))._repr_html_()).text
    weights = Plan.read(RunFolder(str(run))).spec.network.weights_sha256[:12]
    for part in ("tiny_network:trained", weights, "80 images searched in 8 shards", "mixed", "12 of 12 channels"):
        assert part in text
    assert "classifier : 5 of 5 channels" in text
    assert f"max, mean; top 3; samples: {', '.join(SAMPLES)}" in text
    assert ".channel('classifier', 0)" in text
    assert not {"UNTRAINED", "PARTIAL", "SETTLED"} & set(re.findall(r"\w+", text))


def test_untrained_partial_and_not_settled_are_said(run, tmp_path):
    doubt = {"layer": "mixed", "statistic": "max", "channel": 3, "sample": "top"}
    opened = changed(run, tmp_path / "run", {"trained": False}, {"partial": "7 of 8 shards", "unsettled": [doubt]})
    for html in (opened._repr_html_(), opened.channel("mixed", 3)._repr_html_()):
        text = Shown(html).text
        for warning in ("UNTRAINED NETWORK", "PARTIAL RESULT: only 7 of 8 shards", "NOT SETTLED: top"):
            assert warning in text
    for channel in (opened.channel("mixed", 2), opened.channel("mixed", 3, "mean")):
        text = Shown(channel._repr_html_()).text
        assert "UNTRAINED NETWORK" in text
        assert "SETTLED" not in text


def test_whatever_stands_in_the_data_is_text(run, tmp_path):
    hostile = "<script>alert(1)</script>\"'&amp;\u202egnp\x00"
    opened = changed(run, tmp_path / "run", {"model_title": hostile})
    table = pq.read_table(run / "exemplars.parquet")
    for name in ("class_name", "image_path"):
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(name), pa.array([hostile] * len(table)))
    pq.write_table(table, tmp_path / "run" / "exemplars.parquet")
    for html in (opened._repr_html_(), opened.channel("mixed", 3)._repr_html_()):
        shown = Shown(html)
        assert "script" not in shown.tags
        assert "\x00" not in html
        assert "\u2068<script>alert(1)</script>\"'&amp;\u202egnp�\u2069" in shown.text
    assert shown.images[0]["alt"].startswith("\u2068<script>alert(1)</script>\"'&amp;\u202egnp�")


def test_ten_exemplars_are_small_however_large_their_images_are(run, tmp_path):
    """Noise is the largest that a JPEG can be."""
    shutil.copytree(run, tmp_path / "run")
    table = pq.read_table(run / "exemplars.parquet")
    rows = table.filter(pa.compute.equal(table["sample"], "top")).slice(0, 1).to_pylist() * 50
    noise = encode(np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8), "PNG")
    which = {"layer": "mixed", "statistic": "max", "channel": 3, "view_box": [100.0, 0.0, 700.0, 600.0]}

    def html_of(count):
        many = [
            {**row, **which, "rank": rank + 1, "image": {"bytes": noise, "path": "noise.png"}}
            for rank, row in enumerate(rows[:count])
        ]
        pq.write_table(pa.Table.from_pylist(many, table.schema), tmp_path / "run" / "exemplars.parquet")
        return open_run(str(tmp_path / "run")).channel("mixed", 3)._repr_html_()

    assert len(html_of(10)) < 300_000
    many = html_of(50)
    assert len(many) < 600_000
    assert "and 30 more" in many


def test_a_channel_without_images_exemplars_or_labels_still_shows_itself(run, tmp_path):
    assert main(["publish", str(run), "user/name", "--dry-run", str(tmp_path / "numbers"), "--without-images"]) == 0
    shown = Shown(open_run(str(tmp_path / "numbers")).channel("mixed", 3)._repr_html_())
    assert shown.images == []
    assert shown.text.count("no image") == 9
    shutil.copytree(run, tmp_path / "run")
    for name in ("exemplars.parquet", "classes.parquet"):
        pq.write_table(pq.read_table(run / name).slice(0, 0), tmp_path / "run" / name)
    channels = pq.read_table(run / "channels.parquet")
    nothing = pa.array([float("nan")] * len(channels))
    channels = channels.set_column(channels.column_names.index("selectivity"), "selectivity", nothing)
    pq.write_table(channels, tmp_path / "run" / "channels.parquet")
    text = Shown(open_run(str(tmp_path / "run")).channel("mixed", 3)._repr_html_()).text
    assert "no exemplar" in text
    assert "classes" not in text
    assert "selectivity" not in text


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("mixd", 3), "no layer 'mixd'; did you mean 'mixed'?"),
        (("mixed", 12), "no channel 12 of mixed; it has 0-11"),
        (("mixed", 3, "mena"), "no statistic 'mena'; did you mean 'mean', 'max'?"),
    ],
)
def test_what_the_run_does_not_have_is_said(run, asked, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        open_run(str(run)).channel(*asked)
