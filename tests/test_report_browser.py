"""The pages of a report in a real browser, from disk and from a server: what a person sees and does.

Needs Chromium (Debian: `apt-get install chromium`); without one these tests are skipped.
"""

import functools
import http.server
import io
import json
import shutil
import threading

import numpy as np
import pytest
from conftest import TESTS, TINY_FLAGS, wait_for, write_tiny_data
from PIL import Image
from planted_patches import SIDE, run_over_planted_patches
from test_report_pages import rewrite

from exemplar_ray import open_run
from exemplar_ray.report.pages import write_report

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH: apt-get install chromium")
pytestmark = needs_chromium

AXE = (TESTS / "vendor" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as engine:
        # As root, which tests in containers are, Chromium runs without its sandbox only.
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster):
    """Two layers, one without maps; two statistics; samples; labels; visualisations of some channels, for one;
    circuits."""
    from exemplar_ray.cli import main

    folder = tmp_path_factory.mktemp("browser")
    write_tiny_data(folder / "data")
    flags = [*TINY_FLAGS, "--layer", "mixed", "classifier", "--statistic", "mean", "max", "--sample", "bottom"]
    assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *flags]) == 0
    made = ["--statistic", "mean", "--channels", "1-3", "--negative", "--size", "32", "--steps", "2"]
    assert main(["visualize", str(folder / "run"), *made]) == 0
    assert main(["circuits", str(folder / "run"), "--statistic", "mean", "--removed", "2"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    # A folder's name may need quoting in an address.
    folder = tmp_path_factory.mktemp("report") / "what a channel # likes"
    write_report(str(run), str(folder))
    return folder


@pytest.fixture(scope="module")
def served(report):
    """The report's address on a web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=report))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/!"
    server.shutdown()


@pytest.fixture(params=["file", "server"])
def address(request, report):
    """Where the report's folder is; what follows `!` is added to it."""
    return f"{report.as_uri()}/!" if request.param == "file" else request.getfixturevalue("served")


def test_inputs_are_shown_by_the_kind_that_is_chosen(visit, address):
    page = visit(f"{address}mixed/2.html#statistic=mean")

    def shown():
        kinds = "all => all.filter(one => !one.hidden).map(one => one.dataset.ofKind)"
        return page.eval_on_selector_all("[data-of-kind]", kinds)

    assert shown() == ["expanded"]
    page.get_by_role("button", name="On these exemplars").focus()
    page.keyboard.press("Enter")
    assert shown() == ["exemplars"]
    assert "circuit=exemplars" in page.url
    page.reload()
    assert shown() == ["exemplars"]
    assert page.eval_on_selector_all(".kernel", "all => all.every(one => one.naturalWidth > 0)")
    page.locator("a[rel=next]").click()
    page.wait_for_url("**/mixed/3.html*")
    assert shown() == ["exemplars"]
    # What it is used by leads to the next layer, and from there what it is made of leads back.
    page.locator("#used-by + ul a").first.click()
    page.wait_for_url("**/classifier/*")
    page.locator(".kind:not([hidden]) .edges a").first.click()
    page.wait_for_url("**/mixed/*")


def channels(page):
    """The channels of an overview's visible tiles, in order."""
    return page.eval_on_selector_all(
        "#tiles li:not([hidden])", "tiles => tiles.map(tile => Number(tile.dataset.channel))"
    )


def hash_of(page):
    return page.evaluate("location.hash")


def known(run, layer="mixed", statistic="mean"):
    return open_run(str(run)).channels(layer=layer, statistic=statistic).to_pylist()


@pytest.mark.parametrize(
    ("layer", "sort", "column"), [("mixed", "selectivity", "selectivity"), ("classifier", "active", "active_fraction")]
)
def test_tiles_are_sorted(visit, address, run, layer, sort, column):
    page = visit(f"{address}{layer}/mean.html")
    page.select_option("select[name=sort]", sort)
    # The page has three digits of each.
    rows = [(float(f"{row[column]:.3g}"), row["channel"]) for row in known(run, layer)]
    number = [row for row in rows if row[0] == row[0]]
    missing = [channel for value, channel in rows if value != value]
    down = [channel for _, channel in sorted(number, key=lambda row: (-row[0], row[1]))]
    assert channels(page) == down + missing
    page.check("text=reversed")
    up = [channel for _, channel in sorted(number, key=lambda row: (row[0], row[1]))]
    assert channels(page) == up + missing != down + missing
    assert hash_of(page) == f"#sort={sort}&reverse=1"
    # The address alone brings it all back.
    again = visit(f"{address}{layer}/mean.html#sort={sort}&reverse=1")
    assert channels(again) == up + missing
    assert again.input_value("select[name=sort]") == sort
    assert again.is_checked("text=reversed")
    again.click("text=Show all")
    wait_for(again, "location.hash === ''")
    assert channels(again) == list(range(len(rows)))


def test_tiles_are_sorted_by_top_class_and_skew(visit, address, run):
    page = visit(f"{address}mixed/mean.html#sort=class")
    classes = open_run(str(run)).classes(layer="mixed", statistic="mean").to_pylist()
    best = {}
    for row in sorted(classes, key=lambda row: (-row["mean"], row["label"])):
        best.setdefault(row["channel"], row["class_name"])
    assert channels(page) == sorted(best, key=lambda channel: (best[channel], channel))
    page.select_option("select[name=sort]", "skew")
    shown = page.eval_on_selector_all("#tiles li", "tiles => tiles.map(tile => tile.dataset.skew)")
    numbers = [float(text) for text in shown if text != "–"]
    assert numbers == sorted(numbers, reverse=True)
    assert "–" not in shown[: len(numbers)]


def test_tiles_are_searched_by_class_and_synset_and_filtered(visit, address, run):
    finished = open_run(str(run))
    top = finished.table(layer="mixed", statistic="mean", sample="top").to_pylist()
    classes = finished.classes(layer="mixed", statistic="mean").to_pylist()
    best = {}
    for row in sorted(classes, key=lambda row: (-row["mean"], row["label"])):
        best.setdefault(row["channel"], row["label"])
    among = sorted({r["channel"] for r in top if r["label"] == 1} | {c for c, label in best.items() if label == 1})
    on_top = sorted(channel for channel, label in best.items() if label == 1)
    assert 0 < len(on_top) < len(among) < 12 or len(on_top) < len(among)
    page = visit(f"{address}mixed/mean.html")
    for text in ("goldfish", "GOLDF", "n01440761"):
        page.fill("input[name=class]", text)
        assert channels(page) == among, text
    assert page.inner_text("output") == f"{len(among)} of 12 channels" if len(among) < 12 else "12 channels"
    page.check("text=only as top class")
    assert channels(page) == on_top
    page.fill("input[name=class]", "no such class")
    assert channels(page) == []
    assert page.inner_text("output") == "0 of 12 channels"
    page.click("text=Show all")
    wait_for(page, "location.hash === ''")
    page.click("summary:has-text('Filter')")
    page.fill("input[name=channel]", "0-3,7")
    assert channels(page) == [0, 1, 2, 3, 7]
    selectivity = {row["channel"]: float(f"{row['selectivity']:.3g}") for row in known(run)}
    limit = sorted(selectivity[channel] for channel in (0, 1, 2, 3, 7))[2]
    page.fill("input[name=selectivity-from]", str(limit))
    expected = [channel for channel in (0, 1, 2, 3, 7) if selectivity[channel] >= limit]
    assert channels(page) == expected
    assert 0 < len(expected) < 5
    again = visit(f"{address}mixed/mean.html{hash_of(page)}")
    assert channels(again) == expected
    assert again.is_visible("input[name=channel]")


def test_tabs_keep_what_was_chosen(visit, address):
    page = visit(f"{address}index.html#sort=skew")
    assert page.inner_text("nav[aria-label=Layers] [aria-current]") == "classifier"
    assert page.inner_text("nav[aria-label=Statistics] [aria-current]") == "max"
    page.click("nav[aria-label=Layers] >> text=mixed")
    assert (page.url.endswith("/mixed/max.html#sort=skew"), len(channels(page))) == (True, 12)
    page.click("nav[aria-label=Statistics] >> text=mean")
    assert page.url.endswith("/mixed/mean.html#sort=skew")
    page.click("#tiles a >> nth=0")
    page.wait_for_selector("h1:has-text('mixed:')")
    page.go_back()
    assert page.input_value("select[name=sort]") == "skew"


def test_tiles_show_visualisations_where_there_are_some(visit, address):
    page = visit(f"{address}mixed/mean.html")
    seen, made = (page.locator(f"#tiles li[data-channel='3'] {which}") for which in ("img:not(.made)", "img.made"))
    lacking = page.locator("#tiles li[data-channel='4'] >> text=no visualisation")

    def shown():
        return seen.is_visible(), made.is_visible(), lacking.is_visible()

    assert shown() == (True, False, False)
    page.select_option("select[name=show]", "visualization")
    assert (shown(), hash_of(page)) == ((False, True, True), "#show=visualization")
    wait_for(page, "document.querySelector('img.made').naturalWidth === 32")
    page.select_option("select[name=show]", "both")
    assert shown() == (True, True, True)
    left, right = (one.bounding_box() for one in (seen, made))
    assert (left["y"], left["width"]) == (right["y"], right["width"])
    assert left["x"] + left["width"] <= right["x"]
    page.click("summary:has-text('Filter')")
    page.check("text=only with a visualisation")
    assert channels(page) == [1, 2, 3]
    # All channels again, shown as they were; and so is the next page that says nothing, by the browser's memory.
    page.click("text=Show all")
    wait_for(page, "location.hash === '#show=both'")
    assert channels(page) == list(range(12))
    page.goto("about:blank")
    page.goto(address.replace("!", "") + "classifier/mean.html")
    assert page.input_value("select[name=show]") == "both"
    # Who chose once what is usual sends links that say so.
    page.select_option("select[name=show]", "exemplars")
    assert hash_of(page) == "#show=exemplars"
    again = visit(f"{address}mixed/mean.html#show=both&visualized=1")
    assert channels(again) == [1, 2, 3]
    assert again.is_visible("text=only with a visualisation")
    assert again.locator("img.made >> nth=0").is_visible()


def test_where_nothing_is_visualised_nothing_can_be_chosen(visit, address):
    """They are made for the mean."""
    page = visit(f"{address}mixed/max.html#show=visualization")
    assert page.locator("select[name=show], .made").count() == 0
    assert page.locator("#tiles img >> nth=0").is_visible()
    assert visit(f"{address}mixed/mean.html#show=nonsense").input_value("select[name=show]") == "exemplars"


def test_visualisations_stand_beside_the_exemplars_and_below(visit, address):
    page = visit(f"{address}mixed/3.html#statistic=mean")
    first, negative = (page.locator(f"#mean .visualizations img >> nth={number}") for number in (0, 1))
    exemplars = page.locator("#mean .samples").bounding_box()
    box = first.bounding_box()
    assert box["x"] >= exemplars["x"] + exemplars["width"]
    assert box["y"] < exemplars["y"] + exemplars["height"]
    assert negative.bounding_box()["y"] > exemplars["y"] + exemplars["height"]
    assert page.locator("#max .visualizations").count() == 0
    page.set_viewport_size({"width": 390, "height": 900})
    assert first.bounding_box()["y"] < page.locator("#mean figure.exemplar >> nth=0").bounding_box()["y"]


def view_of(page):
    return page.inner_text("#views [aria-pressed=true]")


def test_one_switch_for_all_pictures_is_kept_in_the_address_and_by_the_browser(visit, address):
    page = visit(f"{address}mixed/3.html")
    assert view_of(page) == "Crop"
    assert page.locator(".overlay").count() == 0
    shown = page.locator("section.statistic:not([hidden]) figure.exemplar").count()
    assert shown == 6
    page.click("text=Activation map")
    assert hash_of(page) == "#view=map"
    assert page.locator("canvas.overlay").count() == page.locator("figure.exemplar").count()
    page.click("#views >> text=Original")
    assert page.locator(".outline.crop").count() == page.locator(".outline.field").count() == 12
    # The neighbours' addresses carry it, and so does the browser where an address says nothing.
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/mixed/4.html#view=original")
    assert view_of(page) == "Original"
    page.goto(page.url.replace("4.html#view=original", "5.html"))
    assert view_of(page) == "Original"
    other = visit(f"{address}mixed/3.html#view=field&statistic=mean")
    assert (view_of(other), other.inner_text("#statistics [aria-current]")) == ("Peak's field", "mean")
    nonsense = visit(f"{address}mixed/3.html#view=nonsense&statistic=nonsense")
    assert (view_of(nonsense), nonsense.inner_text("#statistics [aria-current]")) == ("Crop", "max")


def test_where_there_is_no_map_its_views_cannot_be_chosen(visit, address):
    page = visit(f"{address}classifier/3.html#view=map")
    assert view_of(page) == "Crop"
    assert page.is_disabled("text=Activation map")
    assert page.is_disabled("text=Peak's field")
    page.click("#views >> text=Original")
    assert page.locator(".outline.crop").count() == 12
    assert page.locator(".outline.field").count() == 0


def test_statistics_are_tabs_with_addresses(visit, address):
    page = visit(f"{address}mixed/3.html")
    assert page.is_visible("section#max")
    assert page.is_hidden("section#mean")
    page.click("#statistics >> text=mean")
    assert page.is_hidden("section#max")
    assert page.is_visible("section#mean")
    assert hash_of(page) == "#statistic=mean"


def test_arrow_keys_go_to_the_neighbours_and_no_further(visit, address):
    page = visit(f"{address}mixed/1.html")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("h1:has-text('mixed:0')")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("h1:has-text('mixed:1')")
    # After a view was chosen they still do.
    page.click("text=Activation map")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("h1:has-text('mixed:2')")
    page.keyboard.press("Alt+ArrowRight")
    page.wait_for_timeout(200)
    assert page.url.endswith("/mixed/2.html#view=map")
    last = visit(f"{address}mixed/11.html")
    last.keyboard.press("ArrowRight")
    last.wait_for_timeout(200)
    assert last.url.endswith("/mixed/11.html")


def test_a_picture_opens_large_by_mouse_and_keyboard_and_gives_the_focus_back(visit, address):
    page = visit(f"{address}mixed/3.html#view=map")
    frames = page.locator("section:not([hidden]) button.frame")
    frames.nth(1).focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    assert dialog.locator("canvas.overlay").count() == 1
    shown = page.locator("section:not([hidden]) figure.exemplar")
    value = ".value"
    assert dialog.locator(value).inner_text() == shown.nth(1).locator(value).inner_text()
    assert "row " in dialog.locator(".more").inner_text()
    assert dialog.locator(".frame").bounding_box()["width"] > 500
    page.keyboard.press("ArrowRight")
    assert dialog.locator(value).inner_text() == shown.nth(2).locator(value).inner_text()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert dialog.locator(value).inner_text() == shown.nth(5).locator(value).inner_text()  # only of this statistic
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert (
        page.evaluate(
            "[...document.querySelectorAll('section:not([hidden]) button.frame')].indexOf(document.activeElement)"
        )
        == 1
    )
    assert page.url.endswith("/mixed/3.html#view=map")
    frames.nth(0).click()
    dialog.locator("text=×").click()
    assert page.locator("dialog[open]").count() == 0
    frames.nth(0).click()
    page.mouse.click(5, 5)
    assert page.locator("dialog[open]").count() == 0


def test_a_browser_that_keeps_nothing_shows_the_pages_all_the_same(visit, address):
    page = visit(f"{address}mixed/3.html")
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })")
    page.reload()
    page.click("text=Activation map")
    assert (view_of(page), hash_of(page)) == ("Activation map", "#view=map")


