"""The figure for papers: the right picture in the right place, and what the file says of itself."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY_FLAGS, TINY_NETWORK, write_tiny_data
from PIL import Image
from pypdf import PdfReader

from exemplar_ray import open_run
from exemplar_ray.cli import main
from exemplar_ray.data.decode import decode_and_crop
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.report import figure
from exemplar_ray.runs.manifest import RUN
from exemplar_ray.runs.run_folder import SUMMARY, RunFolder

pytestmark = pytest.mark.usefixtures("ray_cluster")

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("figure")
    write_tiny_data(folder / "data")
    flags = [*TINY_FLAGS, "--channels", "0-3,7,9-11", "--sample", "bottom"]
    assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *flags]) == 0
    made = ["--channels", "0-3", "--negative", "--size", "32", "--steps", "2"]
    assert main(["visualize", str(folder / "run"), *made]) == 0
    return folder / "run"


def seen_by_the_network(run, channels, ranks):
    """[channel][rank]: uint8 [32, 32, 3]."""
    preprocess = Plan.read(RunFolder(str(run))).spec.network.preprocess
    rows = {(r["channel"], r["rank"]): r for r in pq.read_table(run / "exemplars.parquet").to_pylist() if r["image"]}
    return [[decode_and_crop(rows[c, rank]["image"]["bytes"], preprocess) for rank in ranks] for c in channels]


def test_pictures_lie_where_their_channel_and_rank_are(run, tmp_path, cli):
    assert cli("report", run, "--figure", "mixed:2,9-10", "--out", tmp_path / "figure.png") == (
        0,
        f"figure: {tmp_path / 'figure.png'}\n",
    )
    with Image.open(tmp_path / "figure.png") as image:
        pixels = np.asarray(image.convert("RGB"))
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    side = figure._picture_side(3)
    assert pixels.shape[:2] == (3 * side + 2 * figure._GAP, figure._LABELS + 3 * side + 2 * figure._GAP)
    for i, of_channel in enumerate(seen_by_the_network(run, (2, 9, 10), (1, 2, 3))):
        for j, seen in enumerate(of_channel):
            y, x = i * (side + figure._GAP), figure._LABELS + j * (side + figure._GAP)
            expected = np.asarray(Image.fromarray(seen).resize((side, side), Image.Resampling.LANCZOS))
            np.testing.assert_array_equal(pixels[y : y + side, x : x + side], expected)


def made_of(run, channel):
    """A channel's visualisations: {objective: its row}."""
    rows = pq.read_table(run / "visualizations" / "visualizations.parquet").to_pylist()
    return {row["objective"]: row for row in rows if row["channel"] == channel}


def pixels_of(row):
    """uint8 [size, size, 3]"""
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


