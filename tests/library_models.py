"""Runs of a library's networks over real images, held against that library alone."""

import io

import numpy as np
import pyarrow.parquet as pq
import torch
from conftest import SAMPLE
from PIL import Image

IMAGES = 24


def assert_top_three_equal(cli, folder, model, layer, network, prepare, channels_second):
    """Run a library's network with random weights, and compare each channel's top three with a plain loop.

    Args:
        model: its name here.
        network: makes it by the library alone.
        prepare: the library's own, from a Pillow image to float32 [3, height, width].
        channels_second: from what the layer gives to [images, channels, units].
    """
    table = pq.read_table(sorted(SAMPLE.glob("*.parquet"))[0]).slice(0, IMAGES)
    pq.write_table(table, folder / "train.parquet")
    command = ["run", "--data", folder / "train.parquet", "--out", folder / "run", "--model", model]
    status, text = cli(*command, "--weights", "random:0", "--layer", layer, "--top-k", "3", "--compile", "never")
    assert (status, "UNTRAINED" in text) == (0, True), text
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = network().eval()
    kept = []
    made.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    with torch.no_grad():
        for row in table.to_pylist():
            made(prepare(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))[None])
    truth = torch.cat([channels_second(output).double().mean(dim=2) for output in kept]).numpy()
    rows = pq.read_table(folder / "run" / "exemplars.parquet", columns=["row", "channel", "rank", "activation"])
    assert len(rows) == 3 * truth.shape[1]
    row, channel, rank, activation = (rows[column].to_numpy() for column in rows.column_names)
    rounding = 2e-5 * np.abs(truth).max()
    assert np.abs(truth[row, channel] - activation).max() <= rounding
    in_order = -np.sort(-truth, axis=0)
    assert np.abs(in_order[rank - 1, channel] - activation).max() <= rounding
