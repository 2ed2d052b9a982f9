"""The pages of a report, without a browser: what stands in them, and that it is true."""

import json
import math
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PROJECT, TINY_FLAGS, TINY_NETWORK, encode, python_without, random_picture, write_tiny_data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_spec import resolved

from exemplar_ray import open_run
from exemplar_ray.cli import build_parser
from exemplar_ray.config import pick, settings_of
from exemplar_ray.data.framing import Framing
from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shards import Shard
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.exemplars.spec import RunSpec
from exemplar_ray.network.layers import Axis, Layer, ReceptiveField
from exemplar_ray.report import pictures
from exemplar_ray.report.charts import BARS, HEIGHT, WIDTH, _in_bars, histogram_chart, round_values
from exemplar_ray.report.pages import write_report
from exemplar_ray.report.pictures import Pictures, map_overlay
from exemplar_ray.report.provenance import command_of
from exemplar_ray.report.writer import ReportWriter
from exemplar_ray.storage.folder import Folder
from exemplar_ray.storage.folder_names import folder_names

SAMPLES = ["--sample", "bottom", "random", "q90"]


class Page(HTMLParser):
    """A page's elements: (tag, attributes, text up to the next tag)."""

    def __init__(self, path):
        super().__init__()
        self.elements = []
        self.path = path
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2] += data

    @property
    def text(self):
        return " ".join(" ".join(text for _, _, text in self.elements).split())

    def all(self, tag, name=None):
        """Elements with a tag and a class."""
        return [one for one in self.elements if one[0] == tag and (not name or name in one[1].get("class", "").split())]

    def links(self):
        """What it refers to."""
        return [one[1][a] for one in self.elements for a in ("href", "src") if a in one[1]]


def pages_of(folder):
    return {str(path.relative_to(folder)): Page(path) for path in sorted(folder.rglob("*.html"))}


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster):
    """Two layers, one without maps; two statistics; four samples; duplicates among the images."""
    from exemplar_ray.cli import main

    folder = tmp_path_factory.mktemp("pages")
    write_tiny_data(folder / "data")
    flags = [*TINY_FLAGS, "--layer", "mixed", "classifier", "--statistic", "mean", "max", *SAMPLES, "--distinct"]
    assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *flags]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(str(run), str(folder))
    return folder


def test_every_layer_and_statistic_has_an_overview_and_every_channel_a_page(report):
    expected = {"index.html", "classifier/mean.html", "mixed/max.html", "mixed/mean.html"}
    expected |= {f"mixed/{channel}.html" for channel in range(12)}
    expected |= {f"classifier/{channel}.html" for channel in range(5)}
    assert set(pages_of(report)) == expected


def test_no_page_refers_to_what_is_not_in_the_folder(report):
    seen = set()
    for page in pages_of(report).values():
        for link in page.links():
            if link.startswith("#") or link == "data:,":
                continue
            target = (page.path.parent / link).resolve()
            assert target.is_file(), (page.path, link)
            seen.add(target)
    files = {path.resolve() for path in report.rglob("*") if path.is_file()}
    assert files - seen <= {(report / "index.html").resolve()}  # nothing is written that no page shows


def test_a_channels_page_shows_its_rows_in_order(run, report):
    page = Page(report / "mixed" / "3.html")
    rows = open_run(str(run)).table(layer="mixed", channel=3).to_pylist()
    samples = ["top", "distinct", "q90", "random", "bottom"]
    expected = [
        row
        for statistic in ("max", "mean")
        for sample in samples
        for row in rows
        if (row["statistic"], row["sample"]) == (statistic, sample)
    ]
    assert len(expected) == len(rows) >= 2 * (4 * 3 + 1)
    assert [text.strip() for _, _, text in page.all("span", "value")] == [
        f"{row['activation']:.5g}" for row in expected
    ]
    shown = [text.strip() for _, _, text in page.all("span", "percentile")]
    assert shown == [f"{row['percentile']:.0f} %" for row in expected]
    assert [text.strip() for _, _, text in page.all("bdi", "image-path")] == [row["image_path"] for row in expected]
    figures = page.all("figure", "exemplar")
    for (_, attributes, _), row in zip(figures, expected, strict=True):
        assert attributes["data-size"] == "48 40"
        for name, column in (("data-crop", "view_box"), ("data-field", "field_box")):
            assert [float(v) for v in attributes[name].split()] == pytest.approx(row[column], rel=1e-5)