def test_visualisations_are_the_first_column_and_all_else_moves_aside(run, tmp_path, cli):
    flags = ["--figure", "mixed:0,2", "--ranks", "1-2", "--with", "visualization", "--out", tmp_path / "figure.png"]
    assert cli("report", run, *flags)[0] == 0
    with Image.open(tmp_path / "figure.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    side = figure._picture_side(3)
    left = figure._LABELS + side + 2 * figure._GAP
    for i, (channel, of_channel) in enumerate(zip((0, 2), seen_by_the_network(run, (0, 2), (1, 2)), strict=True)):
        y = i * (side + figure._GAP)
        places = [figure._LABELS, left, left + side + figure._GAP]
        for x, seen in zip(places, [pixels_of(made_of(run, channel)["channel"]), *of_channel], strict=True):
            expected = np.asarray(Image.fromarray(seen).resize((side, side), Image.Resampling.LANCZOS))
            np.testing.assert_array_equal(pixels[y : y + side, x : x + side], expected)
    assert pixels.shape[1] == places[-1] + side


def darkened_by_hand(seen, row):
    """The pages' map view of a crop of 32 pixels, whose units are centred on every other pixel from 0.5 on."""
    values = np.array(row["activation_map"], np.float64).reshape(16, 16)
    lowest = min(0.0, values.min())
    share = (values - lowest) / (values.max() - lowest)
    place = np.clip(np.arange(32) / 2, 0, 15)
    along = [np.interp(place, np.arange(16), line) for line in share]
    share = np.stack([np.interp(place, np.arange(16), line) for line in np.transpose(along)], axis=1)
    return seen * (1 - 0.75 * (1 - share))[:, :, None]


def pictures_and_texts(path):
    """What stands in an SVG, in the order of drawing: pictures as uint8 arrays with their (x, y), and texts."""
    root = ElementTree.parse(path).getroot()
    pictures = []
    for image in root.iter(f"{SVG}image"):
        [data] = [value for key, value in image.attrib.items() if key.endswith("href")]
        matrix = re.fullmatch(r"matrix\((.*)\)", image.get("transform"))[1].split()
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB"))
        pictures.append((pixels, tuple(map(float, matrix[4:]))))
    return pictures, [text.text for text in root.iter(f"{SVG}text")]


def test_the_figure_of_a_neuron_is_its_visualisations_then_each_exemplar_beside_its_map(run, tmp_path, cli):
    flags = ["--figure", "mixed:3", "--with", "visualization,maps", "--captions", "--out", tmp_path / "neuron.svg"]
    assert cli("report", run, *flags)[0] == 0
    made, rows = made_of(run, 3), open_run(str(run)).exemplars(channel=3, sample="top")
    pictures, texts = pictures_and_texts(tmp_path / "neuron.svg")
    [seen] = seen_by_the_network(run, (3,), (1, 2, 3))
    expected = [pixels_of(made["channel"]), pixels_of(made["channel-"])]
    for crop, row in zip(seen, rows, strict=True):
        expected += [crop, darkened_by_hand(crop, row)]
    for (pixels, _), wanted in zip(pictures, expected, strict=True):
        # A map has 256 levels.
        assert np.abs(pixels - wanted.astype(np.float64)).max() <= (1.5 if wanted.dtype == np.float64 else 0)
    (first, negative, *exemplars) = [place for _, place in pictures]
    assert first == pytest.approx((0, 0), abs=1e-3)
    assert first[1] < negative[1] < exemplars[0][1]
    assert len({round(y, 3) for _, y in exemplars}) == 1
    across = [x for x, _ in exemplars]
    assert across == sorted(across)
    # A map is closer to its exemplar than to the next.
    assert across[1] - across[0] < across[2] - across[1]
    said = " ".join(texts)
    worth = made["channel"]
    for part in ("mixed:3", f"activation {worth['activation']:.4g}", "once moved and turned", "What it says no to"):
        assert part in said
    assert f"{worth['ratio_to_top']:.1f} times" in said or "% of the strongest image" in said
    for row in rows:
        assert f"{row['rank']}: {row['activation']:.4g}, {row['class_name']}" in said
    says, _ = described(run, tmp_path, cli, "--figure", "mixed:3", "--with", "visualization,maps")
    for of_file in says.values():
        assert "with: visualization, maps" in of_file
        assert "visualisations: channel, fourier, 32 pixels, 2 steps, seed 0" in of_file


def test_the_figure_of_a_neuron_with_maps_only_or_visualisations_only(run, tmp_path, cli):
    for extras, pictures in (("maps", 3 * 2), ("visualization", 2 + 3)):
        flags = ["--figure", "mixed:3", "--with", extras, "--out", tmp_path / "neuron.svg"]
        assert cli("report", run, *flags)[0] == 0
        assert len(pictures_and_texts(tmp_path / "neuron.svg")[0]) == pictures


def points(pixels):
    """A length in points, 72 an inch."""
    return pixels * 72 / figure.DPI


def test_pdf_and_svg_hold_every_pixel_and_text_as_text(run, tmp_path, cli):
    flags = ["--figure", "mixed:9,11", "--ranks", "2-3", "--captions"]
    for ending in ("pdf", "svg"):
        assert cli("report", run, "--out", tmp_path / f"figure.{ending}", *flags)[0] == 0
    expected = [seen for of_channel in seen_by_the_network(run, (9, 11), (2, 3)) for seen in of_channel]

    root = ElementTree.parse(tmp_path / "figure.svg").getroot()
    places = []
    for image, seen in zip(root.iter(f"{SVG}image"), expected, strict=True):
        [data] = [value for key, value in image.attrib.items() if key.endswith("href")]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB"))
        np.testing.assert_array_equal(pixels, seen)
        scale_x, _, _, scale_y, x, y = map(float, re.fullmatch(r"matrix\((.*)\)", image.get("transform"))[1].split())
        assert scale_x * 32 == scale_y * 32 == pytest.approx(points(figure._picture_side(2)), abs=1e-3)
        places.append((y, x))
    step = figure._picture_side(2) + figure._GAP
    lines = (0, points(step + figure._CAPTION))
    columns = (points(figure._LABELS), points(figure._LABELS + step))
    assert places == [pytest.approx((y, x), abs=0.01) for y in lines for x in columns]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"9", "11"} < set(texts) <= {"9", "11", "tench", "goldfish", "great white shark"}
    assert len(texts) == 2 + 4

    [page] = PdfReader(tmp_path / "figure.pdf").pages
    pictures = {image.name.split(".")[0]: image.image for image in page.images}
    drawn = re.findall(rb"(\S+) 0 0 -(\S+) 0 \S+ cm /(I\d+) Do", page.get_contents().get_data())
    for (width, height, name), seen in zip(drawn, expected, strict=True):
        assert float(width) == float(height) == pytest.approx(points(figure._picture_side(2)))
        # Stored upside down, and turned when it is drawn.
        np.testing.assert_array_equal(np.asarray(pictures[name.decode()].convert("RGB"))[::-1], seen)
    words = page.extract_text().split()
    assert {"9", "11"} < set(words)
    fonts = [font.get_object() for font in page["/Resources"]["/Font"].values()]
    described = [font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font for font in fonts]
    assert all("/FontFile2" in font["/FontDescriptor"] for font in described)  # TrueType, embedded
    assert not any(font["/Subtype"] == "/Type3" for font in fonts)


