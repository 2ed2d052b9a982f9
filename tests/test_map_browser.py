"""The page of a map in a real browser, from disk: what a person sees and does, with a pointer and without.

Needs Chromium, as tests/test_report_browser.py does. It draws with its own software, as there is no graphics processor.
"""

import functools
import http.server
import io
import json
import re
import shutil
import threading

import numpy as np
import pytest
from conftest import TESTS, wait_for
from PIL import Image
from planted_map import CLASSES, colour_of, planted_map, thumbnails
from test_map_page import HOSTILE, hostile_map
from test_report_browser import CHROMIUM, needs_chromium, playwright

from exemplar_ray.report.map_page import write_map_page

pytestmark = needs_chromium

AXE = (TESTS / "vendor" / "axe.min.js").read_text()
COUNT = 3000
# How much of the field's shorter side the map takes, as static/map_view.js has it.
MARGIN = 0.94
NO_WEBGL = "HTMLCanvasElement.prototype.getContext = () => null"


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as engine:
        flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def points():
    return planted_map(COUNT)


@pytest.fixture(scope="module")
def folder(points, tmp_path_factory):
    # A folder's name may need quoting in an address.
    folder = tmp_path_factory.mktemp("map") / "a map # of it"
    write_map_page(str(folder), planted_map(COUNT, thumbnails=thumbnails(COUNT)))
    return folder


@pytest.fixture
def look(visit, folder):
    """Open the map; it is whole when this returns."""

    def look(state="", width=1400, where=None, **options):
        page = visit(f"{(where or folder).as_uri()}/!index.html{state}", width, **options)
        wait_for(page, "document.body.dataset.pointing === '1'")
        return page

    return look


def box_of(page):
    """The field's inside: x, y, width, height on the page."""
    return page.evaluate(
        "(() => { const field = document.getElementById('field'); const box = field.getBoundingClientRect();"
        "return [box.x + field.clientLeft, box.y + field.clientTop, field.clientWidth, field.clientHeight]; })()"
    )


def pixels_of(page, points):
    """[points, 2]: where they are on the page while the map is whole."""
    x, y, width, height = box_of(page)
    both = np.stack([points.x, points.y], axis=1).astype(np.float64)
    low, high = both.min(axis=0), both.max(axis=0)
    places = (both - (low + high) / 2) / (high - low).max()
    side = MARGIN * min(width, height)
    return np.stack([x + width / 2 + places[:, 0] * side, y + height / 2 - places[:, 1] * side], axis=1)


