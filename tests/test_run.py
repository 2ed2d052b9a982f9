"""Reading a finished run from Python."""

import re
import shutil
import warnings

import fsspec
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY_FLAGS, python_without, write_tiny_data

from exemplar_ray import open_run
from exemplar_ray.errors import UsageError


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_cluster):
    """A run with two layers, 20 channels, 3 exemplars each."""
    from exemplar_ray.cli import main

    folder = tmp_path_factory.mktemp("open_run")
    write_tiny_data(folder / "data")
    flags = [*TINY_FLAGS, "--layer", "conv1", "mixed"]
    assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *flags]) == 0
    return folder / "run"


def test_tables_are_the_file_filtered(finished):
    run = open_run(str(finished))
    everything = pq.read_table(finished / "exemplars.parquet")
    assert run.table(columns=everything.column_names).equals(everything)
    assert run.table().column_names == [name for name in everything.column_names if name != "image"]
    some = run.table(columns=["row", "activation"], layer="mixed", channel=7)
    assert some.column_names == ["row", "activation"]
    rows = [r for r in everything.to_pylist() if (r["layer"], r["channel"]) == ("mixed", 7)]
    assert some.to_pylist() == [{"row": r["row"], "activation": r["activation"]} for r in rows]
    assert len(run.table(rank=1)) == 20
    assert len(run.table(layer="nowhere")) == 0
    assert len(run.table().to_pandas()) == 60
    assert run.partial is None