def described(run, tmp_path, cli, *flags):
    """{ending: what the file says of itself}; and the texts that stand in the picture."""
    tmp_path.mkdir(exist_ok=True)
    for ending in ("png", "pdf", "svg"):
        assert cli("report", run, "--out", tmp_path / f"f.{ending}", *flags)[0] == 0
    root = ElementTree.parse(tmp_path / "f.svg").getroot()
    with Image.open(tmp_path / "f.png") as image:
        of_png = " ".join(str(value) for value in image.text.values())
    says = {
        "png": of_png,
        "pdf": " ".join(PdfReader(tmp_path / "f.pdf").metadata.values()),
        "svg": " ".join(root.find(f"{SVG}metadata").itertext()),
    }
    return says, [text.text for text in root.iter(f"{SVG}text")]


def test_the_file_says_where_its_pictures_come_from(run, tmp_path, cli):
    says, texts = described(run, tmp_path, cli, "--figure", "mixed:0-2,7")
    weights = Plan.read(RunFolder(str(run))).spec.network.weights_sha256
    for of_file in says.values():
        for part in ("tiny_network:trained", weights, "mixed", "0-2,7", "mean", "sample: top", "ranks from left"):
            assert part in of_file
        assert "80 images in 8 shards, 0 skipped" in of_file
        assert "every top 3 is settled" in of_file
        assert "UNTRAINED" not in of_file
        assert "PARTIAL" not in of_file
        assert str(run.parent) not in of_file
    assert texts == ["0", "1", "2", "7"]


