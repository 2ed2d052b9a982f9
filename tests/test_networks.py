"""The table of networks in the documentation: each row is run, and held against its library alone."""

import pytest
from conftest import needs_shared
from library_models import ALONE, assert_top_three_equal, means_alone, write_images
from test_docs import DOCS, code_in, table_of

from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.runs.run_folder import RunFolder

ROWS = {code_in(row[1])[0]: row for row in table_of(DOCS["docs/networks.md"])}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The path of a shard, and its images."""
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    return path, write_images(path)


def test_the_table_has_just_the_networks_that_are_run():
    assert list(ROWS) == list(ALONE)


@needs_shared
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("model", ROWS)
def test_the_top_three_of_each_channel_are_those_of_the_library_alone(model, data, tmp_path, cli):
    library = model.partition(":")[0]
    pytest.importorskip("lucent" if library == "inceptionv1" else library)
    alone = ALONE[model](tmp_path)
    layer_cell, output, sees, needs = ROWS[model][2:]
    [layer], [layout] = code_in(layer_cell), code_in(output)
    path, images = data
    command = ["run", "--data", path, "--out", tmp_path / "run", "--model", alone.model or model, "--layer", layer]
    status, text = cli(*command, "--weights", "random:0", "--top-k", "3", "--compile", "never")
    assert (status, "UNTRAINED" in text) == (0, True), text
    assert_top_three_equal(tmp_path / "run" / "exemplars.parquet", means_alone(alone, layer, layout, images))
    [found] = Plan.read(RunFolder(str(tmp_path / "run"))).spec.network.layers
    whole = found.field is None or found.field.y is None
    assert output == f"`{found.written_layout}`, {found.map_size[0]} × {found.map_size[1]}"
    assert sees == ("the whole image" if whole else f"{found.field.y.size} pixels")
    assert library in ("inceptionv1", "torchvision") or code_in(needs) == [f".[{library}]"]