def test_every_image_is_stored_once_and_is_the_exemplars(run, report):
    finished = open_run(str(run))
    rows = finished.exemplars()
    stored = [path for path in (report / "images").rglob("*") if path.is_file()]
    assert sorted(path.read_bytes() for path in stored) == sorted({row["image"]["bytes"] for row in rows})
    page = Page(report / "mixed" / "3.html")
    shown = [(page.path.parent / one[1]["src"]).read_bytes() for one in page.all("img")]
    by_sample = {}
    for row in finished.exemplars(layer="mixed", channel=3):
        by_sample.setdefault((row["statistic"], row["sample"]), []).append(row["image"]["bytes"])
    samples = ["top", "distinct", "q90", "random", "bottom"]
    assert shown == [data for one in ("max", "mean") for sample in samples for data in by_sample[one, sample]]


def test_tiles_show_the_strongest_as_the_network_saw_them(run, report):
    side = pictures._THUMBNAIL
    for channel in (0, 7):
        tile = np.asarray(Image.open(report / "tiles" / "mixed" / "mean" / f"{channel}.jpg"), np.float64)
        assert tile.shape == (2 * side, 2 * side, 3)
        strongest = open_run(str(run)).exemplars(layer="mixed", statistic="mean", channel=channel, sample="top")
        for place, exemplar in enumerate(strongest):
            y, x = place // 2 * side, place % 2 * side
            expected = exemplar.view.resize((side, side), Image.Resampling.LANCZOS)
            assert np.abs(tile[y : y + side, x : x + side] - np.asarray(expected)).mean() < 8
        assert np.abs(tile[side:, side:] - 128).mean() < 3  # three exemplars: one place is empty


def test_overviews_know_what_channels_are_sorted_and_searched_by(run, report):
    finished = open_run(str(run))
    for name, statistic in (("mixed/mean.html", "mean"), ("mixed/max.html", "max")):
        page = Page(report / name)
        tiles = [one[1] for one in page.all("li") if "data-channel" in one[1]]
        known = finished.channels(layer="mixed", statistic=statistic).to_pylist()
        assert [int(tile["data-channel"]) for tile in tiles] == [row["channel"] for row in known]
        classes = finished.classes(layer="mixed", statistic=statistic).to_pylist()
        top = finished.table(layer="mixed", statistic=statistic, sample="top").to_pylist()
        for tile, row in zip(tiles, known, strict=True):
            channel = row["channel"]
            for measure, column in (("selectivity", "selectivity"), ("active", "active_fraction")):
                written = tile[f"data-{measure}"]
                assert (
                    (written == "–")
                    if math.isnan(row[column])
                    else float(written) == pytest.approx(row[column], rel=6e-3)
                )
            low, middle, high = row["q01"], row["q50"], row["q99"]
            if high > low:
                skew = (high + low - 2 * middle) / (high - low)
                assert float(tile["data-skew"]) == pytest.approx(skew, rel=6e-3, abs=1e-6)
            else:
                assert tile["data-skew"] == "–"
            best = max((c for c in classes if c["channel"] == channel), key=lambda c: (c["mean"], -c["label"]))
            assert int(tile["data-top"]) == best["label"]
            of_channel = list(dict.fromkeys(r["label"] for r in top if r["channel"] == channel))
            assert [int(label) for label in tile["data-labels"].split()] == of_channel
        options = {one[1]["value"]: one[1] for one in page.all("option") if "data-label" in one[1]}
        assert options["goldfish"]["label"] == "n01440761"
        assert options["goldfish"]["data-label"] == "1"