def test_without_scripts_everything_can_be_read(visit, address):
    page = visit(f"{address}mixed/3.html", java_script_enabled=False)
    assert page.is_visible("section#max")
    assert page.is_visible("section#mean")
    box = page.locator("figure.exemplar img").first.bounding_box()
    assert box["width"] > 50
    page.click("text=all channels")
    assert page.locator("#tiles li").count() == 12


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_pages_are_accessible(visit, report, chromium, scheme, width):
    names = ("mixed/mean.html", "mixed/mean.html#show=both", "mixed/3.html#view=original&statistic=mean")
    for name in names:
        # axe-core is put in past the policy of the page; that policy has tests of its own.
        page = visit(f"{report.as_uri()}/!{name}", width, color_scheme=scheme, bypass_csp=True)
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
        page.evaluate("document.querySelectorAll('details').forEach(details => (details.open = true))")
        states = ["as it comes"] + (["large"] if name.startswith("mixed/3") else [])
        for state in states:
            if state == "large":
                page.locator("section.statistic:not([hidden]) button.frame").first.click()
            page.evaluate(AXE)
            found = page.evaluate("axe.run({ preload: false })")
            bad = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
            assert bad == [], json.dumps(bad, indent=1)[:3000]
            assert len(found["passes"]) > 10
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the screen"
        for button in page.locator("dialog[open] button").all():
            box = button.bounding_box()
            assert 0 <= box["x"] <= box["x"] + box["width"] <= width


