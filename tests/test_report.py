"""The figure: every channel on a page, the right picture in the right place, the head tells the truth."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_FLAGS, TINY_NETWORK, write_tiny_data
from PIL import Image

from exemplar_ray.errors import UsageError
from exemplar_ray.images import decode_and_crop
from exemplar_ray.report import figure
from exemplar_ray.run_folder import SUMMARY, RunFolder

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def run(tiny_data, tmp_path, cli):
    assert cli("run", "--data", tiny_data, "--out", tmp_path / "run", *TINY_FLAGS)[0] == 0
    return tmp_path / "run"


def head_of(run):
    """The texts at the top of the first page."""
    folder = RunFolder(str(run))
    plan = folder.read_plan()
    layer = plan.spec.layers[0]
    summary = folder.read_json(SUMMARY)
    return [text for text, _ in figure._head(plan, summary, layer.name, "mean", "top", layer.channels[:10])]


def test_there_is_a_page_for_every_10_channels(run):
    pages = figure.write_pages(str(run))
    assert [Path(page).name for page in pages] == ["mixed-mean-0000-0009.png", "mixed-mean-0010-0011.png"]
    assert sorted(map(str, (run / "report").iterdir())) == pages


def test_pages_go_where_they_are_wanted(run, tmp_path):
    figure.write_pages(str(run), str(tmp_path / "pages"))
    assert len(list((tmp_path / "pages").iterdir())) == 2
    assert not (run / "report").exists()


def test_pictures_lie_where_their_channel_and_rank_are(run):
    import pyarrow.parquet as pq

    figure.write_pages(str(run))
    plan = RunFolder(str(run)).read_plan()
    page = np.asarray(Image.open(run / "report" / "mixed-mean-0010-0011.png"))
    top = figure._MARGIN + figure._LINE * len(head_of(run)) + 2 * figure._GAP
    rows = [row for row in pq.read_table(run / "exemplars.parquet").to_pylist() if row["channel"] >= 10]
    assert len(rows) == 6
    for row in rows:
        y = top + (row["channel"] - 10) * (figure._PICTURE + figure._CAPTION + figure._GAP)
        x = figure._MARGIN + figure._LABELS + (row["rank"] - 1) * (figure._PICTURE + figure._GAP)
        seen = Image.fromarray(decode_and_crop(row["image"]["bytes"], plan.spec.preprocess))
        expected = np.asarray(seen.resize((figure._PICTURE, figure._PICTURE), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(page[y : y + figure._PICTURE, x : x + figure._PICTURE], expected)


def test_the_head_names_what_was_searched(run):
    text = " ".join(head_of(run))
    for part in ("tiny_network:trained", "mixed", "mean", "channels 0-9 of 12", "80 images searched in 8 shards"):
        assert part in text
    assert "UNTRAINED" not in text
    assert "PARTIAL" not in text


def test_untrained_and_partial_stand_in_the_head(tmp_path, cli):
    write_tiny_data(tmp_path / "data", shards=2)
    (tmp_path / "data" / "train-00001-of-00002.parquet").write_bytes(b"broken")
    flags = [*TINY_FLAGS, "--model", TINY_NETWORK.replace(":trained", ":untrained"), "--weights", "random:3"]
    assert cli("run", "--data", tmp_path / "data", "--out", tmp_path / "run", *flags, "--retries", "0")[0] == 1
    with pytest.raises(UsageError, match="has no result yet"):
        figure.write_pages(str(tmp_path / "run"))
    cli("merge", tmp_path / "run", "--allow-partial")
    head = " ".join(head_of(tmp_path / "run"))
    assert "UNTRAINED NETWORK" in head
    assert "PARTIAL RESULT: only 1 of 2 shards" in head
    assert "10 images searched in 1 shards" in head
    assert figure.write_pages(str(tmp_path / "run"))


def test_channels_without_finite_activations_are_still_on_their_page(tmp_path, cli):
    write_tiny_data(tmp_path / "data", shards=1)
    flags = [*TINY_FLAGS, "--model", TINY_NETWORK.replace(":trained", ":dividing"), "--layer", "conv1"]
    status, text = cli("run", "--data", tmp_path / "data", "--out", tmp_path / "run", *flags, "--channels", "1")
    assert status == 0
    assert "NaN or infinite activations on 1 channels" in text
    assert json.loads((tmp_path / "run" / SUMMARY).read_text())["exemplars"] == 0
    [page] = figure.write_pages(str(tmp_path / "run"))
    assert Path(page).name == "conv1-mean-0001-0001.png"