def test_provenance_stands_on_every_page(run, report):
    plan = open_run(str(run)).plan
    for page in pages_of(report).values():
        for part in (
            plan.spec.network.model_title,
            plan.spec.network.weights_sha256,
            "80 images searched in 8 shards",
            "every top 3 is settled",
            "shorter side to 36 pixels (bilinear), centre 32 × 32, RGB 0..255 minus (117, 117, 117)",
            "mean: mean over the channel's map",
            "train-0000*-of-00008.parquet",
            f"torch {plan.versions['torch']}",
            "exemplar-ray run --data",
        ):
            assert part in page.text, (page.path, part)
        for part in ("UNTRAINED", "PARTIAL", "NOT SETTLED"):
            assert part not in page.text


def test_untrained_partial_skipped_and_without_labels_is_in_plain_sight(tmp_path, cli, ray_cluster):
    from exemplar_ray.data.write_shards import LabelledImage, write_images

    images = [LabelledImage(encode(random_picture(i)), f"{i}.png", None) for i in range(19)]
    write_images([*images, LabelledImage(b"no image", "broken.png", None)], str(tmp_path / "data"), None, 10)
    (tmp_path / "data" / "train-00000-of-00002.parquet").write_bytes(b"broken")
    flags = [*TINY_FLAGS, "--model", TINY_NETWORK.replace(":trained", ":untrained"), "--weights", "random:3"]
    flags += ["--max-skipped", "1"]
    assert cli("run", "--data", tmp_path / "data", "--out", tmp_path / "run", *flags, "--retries", "0")[0] == 1
    status, text = cli("report", tmp_path / "run")
    assert (status, "has no result yet" in text) == (2, True)
    assert not (tmp_path / "run" / "report").exists()
    cli("merge", tmp_path / "run", "--allow-partial")
    assert cli("report", tmp_path / "run")[0] == 0
    pages = pages_of(tmp_path / "run" / "report")
    assert len(pages) == 13
    for page in pages.values():
        warnings = [text.strip() for _, _, text in page.all("p", "warning")]
        assert warnings == [
            "UNTRAINED NETWORK: random weights, these channels mean nothing",
            "PARTIAL RESULT: only 1 of 2 shards",
        ]
        assert "9 images searched in 1 shard, 1 skipped" in page.text
    assert "This data has no labels to search for." in pages["index.html"].text
    assert "This data has no labels." in pages["mixed/0.html"].text


def test_what_is_not_settled_is_named(tmp_path, tiny_data, cli, ray_cluster):
    flags = [*TINY_FLAGS, "--precision", "bfloat16", "--margin", "0", "--no-settle"]
    assert cli("run", "--data", tiny_data, "--out", tmp_path / "run", *flags)[0] == 0
    doubtful = [one["channel"] for one in json.loads((tmp_path / "run" / "summary.json").read_text())["unsettled"]]
    assert len(doubtful) > 0
    assert cli("report", tmp_path / "run")[0] == 0
    pages = pages_of(tmp_path / "run" / "report")
    known = {row["channel"]: row for row in open_run(str(tmp_path / "run")).channels().to_pylist()}
    for name, page in pages.items():
        [warning] = [text for _, _, text in page.all("p", "warning")]
        assert warning.startswith("NOT SETTLED: " + ", ".join(f"mixed:{channel} top" for channel in doubtful) + ";")
        if name != "index.html":
            channel = int(Path(name).stem)
            marks = [text.strip() for _, _, text in page.all("em", "alarm")]
            assert marks == (["not settled"] if channel in doubtful else [])
            assert f"largest error seen {known[channel]['scan_error']:.2g}" in page.text
    marked = [text.strip() for _, _, text in pages["index.html"].all("em", "alarm")]
    assert len(marked) == len(doubtful)


def test_channels_without_finite_activations_have_their_page(tmp_path, cli, ray_cluster):
    write_tiny_data(tmp_path / "data", shards=1)
    flags = [*TINY_FLAGS, "--model", TINY_NETWORK.replace(":trained", ":dividing"), "--layer", "conv1"]
    assert cli("run", "--data", tmp_path / "data", "--out", tmp_path / "run", *flags, "--channels", "1")[0] == 0
    assert cli("report", tmp_path / "run")[0] == 0
    page = Page(tmp_path / "run" / "report" / "conv1" / "1.html")
    assert "10 images gave NaN or infinity, and are not ranked." in page.text
    assert page.text.count("No image gives a finite activation.") == 2
    assert page.all("img") == []
    assert len(Page(tmp_path / "run" / "report" / "index.html").all("span", "no-picture")) == 1