def test_untrained_and_partial_stand_in_the_picture(tmp_path, cli):
    write_tiny_data(tmp_path / "data", shards=2)
    (tmp_path / "data" / "train-00001-of-00002.parquet").write_bytes(b"broken")
    flags = [*TINY_FLAGS, "--model", TINY_NETWORK.replace(":trained", ":untrained"), "--weights", "random:3"]
    assert cli("run", "--data", tmp_path / "data", "--out", tmp_path / "run", *flags, "--retries", "0")[0] == 1
    status, text = cli("report", tmp_path / "run", "--figure", "mixed:0", "--out", tmp_path / "figure.png")
    assert (status, "has no result yet" in text) == (2, True)
    cli("merge", tmp_path / "run", "--allow-partial")
    says, texts = described(tmp_path / "run", tmp_path, cli, "--figure", "mixed:0")
    assert texts == ["UNTRAINED NETWORK", "PARTIAL: only 1 of 2 shards", "0"]
    _, texts = described(tmp_path / "run", tmp_path / "neuron", cli, "--figure", "mixed:0", "--with", "maps")
    assert texts[:3] == ["UNTRAINED NETWORK", "PARTIAL: only 1 of 2 shards", "mixed:0"]
    for of_file in says.values():
        assert "UNTRAINED" in of_file
        assert "PARTIAL: only 1 of 2 shards" in of_file
        assert "10 images in 1 shards" in of_file
    alarm = tuple(int(figure.ALARM[i : i + 2], 16) for i in (1, 3, 5))
    with Image.open(tmp_path / "f.png") as image:
        top = np.asarray(image.convert("RGB"))[: 2 * figure.WARNING]
    inked = np.argwhere((top == alarm).all(axis=2))
    assert len(inked) > 500
    assert inked.max(axis=0)[1] < top.shape[1] - 10  # not cut off at the edge


def test_rankings_in_doubt_say_so(run, tmp_path, cli):
    shutil.copytree(run, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / SUMMARY).read_text())
    doubt = {"layer": "mixed", "statistic": "mean", "channel": 2, "sample": "top"}
    summary["unsettled"] = [doubt, {**doubt, "channel": 3, "sample": "bottom"}]
    (tmp_path / "run" / SUMMARY).write_text(json.dumps(summary))
    says, texts = described(tmp_path / "run", tmp_path, cli, "--figure", "mixed:1-3")
    assert texts == ["1", "2", "not settled", "3"]
    _, texts = described(tmp_path / "run", tmp_path, cli, "--figure", "mixed:2", "--with", "maps")
    assert any("not settled" in text for text in texts)
    assert "NOT SETTLED" in says["pdf"]


def test_channels_without_finite_activations_are_still_there(tmp_path, cli):
    write_tiny_data(tmp_path / "data", shards=1)
    flags = [*TINY_FLAGS, "--model", TINY_NETWORK.replace(":trained", ":dividing"), "--layer", "conv1"]
    status, text = cli("run", "--data", tmp_path / "data", "--out", tmp_path / "run", *flags, "--channels", "1")
    assert status == 0
    assert "NaN or infinite activations on 1 channels" in text
    assert json.loads((tmp_path / "run" / SUMMARY).read_text())["exemplars"] == 0
    assert described(tmp_path / "run", tmp_path, cli, "--figure", "conv1:all")[1] == ["1", "no exemplar"]
    assert "no exemplar" in described(tmp_path / "run", tmp_path, cli, "--figure", "conv1:all", "--with", "maps")[1]


