"""Reading a finished run from Python."""

import fsspec
import pyarrow.parquet as pq
import pytest
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