@pytest.mark.parametrize("top_k", [1, 50])
def test_any_number_of_exemplars_and_a_single_channel(tmp_path, tiny_data, cli, ray_cluster, top_k):
    flags = [*TINY_FLAGS, "--channels", "5", "--top-k", top_k]
    assert cli("run", "--data", tiny_data, "--out", tmp_path / "run", *flags)[0] == 0
    assert cli("report", tmp_path / "run", "--out", tmp_path / "pages")[0] == 0
    pages = pages_of(tmp_path / "pages")
    assert set(pages) == {"index.html", "mixed/5.html"}
    assert len(pages["mixed/5.html"].all("figure", "exemplar")) == top_k
    assert not [one for one in pages["mixed/5.html"].all("a") if "rel" in one[1]]
    side = pictures._THUMBNAIL
    assert Image.open(tmp_path / "pages/tiles/mixed/mean/5.jpg").size == (
        (side,) * 2 if top_k == 1 else (2 * side,) * 2
    )


def test_without_images_there_are_paths_rows_and_numbers_only(run, tmp_path, cli):
    assert cli("report", run, "--out", tmp_path, "--without-images")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "assets", "mixed", "classifier"}
    page = Page(tmp_path / "mixed" / "3.html")
    assert page.all("img") == []
    assert len(page.all("figure", "exemplar")) >= 2 * (4 * 3 + 1)
    assert "This report was made without the images." in page.text
    first = open_run(str(run)).table(layer="mixed", channel=3, statistic="max", sample="top", rank=1).to_pylist()[0]
    assert first["shard"] in page.text
    assert f", row {first['row']}" in page.text
    assert first["image_path"] in page.text


def test_a_result_without_histograms_has_pages_that_say_so(run, tmp_path):
    for path in run.iterdir():
        if path.is_file() and path.name != "histograms.parquet":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    write_report(str(tmp_path))
    page = Page(tmp_path / "report" / "mixed" / "3.html")
    assert page.text.count("This result keeps no histogram; exemplar-ray merge writes it.") == 2
    assert page.all("path", "bars") == []


def test_a_report_is_the_same_whenever_it_is_made(run, report, tmp_path):
    write_report(str(run), str(tmp_path))
    files = {path.relative_to(report): path.read_bytes() for path in report.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_what_came_with_the_data_cannot_become_markup(run, tmp_path):
    hostile = [
        "</title><script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "\u202eevil\u202c \x00 {{ 7 * 7 }}",
    ]
    rewrite(run, tmp_path, hostile)
    write_report(str(tmp_path))
    for page in pages_of(tmp_path / "report").values():
        assert {one[1]["src"] for one in page.all("script")} <= {
            f"{root}assets/{name}.js" for root in ("", "../") for name in ("state", "overview", "channel")
        }
        assert not [one for one in page.elements if any(name.startswith("on") for name in one[1])]
        assert "\x00" not in page.path.read_text()
        assert "49" not in [text.strip() for _, _, text in page.all("bdi")]
    page = Page(tmp_path / "report" / "mixed" / "3.html")
    assert hostile[0] in page.text
    assert hostile[1] in page.text


def rewrite(run, to, names):
    """Copy a run with other class names and paths, as hostile data would have brought them."""
    for path in run.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    plan = json.loads((run / "run.json").read_text())
    plan["class_labels"] = {"names": names, "table": {}}
    plan["spec"]["model_title"] = names[0]
    plan["spec"]["weights_title"] = names[1]
    (to / "run.json").write_text(json.dumps(plan))
    for name in ("exemplars.parquet", "classes.parquet"):
        file = pq.ParquetFile(run / name)
        with pq.ParquetWriter(to / name, file.schema_arrow) as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                for column in {"class_name", "image_path"} & set(table.column_names):
                    texts = [
                        names[i % 3] if column == "image_path" else names[label]
                        for i, label in enumerate(table["label"].to_pylist())
                    ]
                    table = table.set_column(table.column_names.index(column), column, pa.array(texts))
                writer.write_table(table)


def test_folders_of_layers_are_safe_and_no_two_alike():
    layers = [
        "mixed4a",
        "Mixed4a",
        "a/b",
        "a\\b",
        "..",
        "../../etc",
        "assets",
        "Tiles",
        "index.html",
        "é",
        "è",
        "x" * 300,
        "x" * 301,
    ]
    names = folder_names(layers, ["assets", "tiles", "images", "index.html"])
    assert len({name.casefold() for name in names.values()}) == len(layers)
    assert not {name.casefold() for name in names.values()} & {"assets", "tiles", "images", "index.html"}
    for name in names.values():
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,89}", name)
    assert names["mixed4a"] == "mixed4a"