def test_what_came_with_the_data_is_text(visit, run, tmp_path):
    hostile = [
        "</title><script>document.title='hacked'</script>",
        "\"><img src=x onerror=\"document.title='hacked'\">'`",
        "\u202eright to left\u202c שלום \u2028 <!-- &lt; {{ 7 * 7 }}",
    ]
    rewrite(run, tmp_path, hostile)
    write_report(str(tmp_path))
    base = f"{(tmp_path / 'report').as_uri()}/!"
    page = visit(f"{base}mixed/3.html")
    rows = open_run(str(tmp_path)).table(layer="mixed", channel=3, statistic="max").to_pylist()
    of_page = [row for sample in ("top", "bottom") for row in rows if row["sample"] == sample]
    for what, column in ((".class", "class_name"), (".image-path", "image_path")):
        shown = page.eval_on_selector_all(f"section#max figcaption {what}", "all => all.map(one => one.textContent)")
        assert shown == [row[column] for row in of_page]
    assert page.locator("script:not([src])").count() == 0
    assert "hacked" not in page.title() or page.title().startswith("mixed:3")
    page.locator("button.frame").first.click()
    assert page.locator("dialog .class").inner_text() in hostile
    # What is written from right to left leaves the numbers beside it where they are.
    box = page.locator("section#max figure.exemplar").first
    assert box.locator(".value").bounding_box()["x"] < box.locator(".percentile").bounding_box()["x"]
    overview = visit(f"{base}mixed/max.html")
    overview.fill("input[name=class]", "onerror")
    assert 0 < len(channels(overview)) <= 12
    for name in hostile:
        overview.fill("input[name=class]", name)
        assert len(channels(overview)) > 0, name
    assert overview.title() == f"mixed · max · {hostile[0]}"
    assert overview.evaluate("document.images.length") == 12