def test_equal_figures_are_equal_bytes(run, tmp_path):
    """Also in another process, later, under another name."""
    draw = (
        "import sys; from exemplar_ray.report.figure import FigureOptions, write_figure\n"
        "for ending in ('.pdf', '.png', '.svg'):\n"
        "    options = FigureOptions(sample='bottom', captions=True)\n"
        "    write_figure(sys.argv[1], 'mixed:0-3', sys.argv[2] + ending, options)\n"
        "    options = FigureOptions(extras=('visualization', 'maps'))\n"
        "    write_figure(sys.argv[1], 'mixed:3', sys.argv[2] + '-neuron' + ending, options)"
    )
    for ending in figure.ENDINGS:
        options = figure.FigureOptions(sample="bottom", captions=True)
        figure.write_figure(str(run), "mixed:0-3", f"{tmp_path}/one{ending}", options)
        options = figure.FigureOptions(extras=("visualization", "maps"))
        figure.write_figure(str(run), "mixed:3", f"{tmp_path}/one-neuron{ending}", options)
    subprocess.run([sys.executable, "-c", draw, str(run), f"{tmp_path}/two"], check=True)
    for ending in figure.ENDINGS:
        for kind in ("", "-neuron"):
            one, two = ((tmp_path / f"{name}{kind}{ending}").read_bytes() for name in ("one", "two"))
            assert one == two, (kind, ending)


def test_captions_are_texts_whatever_stands_in_them(run, tmp_path, cli):
    shutil.copytree(run, tmp_path / "run")
    table = pq.read_table(run / "exemplars.parquet")
    names = ["<b>$x_1$ &amp;", "two\nlines\x07", "a very long name that does not fit below a small picture at all"]
    by_rank = pa.array([names[rank - 1] for rank in table["rank"].to_pylist()])
    table = table.set_column(table.column_names.index("class_name"), "class_name", by_rank)
    pq.write_table(table, tmp_path / "run" / "exemplars.parquet")
    _, texts = described(tmp_path / "run", tmp_path, cli, "--figure", "mixed:0", "--captions")
    *short, long = texts[1:]
    assert short == ["<b>$x_1$ &amp;", "two lines�"]
    assert re.fullmatch(r"a very long name.*\.\.\.", long)
    assert len(long) < len(names[2])