LAYERS = (Layer("a", 8, (4, 4), tuple(range(8))), Layer("b c", 20, None, tuple(range(20))))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": LAYERS},
        {"layers": (Layer("a", 8, (4, 4), tuple(range(8))), Layer("b", 20, None, tuple(range(8))))},
        {"layers": (Layer("a", 8, (4, 4), (0, 3, 4, 5)),), "statistics": ("max", "mean"), "top_k": 3, "margin": 10},
        {"samples": ("top", "bottom", "q99"), "distinct": True, "max_per_class": 2, "class_top_k": 4, "seed": 7},
        {"precision": "bfloat16", "decode": "fast", "margin": 30},
        {"precision": "bfloat16", "decode": "fast", "margin": 0},
        {"model": "my file's.py:factory", "weights": "s3://bucket/a b.pth", "top_k": 50, "margin": 50},
        {"preprocess": Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 232, 224, 1.0, "bicubic")},
    ],
)
def test_the_command_that_stands_on_pages_asks_for_the_same_run(changes):
    import shlex

    spec = resolved(**changes)
    shards = [Shard(f"train-{i}.parquet", f"/data dir/train-{i}.parquet", 1) for i in range(2)]
    program, *arguments = shlex.split(command_of(Plan(spec, shards, ClassLabels(), {}), "s3://out/a run"))
    assert program == "exemplar-ray"
    asked = settings_of(build_parser().parse_args(arguments))
    assert asked["data"] == [shard.uri for shard in shards]
    assert asked["out"] == "s3://out/a run"
    again = pick(RunSpec, asked)
    assert set(again.layer) == {layer.name for layer in spec.layers}
    for layer in spec.layers:
        from exemplar_ray.network.layers import parse_channels

        assert parse_channels(again.channels, max(layer.channel_count, 0)) == layer.channels
    from exemplar_ray.exemplars.spec import margin_of

    assert margin_of(again) == spec.margin
    assert Preprocess.of(None, again.preprocess) == spec.network.preprocess
    assert again.statistic == spec.statistics
    assert again.sample == spec.samples
    assert (again.model, again.weights) == (spec.network.model, spec.network.weights)
    for name in ("top_k", "distinct", "max_per_class", "class_top_k", "seed", "precision", "decode"):
        assert getattr(again, name) == getattr(spec, name), name