def alone(points, page, among=None):
    """Rows whose points have none within 12 pixels, those of `among` before others."""
    pixels = pixels_of(page, points)
    distance = np.hypot(*(pixels[:, None] - pixels[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    rows = np.flatnonzero(distance.min(axis=1) > 12)
    return rows[among[rows]] if among is not None else rows


def count_of(page):
    return page.inner_text("output")


def settled(page, words):
    wait_for(page, f"document.querySelector('output').value === {json.dumps(words)}")


def listed(page):
    return [int(row) for row in page.eval_on_selector_all("#list li", "all => all.map(one => one.dataset.image)")]


def drawn(page):
    """The field as it looks once all is drawn."""
    wait_for(page, "view.drawn === view.count && !view.isStale && !view.isScheduled")
    page.mouse.move(2, 2)
    return np.asarray(Image.open(io.BytesIO(page.locator("#field").screenshot())).convert("RGB"), np.int16)


def swatch(page, name):
    """The colour of a category in the legend."""
    button = page.locator("#legend button", has_text=name).first
    text = button.locator(".swatch").evaluate("one => getComputedStyle(one).backgroundColor")
    return np.array([int(number) for number in re.findall(r"\d+", text)[:3]])


def colour_at(page, pixel, image):
    box = page.locator("#field").bounding_box()
    return image[round(pixel[1] - box["y"]), round(pixel[0] - box["x"])]


def test_points_have_their_categories_colours_where_they_lie(look, points):
    page = look()
    rows = alone(points, page)
    assert len(rows) > 20
    for number, name in enumerate(("class", "cluster")):
        page.click(f"#colours >> text={name}")
        assert page.get_attribute(f"#colours button >> nth={number}", "aria-pressed") == "true"
        image = drawn(page)
        pixels = pixels_of(page, points)
        categories = points.colourings[name]
        for row in rows[:40]:
            code = categories.codes[row]
            expected = swatch(page, categories.none if code < 0 else categories.names[code])
            assert np.abs(colour_at(page, pixels[row], image) - expected).max() <= 4, (name, row)
    assert page.url.endswith("#colour=cluster")


def test_points_have_their_values_colours(look, points):
    page = look("#colour=mixed%3A3")
    assert page.input_value("select[name=channel]") == "2"
    assert page.inner_text("#legend a") == "its page"
    image, pixels = drawn(page), pixels_of(page, points)
    values = points.colourings["mixed:3"].values
    rows = alone(points, page)
    # Of viridis: the more, the more green; grey is what is not known.
    known = sorted((row for row in rows if np.isfinite(values[row])), key=lambda row: values[row])
    green = [colour_at(page, pixels[row], image)[1] for row in known]
    assert np.corrcoef(green, np.argsort(np.argsort(values[known])))[0, 1] > 0.9
    for row in rows[~np.isfinite(values[rows])]:
        assert np.ptp(colour_at(page, pixels[row], image)) <= 10
    assert f"not known, {(~np.isfinite(values)).sum()}" in page.inner_text("#legend")
    low, high = np.quantile(values[np.isfinite(values)], [0.005, 0.995])
    assert f"{low:.4g}" in page.inner_text("#legend")
    assert f"{high:.4g}" in page.inner_text("#legend")


def test_the_image_under_the_pointer_is_shown_at_once(look, points):
    page = look("#colour=mixed%3A3")
    pixels, ids = pixels_of(page, points), points.ids.to_pylist()
    values = points.colourings["mixed:3"].values
    tip = page.locator("#tip")
    for row in alone(points, page)[:8]:
        page.mouse.move(*pixels[row])
        wait_for(page, f"document.querySelector('#tip .thumb')?.dataset.shown === '{row}'", 5)
        wait_for(page, f"document.querySelector('#tip .path').textContent === '{ids[row]['image_path']}'", 5)
        assert tip.locator(".name").inner_text() == (ids[row]["class_name"] or "no class")
        value = tip.locator(".value").inner_text()
        if np.isnan(values[row]):
            assert value == "not known"
        else:
            assert float(value) == pytest.approx(values[row], rel=5e-4, abs=1e-3)
        picture = np.asarray(Image.open(io.BytesIO(tip.locator(".thumb").screenshot())).convert("RGB"), np.int16)
        assert np.abs(picture[32, 32] - colour_of(row)).max() <= 4
        x, y = (float(page.get_attribute(".ring.under", name)) for name in ("cx", "cy"))
        left, top, *_ = box_of(page)
        assert np.hypot(left + x - pixels[row][0], top + y - pixels[row][1]) < 1
    page.mouse.move(2, 2)
    wait_for(page, "document.getElementById('tip').hidden")


def test_a_click_keeps_a_point_and_the_address_brings_it_back(look, points):
    page = look()
    row = int(alone(points, page)[3])
    page.mouse.click(*pixels_of(page, points)[row])
    wait_for(page, f"document.querySelector('#card .thumb')?.dataset.shown === '{row}'")
    given = points.ids.to_pylist()[row]
    for told in (given["image_path"], f"{given['shard']}, row {given['row']}"):
        wait_for(page, f"document.getElementById('card').innerText.includes({json.dumps(told)})")
    wait_for(page, "document.querySelectorAll('#card .channels > *').length === 3")
    names = page.eval_on_selector_all(
        "#card .channels > *", "all => all.map(one => [one.textContent, one.getAttribute('href')])"
    )
    strongest = points.channels.channels[row]
    assert names == [[f"mixed:{channel}", points.channels.pages[channel]] for channel in strongest]
    wait_for(page, f"location.hash === '#point={row}'")
    page.reload()
    wait_for(page, f"document.querySelector('#card .thumb')?.dataset.shown === '{row}'")


def test_a_class_is_searched_by_name_and_synset_id(look, points):
    page = look()
    labels = points.ids["label"].to_pylist()
    for text, label in (("goldf", 1), ("GOLDFISH", 1), ("n01440764", 0), ("hen", 4)):
        page.fill("input[name=class]", text)
        settled(page, f"{labels.count(label)} of 3,000 images")
        assert listed(page) == [row for row in range(COUNT) if labels[row] == label][:60], text
    # "hen" is a whole name; part of one finds all that have it.
    page.fill("input[name=class]", "c")
    settled(page, f"{labels.count(0) + labels.count(3):,} of 3,000 images")
    page.fill("input[name=class]", "t")
    settled(page, f"{labels.count(0) + labels.count(2):,} of 3,000 images")
    wait_for(page, "location.hash === '#class=t'")
    image, pixels = drawn(page), pixels_of(page, points)
    dimmed = [row for row in alone(points, page) if labels[row] in (1, 3, 4)]
    assert len(dimmed) > 5
    for row in dimmed:
        assert np.ptp(colour_at(page, pixels[row], image)) < 12, "dimmed points have no colour"
        page.mouse.move(*pixels[row])
    page.wait_for_timeout(50)
    assert page.locator("#tip").is_hidden(), "what is dimmed cannot be pointed at"
    page.fill("input[name=class]", "no such class")
    settled(page, "0 of 3,000 images")
    assert page.inner_text("#range") == "none"
    page.click("text=Show all")
    settled(page, "3,000 images")
    wait_for(page, "location.hash === ''")


def test_the_legend_chooses_a_category(look, points):
    page = look("#colour=cluster")
    clusters = points.colourings["cluster"]
    for code, name in [*enumerate(clusters.names), (-1, "noise")]:
        button = page.locator("#legend button", has_text=name)
        assert button.locator(".count").inner_text() == f"{(clusters.codes == code).sum():,}"
    page.locator("#legend button", has_text="noise").focus()
    page.keyboard.press("Enter")
    settled(page, f"{(clusters.codes == -1).sum():,} of 3,000 images")
    assert page.evaluate("document.activeElement.textContent").startswith("noise")
    again = look("#colour=cluster&only=65535")
    settled(again, f"{(clusters.codes == -1).sum():,} of 3,000 images")
    # A category is one of its colouring.
    page.click("#colours >> text=class")
    settled(page, "3,000 images")


def inside(polygon, pixels):
    """Which pixels lie in a polygon, by its angles: they sum to a whole turn around what is inside."""
    ends = np.asarray(polygon, np.float64)[:, None] - pixels[None]
    angles = np.arctan2(ends[..., 1], ends[..., 0])
    turns = np.diff(np.concatenate([angles, angles[:1]]), axis=0)
    return np.abs(((turns + np.pi) % (2 * np.pi) - np.pi).sum(axis=0)) > np.pi


@pytest.mark.parametrize("way", ["tool", "shift"])
def test_a_lasso_tells_classes_and_what_channels_share(look, points, way):
    page = look()
    pixels = pixels_of(page, points)
    labels = np.array([-1 if label is None else label for label in points.ids["label"].to_pylist()])
    middle = np.median(pixels[np.isin(labels, (0,))], axis=0)
    # Not convex, and around the first group with a part of the second.
    polygon = [middle + at for at in ((-60, -200), (70, -190), (60, 60), (0, -20), (-70, 70))]
    chosen = inside(polygon, pixels)
    assert 300 < chosen.sum() < 2000
    if way == "tool":
        page.click("text=Lasso")
    else:
        page.keyboard.down("Shift")
    page.mouse.move(*polygon[0])
    page.mouse.down()
    for corner in polygon[1:]:
        page.mouse.move(*corner, steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    wait_for(page, "!document.getElementById('selection').hidden")
    found = int(count_of(page).split()[0].replace(",", ""))
    # The browser rounds the pointer's places.
    assert abs(found - chosen.sum()) <= 0.02 * chosen.sum() + 3
    rows = listed(page)
    assert len(rows) == 60
    near = [row for row in rows if chosen[row]]
    assert len(near) >= 57
    tables = page.locator("#selection table")
    wait_for(page, "document.querySelectorAll('#selection table').length === 2")
    classes = tables.nth(0).locator("tbody tr").all_inner_texts()
    counts = {row.split("\t")[0]: int(row.split("\t")[1]) for row in classes}
    assert sum(counts.values()) == found
    assert next(iter(counts)) == CLASSES[0]
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    first = tables.nth(1).locator("tbody tr").first
    assert first.inner_text().split("\t")[0] == "mixed:0"
    assert first.locator("a").get_attribute("href") == "run/mixed/0.html"
    assert first.inner_text().split("\t")[2] == "20 %"
    # The address brings the same back.
    wait_for(page, "location.hash.includes('lasso=')")
    again = look(page.evaluate("location.hash"))
    settled(again, f"{found:,} of 3,000 images" if found > 999 else f"{found} of 3,000 images")
    assert listed(again) == rows
    again.locator("#field").focus()
    again.keyboard.press("Escape")
    settled(again, "3,000 images")


def test_who_cannot_point_finds_everything_in_the_list(look, points):
    page = look("#class=cock")
    labels = points.ids["label"].to_pylist()
    rows = [row for row in range(COUNT) if labels[row] == 3]
    settled(page, f"{len(rows)} of 3,000 images")
    page.locator("#list").focus()

    def chosen():
        return int(page.get_attribute("#list [aria-selected=true]", "data-image"))

    columns = len(page.evaluate("getComputedStyle(document.getElementById('list')).gridTemplateColumns").split())
    assert columns > 3
    at = 0
    for key, step in (
        ("ArrowRight", 1),
        ("ArrowDown", columns),
        ("ArrowRight", 1),
        ("ArrowUp", -columns),
        ("ArrowLeft", -1),
    ):
        page.keyboard.press(key)
        at += step
        assert chosen() == rows[at], key
    page.keyboard.press("PageDown")
    assert chosen() == rows[at + 60]
    assert page.inner_text("#range") == f"61–120 of {len(rows)}"
    page.keyboard.press("End")
    assert chosen() == rows[-1]
    page.keyboard.press("ArrowRight")
    assert chosen() == rows[-1]
    page.keyboard.press("Home")
    assert chosen() == rows[0]
    assert page.get_attribute("#list [aria-selected=true]", "id") == page.get_attribute(
        "#list", "aria-activedescendant"
    )
    assert page.get_attribute("#list [aria-selected=true]", "aria-label") == f"cock, image {rows[0]}"
    page.keyboard.press("Enter")
    # It is in the middle of the map now, magnified, ringed, and told.
    *_, width, height = box_of(page)
    ring = [float(page.get_attribute(".ring.focused", name)) for name in ("cx", "cy")]
    assert np.hypot(ring[0] - width / 2, ring[1] - height / 2) < 1
    assert page.evaluate("view.transform.k") >= 6
    wait_for(page, f"document.querySelector('#card .path').textContent.endsWith('_{rows[0]}.JPEG')")
    # The place is written when the map has come to rest.
    wait_for(page, f"location.hash.includes('point={rows[0]}') && location.hash.includes('at=')")


def test_the_map_moves_by_keys_buttons_wheel_and_pointer(look, points):
    page = look()
    x, y, width, _ = box_of(page)

    def at():
        return [page.evaluate(f"view.transform.{name}") for name in "xyk"]

    page.locator("#field").focus()
    page.keyboard.press("+")
    assert at()[2] == pytest.approx(1.5)
    page.keyboard.press("ArrowLeft")
    assert at()[0] == pytest.approx(-0.25 * width + 60)
    page.keyboard.press("-")
    page.keyboard.press("0")
    assert at() == [0, 0, 1]
    page.get_by_role("button", name="Zoom in").click()
    assert at()[2] == pytest.approx(1.7)
    page.get_by_role("button", name="Whole map").click()
    # The wheel leaves what is under the pointer where it is.
    pixel = pixels_of(page, points)[int(alone(points, page)[0])]
    page.mouse.move(*pixel)
    page.mouse.wheel(0, -300)
    wait_for(page, "view.transform.k > 1.2")
    moved = at()
    under = np.array([pixel[0] - x, pixel[1] - y])
    assert np.abs((under - moved[:2]) / moved[2] - under).max() < 1
    page.mouse.down()
    page.mouse.move(pixel[0] + 80, pixel[1] + 40, steps=5)
    page.mouse.up()
    assert np.allclose(at(), [moved[0] + 80, moved[1] + 40, moved[2]], atol=1)
    assert page.locator("#card .name").count() == 0, "who moves the map chooses nothing"
    wait_for(page, "location.hash.startsWith('#at=')")
    again = look(page.evaluate("location.hash"))
    assert np.allclose([again.evaluate(f"view.transform.{name}") for name in "xyk"], at(), atol=1)


def test_what_is_in_view_can_be_selected_without_a_pointer(look, points):
    page = look()
    clusters = np.array(points.ids["label"].to_pylist(), np.float64)
    right = np.flatnonzero(clusters == 0)
    page.evaluate("view.moveTo([0.95, 0.5, 4])")
    page.get_by_role("button", name="Select what is in view").focus()
    page.keyboard.press("Enter")
    wait_for(page, "!document.getElementById('selection').hidden")
    assert set(listed(page)) <= set(np.flatnonzero(points.x > 5).tolist())
    assert len(set(listed(page)) & set(right.tolist())) > 50


LONG_TASKS = """
window.longTasks = [];
new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((one) => one.duration)))
  .observe({ entryTypes: ["longtask"] });
"""


def test_nothing_takes_long_while_the_map_moves(look, points):
    page = look(first=LONG_TASKS)
    drawn(page)
    page.wait_for_timeout(100)
    page.evaluate("longTasks.length = 0")
    x, y, width, height = box_of(page)
    page.mouse.move(x + width / 2, y + height / 2)
    for _ in range(5):
        page.mouse.wheel(0, -100)
        page.wait_for_timeout(20)
    page.mouse.down()
    page.mouse.move(x + width / 4, y + height / 4, steps=20)
    page.mouse.up()
    page.wait_for_timeout(100)
    assert page.evaluate("view.transform.k") > 1.5
    assert [duration for duration in page.evaluate("longTasks") if duration > 100] == []


def test_without_webgl_the_page_says_so_and_the_list_works(look, points):
    page = look("#class=hen", first=NO_WEBGL)
    assert "has no WebGL 2, so the map is not drawn" in page.inner_text("#trouble")
    assert page.locator("#field").is_hidden()
    rows = [row for row, label in enumerate(points.ids["label"].to_pylist()) if label == 4]
    assert listed(page) == rows[:60]
    page.locator("#list").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    wait_for(page, f"document.querySelector('#card .path').textContent.endsWith('_{rows[1]}.JPEG')")
    assert page.locator("#selection table").count() == 2


def test_a_missing_file_is_named(chromium, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "map")
    (tmp_path / "map/data/xy-0.js").unlink()
    page = chromium.new_page()
    page.goto(f"{(tmp_path / 'map').as_uri()}/index.html")
    wait_for(page, "!document.getElementById('trouble').hidden")
    assert page.inner_text("#trouble") == "data/xy-0.js is missing or cannot be read; write the map's page anew"
    page.close()


def test_a_map_without_pictures_lists_paths(look, points, tmp_path):
    write_map_page(str(tmp_path), planted_map(200, thumbnails=()))
    page = look(where=tmp_path)
    wait_for(page, "document.querySelectorAll('#list li bdi + bdi').length === 60")
    assert page.inner_text("#list li >> nth=1") == "goldfish n01440765_1.JPEG"
    page.mouse.move(*pixels_of(page, planted_map(200))[1])
    wait_for(page, "!document.getElementById('tip').hidden")
    assert page.locator("#tip .thumb").count() == 0


def test_it_is_the_same_from_a_server(visit, folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = visit(f"http://127.0.0.1:{server.server_port}/!#class=hen")
    wait_for(page, "document.body.dataset.pointing === '1'")
    assert len(listed(page)) == 60
    server.shutdown()


def test_a_finger_moves_the_map_and_chooses_points(look, points):
    page = look(width=390, has_touch=True)
    row = int(alone(points, page)[0])
    page.touchscreen.tap(*pixels_of(page, points)[row])
    wait_for(page, f"document.querySelector('#card .thumb')?.dataset.shown === '{row}'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_is_accessible(look, scheme, width):
    for state in ("#class=hen&point=4", "#colour=mixed%3A3"):
        page = look(state, width, color_scheme=scheme, bypass_csp=True)
        page.evaluate("document.querySelectorAll('details').forEach(details => (details.open = true))")
        page.evaluate(AXE)
        found = page.evaluate("axe.run({ preload: false })")
        bad = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        assert bad == [], json.dumps(bad, indent=1)[:3000]
        assert len(found["passes"]) > 10
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the screen"


def test_what_came_with_the_data_is_text(look, tmp_path):
    write_map_page(str(tmp_path), hostile_map(thumbnails=thumbnails(120)))
    for number in range(3):
        page = look("#point=0" if number else "", where=tmp_path)
        if number < 2:
            page.locator("#colours button").nth(number).click()
        else:
            page.select_option("select[name=channel]", "2")
        page.fill("input[name=class]", "hacked")
        settled(page, "16 of 120 images")
        wait_for(page, "document.querySelectorAll('#selection table').length === 2")
        page.locator("#list").focus()
        wait_for(page, "document.querySelector('#card .place bdi')?.textContent.length > 10")
        assert page.inner_text("#card .path >> nth=0").strip() in HOSTILE
        assert page.title() == HOSTILE[1]
        assert page.evaluate("document.images.length") == 0
        assert page.locator("script:not([src])").count() == 0