def test_nothing_but_the_reports_own_scripts_can_run(chromium, report):
    """Even if markup got into a page, the page's policy would stop what it brings."""
    context = chromium.new_context()
    page = context.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(f"{report.as_uri()}/index.html")
    page.evaluate(
        """() => {
            const image = document.createElement("img");
            image.setAttribute("onerror", "document.title = 'hacked'");
            image.src = "http://127.0.0.1:9/x.png";
            const script = document.createElement("script");
            script.textContent = "document.title = 'hacked'";
            document.body.append(image, script);
        }"""
    )
    page.wait_for_timeout(300)
    assert page.title() != "hacked"
    assert len([text for text in refused if "Content Security Policy" in text]) >= 2
    context.close()


# Where things are: planted patches, pixel by pixel ----------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory, ray_cluster):
    """The report of a run over 24 planted patches."""
    folder = tmp_path_factory.mktemp("planted")
    places = run_over_planted_patches(folder, 24, 1, "--channels", "0")
    write_report(str(folder / "run"))
    return folder / "run", places


def shown_boxes(row, size):
    """{view: the box that the view shows, in the original's pixels}."""
    return {"original": (0, 0, *size), "crop": row["view_box"], "map": row["view_box"], "field": row["field_box"]}


def brightness(row, x, y):
    """How bright the map leaves points of the original, 0..1: linear between the middles of units' fields."""
    height, width = row["map_height"], row["map_width"]
    values = np.array(row["activation_map"], np.float64).reshape(height, width)
    lowest = min(0.0, values.min())
    share = (values - lowest) / (values.max() - lowest)
    x0, y0, x1, y1 = row["view_box"]
    # The network of these tests: fields of 8 pixels every 4, from -2 on, on an input of 56.
    at_x = np.clip(((x - x0) / (x1 - x0) * 56 - 2) / 4, 0, width - 1)
    at_y = np.clip(((y - y0) / (y1 - y0) * 56 - 2) / 4, 0, height - 1)
    left, top = np.minimum(at_x.astype(int), width - 2), np.minimum(at_y.astype(int), height - 2)
    right, down = at_x - left, at_y - top
    above = share[top, left] * (1 - right) + share[top, left + 1] * right
    below = share[top + 1, left] * (1 - right) + share[top + 1, left + 1] * right
    return 1 - 0.75 * (1 - (above * (1 - down) + below * down))