def test_the_command_has_one_word_for_many_shards():
    shards = [Shard(f"train-{i:05d}.parquet", f"s3://data/train-{i:05d}.parquet", 1) for i in range(294)]
    command = command_of(Plan(resolved(), shards, ClassLabels(), {}), "run")
    assert (
        "--data 's3://data/train-00*.parquet' --out run --model inceptionv1 --weights random:0 --layer mixed4a"
        in command
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-100, 100, width=32), st.sampled_from([0.0, 0.5, 20.0]), st.integers(1, 10**6)), min_size=1
    ),
    st.floats(-100, 100, width=32),
)
def test_a_histogram_keeps_its_images_and_marks_exemplars_where_they_are(bins, activation):
    low, width, images = (np.array(column) for column in zip(*bins, strict=True))
    high = low + width
    chart = histogram_chart(low, high, images, {"top": [activation], "bottom": []})
    assert chart.images == images.sum()
    assert chart.lowest <= min(low.min(), activation)
    assert chart.highest >= max(high.max(), activation)
    edges = np.linspace(chart.lowest, chart.highest, BARS + 1)
    counts = _in_bars(low, high, images, edges)
    assert counts.sum() == pytest.approx(images.sum())
    heights = [HEIGHT - float(y) for y in re.findall(r"V([\d.]+)H", chart.outline)]
    assert heights == pytest.approx((np.log1p(counts) * HEIGHT / np.log1p(counts.max())).tolist(), abs=0.06)
    [(name, path)] = chart.marks
    x = WIDTH * (activation - chart.lowest) / (chart.highest - chart.lowest)
    assert (name, float(path[1:].split()[0])) == ("top", pytest.approx(x, abs=0.051))
    for place, text in chart.y_ticks:
        assert HEIGHT - place == pytest.approx(
            np.log1p(int(text.replace(",", ""))) * HEIGHT / np.log1p(counts.max()), abs=0.06
        )


def test_half_of_a_bin_that_reaches_into_two_bars_is_in_each():
    counts = _in_bars(np.array([0.5, 3.0]), np.array([1.5, 3.0]), np.array([10, 4]), np.linspace(0, 3, 4))
    assert counts.tolist() == [5, 5, 4]


@settings(max_examples=200, deadline=None)
@given(st.floats(-1000, 1000), st.floats(1e-6, 1e6))
def test_axes_have_a_few_round_values(widths, width):
    lowest = widths * width
    values = round_values(lowest, lowest + width)
    assert 2 <= len(values) <= 6
    steps = np.diff(values)
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3)
    slack = 1e-6 * width + 1e-11 * abs(lowest)
    assert lowest - slack <= values[0] < values[-1] <= lowest + width + slack


FRAMING = Framing.of(128, 200, Preprocess((0, 0, 0), resize=64, crop=56))


def overlay(values, field):
    values = np.array(values, np.float32)
    row = {"activation_map": values.reshape(-1).tolist(), "map_height": len(values), "map_width": values.shape[1]}
    layer = Layer("layer", 1, values.shape, (0,), field)
    return map_overlay(row, layer, FRAMING)


def test_units_of_a_map_stand_in_the_middle_of_their_fields():
    import base64

    # The middles of 3 units are at 4, 20 and 36 of 56 pixels: up to the crop's end, a unit more is wanted.
    made = overlay(np.arange(9).reshape(3, 3), ReceptiveField(Axis(-6, 20, 16), Axis(-6, 20, 16)))
    assert (made.width, made.height) == (4, 4)
    levels = np.frombuffer(base64.b64decode(made.levels), np.uint8).reshape(made.height, made.width)
    cell = (made.box[2] - made.box[0]) / made.width
    for unit in range(3):
        middle = FRAMING.to_original((4 + 16 * unit, 4 + 16 * unit, 56, 56))[:2]
        place = [(middle[axis] - made.box[axis]) / cell - 0.5 for axis in (0, 1)]
        assert place == pytest.approx([round(place[0]), round(place[1])], abs=1e-6)
        assert levels[round(place[1]), round(place[0])] == round(255 * (4 * unit) / 8)
    view = FRAMING.view_box
    assert made.box[0] <= view[0]
    assert made.box[1] <= view[1]
    assert made.box[2] >= view[2]
    assert made.box[3] >= view[3]


def test_maps_whose_units_see_everything_or_who_knows_what_are_spread_over_the_crop():
    for field in (None, ReceptiveField(None, None)):
        made = overlay([[1, 2], [3, 4]], field)
        assert (made.box, made.width, made.height) == (FRAMING.view_box, 2, 2)


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([[0, 1], [2, 4]], [0, 64, 128, 255]),
        ([[-1, 0], [1, 3]], [0, 64, 128, 255]),  # before a ReLU
        ([[-4, -3], [-2, -1]], [0, 85, 170, 255]),
        ([[1, 2], [3, 4]], [64, 128, 191, 255]),  # dark means 0, not the weakest unit
        ([[0, 0], [0, 0]], [0, 0, 0, 0]),
        ([[0, 0], [0, math.inf]], [0, 0, 0, 255]),
    ],
)
def test_brightness_runs_from_0_or_the_lowest_to_the_highest(values, levels):
    import base64

    assert list(base64.b64decode(overlay(values, None).levels)) == levels