def test_characters_that_the_font_lacks_are_named(run, tmp_path, cli):
    shutil.copytree(run, tmp_path / "run")
    table = pq.read_table(run / "exemplars.parquet")
    names = pa.array(["秋田犬 Größe"] * len(table))
    table = table.set_column(table.column_names.index("class_name"), "class_name", names)
    pq.write_table(table, tmp_path / "run" / "exemplars.parquet")
    flags = ["report", tmp_path / "run", "--figure", "mixed:0", "--captions", "--out"]
    status, text = cli(*flags, tmp_path / "figure.pdf")
    assert status == 0
    assert "boxes stand for characters that the font lacks: 犬田秋; an .svg shows them" in text
    assert cli(*flags, tmp_path / "figure.svg") == (0, f"figure: {tmp_path / 'figure.svg'}\n")
    assert "秋田犬 Größe" in (tmp_path / "figure.svg").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--figure", "mixd:0"], "no layer 'mixd'; did you mean 'mixed'?"),
        (["--figure", "mixed"], "LAYER:CHANNELS, such as mixed:0-9, not 'mixed'"),
        (["--figure", "mixed:12"], "channel 12 is out of range"),
        (["--figure", "mixed:3-8"], "no channel 4-6,8 of mixed; it has 0-3,7,9-11"),
        (["--figure", "mixed:x"], "not 'x'"),
        (["--figure", "mixed:0", "--ranks", "0-2"], "from 1 to 3, not '0-2'"),
        (["--figure", "mixed:0", "--ranks", "2-4"], "from 1 to 3, not '2-4'"),
        (["--figure", "mixed:0", "--ranks", "3-1"], "not '3-1'"),
        (["--figure", "mixed:0", "--statistic", "max"], "no statistic 'max'; did you mean 'mean'?"),
        (["--figure", "mixed:0", "--sample", "random"], "no sample 'random'"),
        (["--figure", "mixed:0", "--out", "figure.gif"], "a .pdf, .png or .svg file, not 'figure.gif'"),
        (["--figure", "mixed:0", "--out", "hf://datasets/user/name/figure.pdf"], "not written"),
        (["--figure", "mixed:0", "--without-images"], "leave out --without-images"),
        (["--captions"], "--captions is of a figure"),
        (["--figure", "mixed:0", "--with", "map"], "drawn with visualization or maps, not 'map'; did you mean 'maps'?"),
        (["--figure", "mixed:0-1", "--with", "maps"], "beside the exemplars of one channel, such as mixed:0, not of 2"),
        (["--figure", "mixed:2-3,9-10", "--with", "visualization"], "no visualisation of mixed:9-10"),
        (["--with", "maps"], "--with is of a figure"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(run, tmp_path, cli, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    status, text = cli("report", run, *([] if "--out" in flags else ["--out", "figure.png"]), *flags)
    assert status == 2
    assert said in text
    assert not list(tmp_path.iterdir())


def test_what_a_run_has_no_pictures_of_is_said(run, tmp_path, cli):
    flags = ["--figure", "mixed:0", "--out", tmp_path / "figure.png", "--with"]
    summary = "visualizations/summary.json"
    shutil.copytree(run, tmp_path / "run")
    values = json.loads((run / summary).read_text())
    for change, said in (
        ({"statistic": "max"}, "are made for max, not mean; choose --statistic max"),
        # Of an earlier result.
        ({"of_run": "0" * 64}, "has no visualisations; exemplar-ray visualize"),
    ):
        (tmp_path / "run" / summary).write_text(json.dumps({**values, **change}))
        status, text = cli("report", tmp_path / "run", *flags, "visualization")
        assert (status, said in text, text.count("\n")) == (2, True, 1), text
    plan = json.loads((tmp_path / "run" / RUN).read_text())
    plan["spec"]["layers"][0]["map_size"] = None
    (tmp_path / "run" / RUN).write_text(json.dumps(plan))
    values = json.loads((run / SUMMARY).read_text())
    values["fingerprint"] = Plan.read(RunFolder(str(tmp_path / "run"))).fingerprint
    (tmp_path / "run" / SUMMARY).write_text(json.dumps(values))
    status, text = cli("report", tmp_path / "run", *flags, "maps")
    assert (status, "the channels of mixed have no activation maps; leave out maps" in text) == (2, True), text
    assert not (tmp_path / "figure.png").exists()


def test_a_figure_needs_a_file(run, cli):
    assert cli("report", run, "--figure", "mixed:0") == (
        2,
        "exemplar-ray: error: --out is missing: the figure's file, such as figure.pdf\n",
    )


def test_a_figure_goes_to_an_object_store(run, cli):
    memory = fsspec.filesystem("memory")
    try:
        assert cli("report", run, "--figure", "mixed:0", "--out", "memory://bucket/figures/one.pdf")[0] == 0
        assert memory.cat_file("/bucket/figures/one.pdf").startswith(b"%PDF")
    finally:
        memory.rm("/bucket", recursive=True)


def test_no_more_is_drawn_than_a_page_holds(run, tmp_path, cli):
    shutil.copytree(run, tmp_path / "run")
    plan = json.loads((tmp_path / "run" / RUN).read_text())
    plan["spec"]["layers"][0].update(channel_count=200, channels="0-199")
    plan["spec"]["top_k"] = 50
    (tmp_path / "run" / RUN).write_text(json.dumps(plan))
    summary = json.loads((tmp_path / "run" / SUMMARY).read_text())
    summary["fingerprint"] = Plan.read(RunFolder(str(tmp_path / "run"))).fingerprint
    (tmp_path / "run" / SUMMARY).write_text(json.dumps(summary))
    for flags, said in (
        (["mixed:all"], "at most 100 channels, not 200"),
        (["mixed:0", "--ranks", "1-40"], "40 pictures side by side are too small"),
        (["mixed:0-1", "--ranks", "1-30", "--with", "visualization"], "31 pictures side by side are too small"),
    ):
        status, text = cli("report", tmp_path / "run", "--out", tmp_path / "figure.pdf", "--figure", *flags)
        assert (status, said in text) == (2, True)
    assert (
        cli("report", tmp_path / "run", "--out", tmp_path / "f.pdf", "--figure", "mixed:0", "--ranks", "1-20")[0] == 0
    )
