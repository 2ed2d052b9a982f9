"""The files of a map's page: everything of every point, nothing from outside, the same bytes each time."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from planted_map import GROUPS, colour_of, planted_map, synset, thumbnails

from exemplar_ray.errors import UsageError
from exemplar_ray.report import map_page
from exemplar_ray.report.map_page import NONE, stride_of, write_map_page
from exemplar_ray.report.map_points import Categories, Score, StrongestChannels, Values, categories_of_labels

COUNT = 3000


@pytest.fixture(scope="module")
def points():
    return planted_map(COUNT)


@pytest.fixture(scope="module")
def page(tmp_path_factory, points):
    folder = tmp_path_factory.mktemp("map") / "map"
    assert write_map_page(str(folder), replace(points, thumbnails=thumbnails(COUNT))) == f"{folder}/index.html"
    return folder


def handed_over(page, name):
    """What a script hands over."""
    [(known, value)] = re.findall(r'^mapData\("([^"]+)",(.*)\);\n$', (page / f"data/{name}.js").read_text("ascii"))
    assert known == name
    return json.loads(value)


def array_of(page, name, width=1):
    """All parts of an array, in the order of rows."""
    parts = sorted(page.glob(f"data/{name}-*.js"), key=lambda path: int(path.stem.split("-")[1]))
    assert [path.stem for path in parts] == [f"{name}-{part}" for part in range(len(parts))]
    drawn = b"".join(base64.b64decode(handed_over(page, path.stem), validate=True) for path in parts)
    index = handed_over(page, "index")
    by_row = np.empty((index["points"], width), np.uint16)
    by_row[np.arange(index["points"]) * index["stride"] % index["points"]] = np.frombuffer(drawn, "<u2").reshape(
        -1, width
    )
    return by_row if width > 1 else by_row[:, 0]


def test_every_points_place_is_there(page, points):
    places = array_of(page, "xy", 2) / NONE
    both = np.stack([points.x, points.y], axis=1).astype(np.float64)
    extent = np.ptp(both, axis=0).max()
    middle = (both.max(axis=0) + both.min(axis=0)) / 2
    assert np.abs((places - 0.5) * extent + middle - both).max() <= extent / NONE / 2 * 1.0001
    assert places.min() == 0
    assert places.max() == 1


def test_every_points_category_and_value_is_there(page, points):
    said = handed_over(page, "index")["colourings"]
    assert [one["name"] for one in said] == ["class", "cluster", "mixed:3"]
    classes, clusters, values = points.colourings.values()
    for number, given in enumerate((classes, clusters)):
        assert (array_of(page, f"c{number}") == np.where(given.codes < 0, NONE, given.codes)).all()
        assert said[number]["counts"] == [int((given.codes == code).sum()) for code in range(len(given.names))]
        assert said[number]["ofNone"] == (given.codes < 0).sum() > 0
    codes = array_of(page, "c2")
    known = np.isfinite(values.values)
    assert ((codes == NONE) == ~known).all()
    low, high = said[2]["low"], said[2]["high"]
    shown = low + codes[known] / (NONE - 1) * (high - low)
    assert np.abs(shown - values.values[known]).max() <= (high - low) / (NONE - 1) / 2 * 1.0001
    inside = (values.values[known] >= said[2]["ends"][0]) & (values.values[known] <= said[2]["ends"][1])
    assert inside.mean() == pytest.approx(0.99, abs=0.002)
    assert said[2]["unknown"] == (~known).sum()


def test_every_points_strongest_channels_are_there(page, points):
    assert (array_of(page, "top", 3) == points.channels.channels).all()
    said = handed_over(page, "index")["channels"]
    assert said["among"] == [int((points.channels.channels == channel).sum()) for channel in range(10)]
    assert said["pages"][9] is None


def test_every_row_is_there(page, points):
    given = points.ids.to_pylist()
    for sheet in range(3):
        rows = handed_over(page, f"rows-{sheet}")
        for at, row in enumerate(given[1024 * sheet : 1024 * (sheet + 1)]):
            assert rows["texts"][rows["shard"][at]] == row["shard"]
            assert (rows["row"][at], rows["path"][at], rows["label"][at]) == (
                row["row"],
                row["image_path"],
                row["label"],
            )
            assert rows["texts"][rows["synset"][at]] == (row["synset_id"] or "")
            assert rows["texts"][rows["class"][at]] == (row["class_name"] or "")
    assert not (page / "data/rows-3.js").exists()


def test_every_thumbnail_is_where_it_belongs(page):
    said = handed_over(page, "index")["thumbnails"]
    assert said == {"side": 32, "beside": 32, "sheets": [0, 1, 2]}
    for sheet in said["sheets"]:
        pixels = np.asarray(Image.open(page / f"thumbnails/{sheet}.jpg"), np.int16)
        middles = pixels[16::32, 16::32]
        for at in range(1024):
            row = 1024 * sheet + at
            expected = colour_of(row) if row < COUNT else np.full(3, 128)
            assert np.abs(middles[divmod(at, 32)] - expected.astype(np.int16)).max() <= 4, row


def test_thumbnails_come_as_jpegs_too_and_may_be_missing(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, "JPEG")
    write_map_page(str(tmp_path), planted_map(2100, thumbnails=[(5, file.getvalue()), (2050, file.getvalue())]))
    assert handed_over(tmp_path, "index")["thumbnails"] == {"side": 64, "beside": 32, "sheets": [0, 2]}
    assert sorted(path.name for path in (tmp_path / "thumbnails").iterdir()) == ["0.jpg", "2.jpg"]
    pixels = np.asarray(Image.open(tmp_path / "thumbnails/2.jpg"), np.int16)
    assert np.abs(pixels[32 + 64 * 0, 2 * 64 + 32] - [200, 30, 30]).max() < 6
    assert np.abs(pixels[32, 32] - 128).max() <= 2
    write_map_page(str(tmp_path / "none"), planted_map(120, thumbnails=()))
    assert handed_over(tmp_path / "none", "index")["thumbnails"] is None
    assert "without pictures" in (tmp_path / "none/index.html").read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([(0, np.zeros((48, 48, 3), np.uint8))], "48 x 48"),
        ([(0, np.zeros((32, 32, 3), np.uint8)), (1, np.zeros((64, 64, 3), np.uint8))], "64 x 64"),
        ([(1, np.zeros((32, 32, 3), np.uint8)), (0, np.zeros((32, 32, 3), np.uint8))], "point 0 after that of 1"),
        ([(120, np.zeros((32, 32, 3), np.uint8))], "of 120 points"),
    ],
)
def test_thumbnails_that_would_be_shown_wrongly_are_refused(tmp_path, given, words):
    with pytest.raises(ValueError, match=words):
        write_map_page(str(tmp_path), planted_map(120, thumbnails=given))
    assert not (tmp_path / "index.html").exists()


def test_parts_go_on_where_the_last_one_ended(tmp_path, points, page, monkeypatch):
    monkeypatch.setattr(map_page, "IN_PART", 700)
    write_map_page(str(tmp_path), replace(points, thumbnails=()))
    assert len(list(tmp_path.glob("data/xy-*.js"))) == 5
    for name, width in (("xy", 2), ("c0", 1), ("c2", 1), ("top", 3)):
        assert (array_of(tmp_path, name, width) == array_of(page, name, width)).all()


@pytest.mark.parametrize("count", [*range(1, 60), 1000, 1024, 65_536, 1_281_167])
def test_the_order_of_drawing_has_every_row_once_and_is_inverted(count):
    stride = stride_of(count)
    inverse = pow(stride, -1, count)
    rows = np.arange(count, dtype=np.int64) * stride % count
    assert (np.sort(rows) == np.arange(count)).all()
    assert (rows * inverse % count == np.arange(count)).all()
    # A hundredth that is drawn first has its share of every tenth of the rows.
    if count >= 10_000:
        first = np.bincount(rows[: count // 100] * 10 // count, minlength=10)
        assert np.ptp(first) <= 4


def test_one_point_and_points_on_one_spot_have_pages(tmp_path):
    ids = planted_map(101).ids
    for count in (1, 5):
        alike = np.full(count, 3.5, np.float32)
        only = planted_map(101, x=alike, y=alike, ids=ids.slice(0, count), colourings={}, thumbnails=(), channels=None)
        write_map_page(str(tmp_path / str(count)), only)
        assert set(array_of(tmp_path / str(count), "xy", 2).reshape(-1)) == {32_768}


def test_the_same_points_give_the_same_bytes(page, points, tmp_path):
    write_map_page(str(tmp_path), replace(points, thumbnails=thumbnails(COUNT)))
    first, second = (
        {path.relative_to(of).as_posix(): path.read_bytes() for path in of.rglob("*") if path.is_file()}
        for of in (page, tmp_path)
    )
    assert first == second
    assert {name.split("/")[0] for name in first} == {"index.html", "assets", "data", "thumbnails"}


def test_all_that_the_page_names_is_there_and_nothing_lies_outside(page):
    html = (page / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"#]+)"', html)
    assert {name for name in named if not name.startswith("data:")} == {
        f"assets/{name}"
        for name in (
            "report.css",
            "map.css",
            "state.js",
            "map_libraries.js",
            "map_data.js",
            "map_view.js",
            "map_list.js",
            "map.js",
        )
    }
    assert all((page / name).is_file() for name in named if not name.startswith("data:"))
    # Names of XML's dialects are no addresses.
    namespaces = re.compile(r"http://www\.w3\.org/(?:2000/svg|2000/xmlns/|1999/xhtml|1999/xlink|XML/1998/namespace)")
    for path in page.rglob("*"):
        if path.suffix in (".html", ".js", ".css"):
            text = namespaces.sub("", path.read_text())
            assert not re.search(r"https?:|wss?://|//[a-z0-9-]+\.[a-z]|@import|XMLHttpRequest|sendBeacon", text), path
            assert not re.search(r"\beval\(|new Function|new Worker|\bimport\(", text), path
            # A library could fetch a picture, if it were asked to and the page's policy allowed it.
            assert path.name == "map_libraries.js" or "fetch(" not in text, path
    assert "default-src 'none'" in html
    assert "connect-src" not in html


def test_the_libraries_say_whose_they_are(page):
    licences = (page / "assets/LICENSES.txt").read_text()
    for name in ("twgl.js 7.0.0", "d3-zoom 3.0.1", "d3-selection 3.0.1", "Copyright", "Permission"):
        assert name in licences


def test_what_must_be_known_stands_on_the_page(page):
    html = (page / "index.html").read_text()
    assert '<p class="warning" role="note">UNTRAINED NETWORK: random weights</p>' in html
    for words in ("mixed: five groups", "adjusted Rand index", "0.91", "0.02", "Whether clusters are the classes."):
        assert words in html
    assert "exemplar-ray explore STORE" in html


HOSTILE = (
    "</script><script>document.title='hacked'</script>",
    "\"><img src=x onerror=\"document.title='hacked'\">'`",
    "\u202eright to left\u2028\x00\x1b[31m\ud800 {{ 7 * 7 }}",
)


def hostile_map(**changes):
    """A small map all of whose texts are as bad as can be."""
    ids = planted_map(120).ids
    many = [HOSTILE[row % GROUPS % 3].replace("\ud800", "") for row in range(120)]  # one name a label
    for name in ("shard", "image_path", "synset_id", "class_name"):
        ids = ids.set_column(ids.column_names.index(name), name, pa.array(many))
    bad = HOSTILE[0]
    return planted_map(
        120,
        ids=ids,
        title=HOSTILE[1],
        colourings={
            "class": categories_of_labels(ids),
            bad: Categories(np.arange(120) % 3, HOSTILE, HOSTILE, none=bad),
            HOSTILE[1]: Values(np.arange(120.0), group=bad),
        },
        warnings=HOSTILE,
        essentials=HOSTILE,
        facts=[(HOSTILE[0], HOSTILE[1])],
        command=bad,
        scores=[Score(bad, HOSTILE[:2], HOSTILE[2])],
        channels=StrongestChannels(np.zeros((120, 1), int), [bad], words=HOSTILE[1]),
        **changes,
    )


def test_what_came_with_the_data_is_text(tmp_path):
    write_map_page(str(tmp_path), hostile_map(thumbnails=()))
    html = (tmp_path / "index.html").read_text()
    assert html.count("<script") == 6
    assert "<img" not in html
    assert "<script>document" not in html
    assert "49" not in re.sub(r"\{\{.*?\}\}", "", html[html.index("<body>") :])
    for path in tmp_path.glob("data/*.js"):
        content = path.read_bytes()
        assert content.isascii()
        assert content.count(b"\n") == 1
        handed_over(tmp_path, path.stem)
    assert (
        handed_over(tmp_path, "index")["colourings"][1]["names"][2]
        == "\u202eright to left\u2028\ufffd\ufffd[31m\ufffd {{ 7 * 7 }}"
    )


@pytest.mark.parametrize("page", ["javascript:alert(1)", "data:text/html,x"])
def test_links_lead_to_pages_only(page):
    with pytest.raises(ValueError, match="is no page"):
        Values(np.zeros(3), page=page)
    with pytest.raises(ValueError, match="is no page"):
        StrongestChannels(np.zeros((3, 1), int), ["a"], [page])


def test_points_without_a_place_are_refused():
    x = planted_map(120).x.copy()
    x[[3, 7]] = np.nan, np.inf
    with pytest.raises(UsageError, match="2 of 120 points have no finite place on the map; make the map anew"):
        planted_map(120, x=x)
    nothing = np.zeros(0, np.float32)
    with pytest.raises(UsageError, match="there are no points to show"):
        planted_map(120, x=nothing, y=nothing)


def test_what_does_not_fit_together_is_refused(tmp_path):
    points = planted_map(120)
    for changes in (
        {"y": points.y[:-1]},
        {"ids": points.ids.slice(1)},
        {"ids": points.ids.drop_columns(["shard"])},
        {"channels": StrongestChannels(np.zeros((119, 2), int), ["a"])},
        {"score_columns": ("one",)},
    ):
        with pytest.raises(ValueError, match=r"\d|no shard"):
            planted_map(120, **changes)
    for colouring in (Categories(np.zeros(119, int), ["a"]), Values(np.zeros(119))):
        with pytest.raises(ValueError, match="120 points, 119 of the colouring 'it'"):
            write_map_page(str(tmp_path), planted_map(120, colourings={"it": colouring}))
    for codes in (np.array([2, 0]), np.array([-2, 0])):
        with pytest.raises(ValueError, match="for 2 names"):
            Categories(codes, ["a", "b"])
    with pytest.raises(UsageError, match="65,536 categories: a map is coloured by at most 65,535"):
        Categories(np.zeros(3, int), [""] * 65_536)
    with pytest.raises(UsageError, match="65,536 channels"):
        StrongestChannels(np.zeros((3, 1), int), [""] * 65_536)


def test_the_strongest_channels_are_those_furthest_above_their_mean():
    random = np.random.default_rng(1)
    activations = random.gamma(1, size=(500, 40)) * random.gamma(1, size=40) * 10
    activations[:, 7] = 1e6  # always on, always the same
    found = StrongestChannels.of(activations.astype(np.float32), [str(channel) for channel in range(40)], count=5)
    assert found.channels.shape == (500, 5)
    for row in range(500):
        standard = [
            (activations[row, c] - activations[:, c].mean()) / (activations[:, c].std() or np.inf) for c in range(40)
        ]
        assert found.channels[row].tolist() == sorted(range(40), key=lambda c: -standard[c])[:5]
    assert "the 5 channels furthest above their mean" in found.words
    assert StrongestChannels.of(activations[:, :3], ["a", "b", "c"]).channels.shape == (500, 3)


def test_classes_are_told_apart_by_label(points):
    classes = categories_of_labels(points.ids)
    assert list(classes.names) == ["tench", "goldfish", "great white shark", "cock", "hen"]
    assert list(classes.also_called) == [synset(label) for label in range(5)]
    labels = points.ids["label"].to_pylist()
    assert classes.codes.tolist() == [-1 if label is None else label for label in labels]
    # Two classes of ImageNet have one name; a class may have none; labels may be from 5 on, or missing altogether.
    ids = pa.table(
        {"label": [9, 5, 9, -1], "class_name": ["crane", "crane", "crane", None], "synset_id": ["b", "a", "b", None]}
    )
    assert (categories_of_labels(ids).names, categories_of_labels(ids).codes.tolist()) == (
        ["crane", "crane"],
        [1, 0, 1, -1],
    )
    # Of two sets whose fourth folders are others; a third has labels alone.
    names = ["7", "8", "8", None, None]
    ids = pa.table({"label": [7, 8, 7, 7, 9], "class_name": names, "synset_id": pa.nulls(5, pa.string())})
    assert (categories_of_labels(ids).names, categories_of_labels(ids).codes.tolist()) == (
        ["7", "8", "8", "class 9"],
        [0, 2, 1, 0, 3],
    )
    unnamed = pa.table({"label": [5], "class_name": pa.nulls(1, pa.string()), "synset_id": pa.nulls(1, pa.string())})
    assert categories_of_labels(unnamed).names == ["class 5"]
    unlabelled = pa.table(
        {
            "label": pa.nulls(2, pa.int64()),
            "class_name": pa.nulls(2, pa.string()),
            "synset_id": pa.nulls(2, pa.string()),
        }
    )
    assert categories_of_labels(unlabelled).codes.tolist() == [-1, -1]