def test_only_row_groups_that_can_hold_the_rows_are_read(finished, monkeypatch):
    from exemplar_ray.exemplars.tables import exemplars

    monkeypatch.setattr(exemplars, "ROWS_PER_GROUP", 6)
    table = pq.read_table(finished / "exemplars.parquet")
    grouped = finished.parent / "grouped.parquet"
    pq.write_table(table, grouped, row_group_size=6)
    run = open_run(str(finished))
    assert run._groups_with(pq.ParquetFile(grouped), {"layer": ["mixed"], "channel": [7]}) == [(24 + 7 * 3) // 6]
    both = run._groups_with(pq.ParquetFile(grouped), {"layer": ["mixed"], "channel": [7, 0]})
    assert both == [24 // 6, (24 + 7 * 3) // 6]


def test_exemplars_have_their_pictures(finished):
    for exemplar in open_run(str(finished)).exemplars(layer="conv1", channel=2):
        assert exemplar["channel"] == 2
        assert exemplar.image.size == (48, 40)
        x0, y0, x1, y1 = exemplar["view_box"]
        assert exemplar.view.size == (round(x1) - round(x0), round(y1) - round(y0))
        assert max(exemplar.field.size) <= 6


def test_a_run_on_an_object_store_reads_alike(finished):
    memory = fsspec.filesystem("memory")
    for name in ("run.json", "summary.json", "exemplars.parquet"):
        memory.pipe_file(f"/bucket/run/{name}", (finished / name).read_bytes())
    try:
        assert open_run("memory://bucket/run").table().equals(open_run(str(finished)).table())
        assert len(open_run("memory://bucket/run").exemplars(rank=1)) == 20
    finally:
        memory.rm("/bucket", recursive=True)


def test_what_cannot_be_read_is_said(finished, tmp_path):
    with pytest.raises(UsageError, match="no column 'chanel'; did you mean 'channel'"):
        open_run(str(finished)).table(chanel=3)
    with pytest.raises(UsageError, match="no run folder"):
        open_run(str(tmp_path))
    (tmp_path / "run.json").write_bytes((finished / "run.json").read_bytes())
    with pytest.raises(UsageError, match="has no result yet"):
        open_run(str(tmp_path))


def test_reading_needs_neither_torch_nor_ray(finished):
    program = "from exemplar_ray import open_run; print(open_run(sys.argv[1]).exemplars(rank=1)[0].field.size)"
    assert python_without("ray torch torchvision lucent datasets", program, finished)


@pytest.mark.parametrize(
    "channel",
    [
        np.arange(3),
        np.arange(3, dtype=np.uint8),
        np.array([0.0, 1.0, 2.0]),
        [np.int64(0), np.float32(1), pa.scalar(2)],
        range(3),
        (one for one in (0, 1, 2)),
        {0: "a", 1: "b", 2: "c"}.keys(),
        frozenset({0, 1, 2}),
        pd.Series([0, 1, 2]),
        pd.Series([0, 1, 2, 2], dtype="Int64"),
        pd.Index([0, 1, 2]),
        polars.Series([0, 1, 2]),
        pa.array([0, 1, 2]),
        pa.chunked_array([[0], [1, 2]]),
        torch.tensor([0, 1, 2]),
        [0, 1, 2, 999, 2**40],
    ],
    ids=lambda value: type(value).__name__,
)
def test_rows_are_chosen_by_whatever_holds_the_values(finished, channel):
    run = open_run(str(finished))
    assert set(run.table(layer="mixed", channel=channel)["channel"].to_pylist()) == {0, 1, 2}


@pytest.mark.parametrize("one", [3, np.int64(3), np.array(3), 3.0, pa.scalar(3), torch.tensor(3), [3]], ids=repr)
def test_a_single_value_may_be_anybodys(finished, one):
    run = open_run(str(finished))
    expected = run.table(layer="mixed", channel=3)
    assert len(expected) == 3
    assert run.table(layer=["mixed"], channel=one).equals(expected)
    assert run.channel("mixed", one).channel == 3
    assert run.channel(np.str_("mixed"), one, "mean").statistics["channel"] == 3
    assert len(run.exemplars(layer=pd.Series(["mixed"]), channel=one)) == 3
    assert run.channels(layer="mixed", channel=one).num_rows == 1
    assert run.classes(layer="mixed", channel=one).num_rows == 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"channel": "3"}, "channel is a whole number, or several, not '3'"),
        ({"channel": 3.5}, "channel is a whole number, or several, not 3.5"),
        ({"channel": float("nan")}, "channel is a whole number, or several, not nan"),
        ({"channel": True}, "channel is a whole number, or several, not True"),
        ({"channel": [[1, 2]]}, "channel is a whole number, or several, not [1, 2]"),
        ({"channel": np.ones((2, 2))}, "channel is a whole number, or several, not array([1., 1.])"),
        ({"channel": pd.DataFrame({"channel": [1]})}, "channel is a whole number, or several, not 'channel'"),
        ({"channel": {1: 2}}, "channel is a whole number, or several, not {1: 2}"),
        ({"channel": b"3"}, "channel is a whole number, or several, not b'3'"),
        ({"channel": -1}, "this run has no channel -1; it has 0-11"),
        ({"channel": [12, -3]}, "this run has no channel 12, -3; it has 0-11"),
        ({"channel": 2**70}, "this run has no channel 1180591620717411303424; it has 0-11"),
        ({"channel": 9, "layer": "conv1"}, "this run has no channel 9 of conv1; it has 0-7"),
        ({"channel": None}, "no row of exemplars.parquet is without a channel; leave channel out for rows of any"),
        ({"rank": 0}, "this run has no rank 0; it has 1-3"),
        ({"rank": [4, 5]}, "this run has no rank 4, 5; it has 1-3"),
        ({"label": None}, "no row of exemplars.parquet is without a label; leave label out for rows of any label"),
        ({"label": pd.NA}, "no row of exemplars.parquet is without a label"),
        ({"label": -1}, "no row of exemplars.parquet is without a label"),
        ({"label": "tench"}, "label is a whole number, or several, not 'tench'"),
        ({"layer": 3}, "layer is a text, or several, not 3"),
        ({"layer": [["mixed"]]}, "layer is a text, or several, not ['mixed']"),
        ({"activation": "high"}, "activation is a number, or several, not 'high'"),
        ({"view_box": [0, 0, 1, 1]}, "rows cannot be chosen by view_box, which is no number and no text"),
        ({"image": None}, "rows cannot be chosen by image, which is no number"),
        ({"columns": 3}, "columns are names, not 3"),
        ({"columns": ["row", None]}, "columns are names, not None"),
        ({"columns": "chanel"}, "no column 'chanel'; did you mean 'channel'"),
    ],
    ids=str,
)
def test_what_cannot_be_chosen_is_one_line(finished, asked, said):
    run = open_run(str(finished))
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        run.table(**asked)
    assert len(str(caught.value).splitlines()) == 1
    if "columns" not in asked:
        with pytest.raises(UsageError, match=re.escape(said)):
            run.exemplars(**asked)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("mixed", np.arange(2)), "channel is one value, not array([0, 1])"),
        (("mixed", "3"), "channel is a whole number, or several, not '3'"),
        (("mixed", None), "channel is one value, not None"),
        (("mixed", True), "channel is a whole number, or several, not True"),
        (("mixed", -1), "no channel -1 of mixed; it has 0-11"),
        ((["mixed", "conv1"], 3), "layer is one value, not ['mixed', 'conv1']"),
        ((None, 3), "layer is one value, not None"),
        (("mixed", 3, ["mean", "max"]), "statistic is one value, not ['mean', 'max']"),
        (("mixed", 3, 7), "statistic is a text, or several, not 7"),
    ],
    ids=str,
)
def test_a_channel_that_cannot_be_named_is_one_line(finished, asked, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        open_run(str(finished)).channel(*asked)


def test_what_has_no_rows_says_so_where_a_name_is_wrong(finished):
    run = open_run(str(finished))
    for asked in ({"layer": "mixd"}, {"layer": ["mixd"]}, {"statistic": "mean2"}):
        with pytest.warns(UserWarning, match=r"this run has no .*; (did you mean|known)") as caught:
            assert len(run.table(**asked)) == 0
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(run.table(sample="bottom")) == len(run.table(channel=[])) == len(run.table(label=99)) == 0
        assert run.table(columns="row", rank=1).column_names == ["row"]
    with pytest.raises(UsageError, match="no table 'exemplar' of channels; did you mean 'exemplars'"):
        next(run.each_channel("exemplar", "mixed", "mean"))
    with pytest.raises(UsageError, match="layer is one value, not None"):
        next(run.each_channel("exemplars", None, "mean"))
    for nothing in (None, 3, ["run"]):
        with pytest.raises(UsageError, match="a run folder is a path or a URI, not"):
            open_run(nothing)
    assert open_run(finished).uri == str(finished)


def test_rows_without_a_label_are_chosen_by_none_or_any_negative_number(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    table = pq.read_table(finished / "exemplars.parquet")
    at = table.schema.get_field_index("label")
    for missing in (None, -1):  # as today's results have it, and older ones
        labels = [missing if i % 2 else label for i, label in enumerate(table["label"].to_pylist())]
        changed = table.set_column(at, table.schema.field(at), pa.array(labels, pa.int64()))
        pq.write_table(changed, tmp_path / "run" / "exemplars.parquet", row_group_size=7)
        run = open_run(str(tmp_path / "run"))
        assert len(run.table(label=-1)) == 30
        assert len(run.table(label=[-1, 0])) == 30 + labels.count(0)
        if missing is None:
            assert len(run.table(label=None)) == len(run.table(label=pd.NA)) == 30
            assert len(run.exemplars(label=[None, 1], channel=3)) > 0


def test_numbers_are_compared_as_the_column_has_them(finished, tmp_path):
    run = open_run(str(finished))
    activations = run.table()["activation"].to_pylist()
    assert len(run.table(activation=activations[0])) >= 1
    shutil.copytree(finished, tmp_path / "run")
    channels = pq.read_table(finished / "channels.parquet")
    values = [0.1, -0.0, 0.0, float("nan"), *range(16)]
    at = channels.schema.get_field_index("max")
    changed = channels.set_column(at, channels.schema.field(at), pa.array(values, pa.float32()))
    pq.write_table(changed, tmp_path / "run" / "channels.parquet", row_group_size=1)
    run = open_run(str(tmp_path / "run"))
    assert [run.channels(max=value).num_rows for value in (0.1, 0, -0.0, float("nan"), 1e300)] == [1, 3, 3, 1, 0]
    assert run.channels(settled=np.True_).num_rows == 20
    with pytest.raises(UsageError, match="settled is true or false, or several, not 1"):
        run.channels(settled=1)


def test_images_that_stand_once_in_a_row_group_read_as_any(finished, tmp_path):
    """The tiny run shows its 80 images again and again."""
    encodings = pq.ParquetFile(finished / "exemplars.parquet").metadata.row_group(0).column(11).encodings
    assert "RLE_DICTIONARY" in encodings
    run, everything = open_run(str(finished)), pq.read_table(finished / "exemplars.parquet")
    some = run.table(columns=["image", "rank"], layer="mixed", channel=[2, 5])
    assert some.schema.field("image").type == everything.schema.field("image").type
    rows = [r for r in everything.to_pylist() if r["layer"] == "mixed" and r["channel"] in (2, 5)]
    assert some["image"].to_pylist() == [row["image"] for row in rows]
    each = [table for _, table in run.each_channel("exemplars", "mixed", "mean")]
    assert pa.concat_tables(each).equals(everything.filter(pa.compute.equal(everything["layer"], "mixed")))