AT_WHOLE_PIXELS = """
    .exemplars { position: absolute; left: 0; top: 0; z-index: 1; grid-template-columns: repeat(3, 400px); gap: 0; }
    .exemplars > li { height: 440px; overflow: hidden; }
    .outline { display: none; }
"""


@pytest.mark.parametrize("view", ["original", "crop", "map", "field"])
def test_every_view_shows_each_pixel_where_it_belongs(visit, planted, view):
    run, places = planted
    rows = open_run(str(run)).exemplars(channel=0)
    assert len(rows) == 24
    page = visit(f"{(run / 'report').as_uri()}/!find/0.html#view={view}", bypass_csp=True)
    # Large enough to tell pixels apart, and without the outlines, which lie over some.
    page.add_style_tag(content=AT_WHOLE_PIXELS)
    page.evaluate("Promise.all([...document.images].map(image => ((image.loading = 'eager'), image.decode())))")
    frames = page.locator("button.frame")
    for place, row in enumerate(rows):
        size = row.image.size
        seen = np.asarray(Image.open(io.BytesIO(frames.nth(place).screenshot())).convert("RGB"), np.float64)
        assert seen.shape == (400, 400, 3)
        x0, y0, x1, y1 = shown_boxes(row, size)[view]
        side = max(x1 - x0, y1 - y0)
        # The middles of the screenshot's pixels, in the original.
        y, x = (np.mgrid[0:400, 0:400] + 0.5) / 400 * side
        x, y = x + (x0 + x1 - side) / 2, y + (y0 + y1 - side) / 2
        pixel = 400 / side  # of the original, in the screenshot's
        # Not the pixels that lie on the view's edge.
        edge = 1.5 / pixel
        inside = (x > x0 + edge) & (x < x1 - edge) & (y > y0 + edge) & (y < y1 - edge)
        left, top = places[row["image_path"]]
        to_edge = np.maximum(np.abs(x - left - SIDE / 2), np.abs(y - top - SIDE / 2)) - SIDE / 2
        expected = brightness(row, x, y) if view == "map" else np.ones_like(x)
        magenta = seen[..., 0] - seen[..., 1]
        in_patch = inside & (to_edge < -1 - 1 / pixel)
        assert in_patch.sum() > 100
        # A map's levels, its canvas and the screen round one after the other.
        tolerance = 16 if view == "map" else 8
        assert np.abs(magenta - 255 * expected)[in_patch].max() < tolerance, "the patch is not all where it should be"
        beside = inside & (to_edge > 1 + 1 / pixel)
        assert view == "field" or beside.any()
        assert np.abs(magenta)[beside].max(initial=0) < 8, "the patch is where it should not be"
        outside = (x < x0 - 2 / pixel) | (x > x1 + 2 / pixel) | (y < y0 - 2 / pixel) | (y > y1 + 2 / pixel)
        if outside.any():
            assert np.ptp(seen[outside], axis=0).max() == 0, "something is shown beyond what the view is of"
        if view == "map":
            brightest = np.argmax(np.where(inside, expected, 0))
            assert to_edge.reshape(-1)[brightest] < 4.5


def test_the_large_picture_is_the_same_picture(visit, planted):
    run, _ = planted
    page = visit(f"{(run / 'report').as_uri()}/!find/0.html#view=map")
    page.evaluate("Promise.all([...document.images].map(image => ((image.loading = 'eager'), image.decode())))")
    small = Image.open(io.BytesIO(page.locator("button.frame").nth(2).screenshot())).convert("RGB")
    page.locator("button.frame").nth(2).click()
    page.evaluate("document.querySelector('dialog img').decode()")
    large = Image.open(io.BytesIO(page.locator("dialog .frame").screenshot())).convert("RGB")
    assert large.width > 3 * small.width
    a, b = (np.asarray(one.resize((16, 16), Image.Resampling.BOX), np.float64) for one in (small, large))
    assert np.abs(a - b).mean() < 6