def awkward(kind):
    """An image that a browser would not show as the network saw it, or that is too large."""
    picture = random_picture(1, 300, 200)
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        return encode(picture, "JPEG", exif=exif.tobytes())
    if kind == "transparent":
        picture.putalpha(0)
        return encode(picture, "PNG")
    if kind == "animated":
        return encode(picture, "GIF", save_all=True, append_images=[random_picture(2, 300, 200)])
    if kind == "large":
        return encode(random_picture(1, 1300, 900), "PNG")
    if kind == "heavy":
        noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
        return encode(noise, "PNG")
    return encode(picture.convert({"cmyk": "CMYK", "palette": "P"}[kind]), "TIFF" if kind == "cmyk" else "PNG")


@pytest.mark.parametrize("kind", ["turned", "transparent", "animated", "large", "heavy", "cmyk", "palette"])
def test_what_a_browser_would_show_otherwise_is_encoded_anew(kind, tmp_path):
    from exemplar_ray.data.decode import decode

    data = awkward(kind)
    with ReportWriter(Folder(str(tmp_path))) as writer:
        made = Pictures(writer)
        made.add("shard", 3, data)
        made.add("other", 4, data)
    assert made.get("shard", 3) == made.get("other", 4)
    assert made.get("shard", 5) is None
    picture = made.get("shard", 3)
    assert picture.encoded_anew
    assert picture.reduced == (kind == "large")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / picture.name]
    original, shown = decode(data), Image.open(tmp_path / picture.name)
    assert (picture.width, picture.height) == original.size
    assert (shown.format, shown.mode) == ("JPEG", "RGB")
    assert max(shown.size) == min(max(original.size), 640)
    # JPEG changes single pixels, not what the picture shows.
    small = [np.asarray(one.resize((12, 8), Image.Resampling.BOX), np.float64) for one in (original, shown)]
    assert np.abs(small[0] - small[1]).mean() < 2


def test_images_of_an_earlier_report_are_not_left_in_one_without(run, tmp_path, cli):
    assert cli("report", run, "--out", tmp_path)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status, text = cli("report", run, "--out", tmp_path, "--without-images")
    assert status == 2
    assert "has the images of an earlier report" in text
    assert len(text.strip().splitlines()) == 1
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_file_that_cannot_be_written_ends_the_report(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "taken").write_text("")
    with pytest.raises(OSError, match="taken"), ReportWriter(Folder(str(tmp_path / "report"))) as writer:
        writer.write("taken/file", b"")

    def broken():
        raise ValueError("no picture")

    with pytest.raises(ValueError, match="no picture"), ReportWriter(Folder(str(tmp_path))) as writer:
        writer.write("file", broken)


def test_reading_and_writing_need_neither_torch_nor_ray(run, tmp_path):
    program = "from exemplar_ray.cli import main; sys.exit(main(sys.argv[1:]))"
    printed = python_without("ray torch torchvision lucent datasets", program, "report", run, "--out", tmp_path)
    assert f"pages: {tmp_path}/index.html" in printed.replace("\n", "")


def test_an_installed_wheel_brings_templates_style_and_scripts(tmp_path):
    """What `pip install` of the project puts in place."""
    import shutil

    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, tmp_path / name)
    shutil.copytree(PROJECT / "exemplar_ray", tmp_path / "exemplar_ray")
    line = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
        tmp_path,
    ]
    subprocess.run(line, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("templates", "static"):
        files = [path for path in (PROJECT / "exemplar_ray" / "report" / folder).rglob("*") if path.is_file()]
        assert files
        assert {path.relative_to(PROJECT).as_posix() for path in files} <= inside
