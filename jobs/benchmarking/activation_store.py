"""What a store of activations costs: storing them beside the scan, and reading them beside `numpy.load`."""

import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarking.data import shards_of_rows
from benchmarking.limits import MODEL, WEIGHTS
from benchmarking.measuring import in_own_process, print_table, spread, write_figures
from exemplar_ray.activations.asked import StoreSettings
from exemplar_ray.activations.rows_table import RowsWriter, read_values
from exemplar_ray.activations.spec import ActivationsSpec
from exemplar_ray.activations.store_shard import store_shard
from exemplar_ray.data.chosen import Chosen
from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.shard import Shard
from exemplar_ray.data.shards import discover, inspect
from exemplar_ray.network.loading import trunk_of
from exemplar_ray.network.resolve import resolve_network
from exemplar_ray.network.shard_images import ReadOptions, ShardImages
from exemplar_ray.network.spec import NetworkRequest

_LAYERS = ("mixed3a", "mixed3b", "mixed4a", "mixed4b", "mixed4c", "mixed4d", "mixed4e", "mixed5a", "mixed5b")
_ROWS_A_SHARD, _CHANNELS = 4357, 508


def activation_store(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Measure both, `--repeats` times; write activation_store.json."""
    storing = in_own_process(_storing, shards_of_rows(shards, work / "large", options.shard_rows, 1), options.repeats)
    reading = in_own_process(_reading, work / "rows", options.rows, options.repeats)
    rows = [
        ("CPU time of storing the mean of nine layers / the same pass without", spread(storing, 3)),
        (f"array of {options.rows:,} x {_CHANNELS} float32 / numpy.load", spread(reading["array"], 2)),
        ("the same by pyarrow / numpy.load", spread(reading["pyarrow"], 2)),
    ]
    print()
    print_table(("what", "time, median [least to most]"), rows)
    figures = {"storing": storing, **reading}
    write_figures(options.out, "activation_store", figures)


def _storing(shards: list[str], repeats: int) -> list[float]:
    """Return how much more a CPU works for a shard that is stored than for one that is only looked at."""
    torch.set_num_threads(1)
    listed, names = inspect(discover(shards), Chosen(None, None, None), False)
    network = resolve_network(NetworkRequest(MODEL, WEIGHTS, _LAYERS, "all")).spec
    spec = ActivationsSpec(network, ("mean",), "float32", "reference")
    settings = StoreSettings(spec, ClassLabels(names), threads=1, max_skipped=10**9)
    trunk = trunk_of(spec.trunk, "cpu")

    def look(shard: Shard) -> None:
        reading = ReadOptions(settings.batch_size, settings.threads, settings.max_skipped)
        with ShardImages(network, shard, reading, trunk.device) as images:
            for batch, labels in images.batches():
                trunk(batch.crops, labels)

    def store(shard: Shard) -> None:
        for content in store_shard(trunk, settings, shard).files.values():
            if isinstance(content, Path):
                content.unlink()

    look(listed[0])
    found = []
    for number in range(repeats):
        seconds = {look: 0.0, store: 0.0}
        for place, shard in enumerate(listed):
            # In turns, so that what the machine does meanwhile falls on both.
            for one in (look, store) if (place + number) % 2 else (store, look):
                seconds[one] += _seconds(partial(one, shard), time.process_time)
        found.append(seconds[store] / seconds[look])
        print(f"storing: {found[-1]:.3f} times the pass without", flush=True)
    return found


def _reading(folder: Path, rows: int, repeats: int) -> dict[str, list[float]]:
    """Return how long reading all rows takes, over `numpy.load` of one file of the same."""
    folder.mkdir()
    values = np.random.default_rng(0).random((rows, _CHANNELS), np.float32)
    np.save(folder / "rows.npy", values)
    files = []
    for first in range(0, rows, _ROWS_A_SHARD):
        few = values[first : first + _ROWS_A_SHARD]
        files.append((folder / f"{first}.parquet", first, len(few)))
        with RowsWriter(files[-1][0], (_CHANNELS,), "float32", lambda _: None) as writer:
            none = dict.fromkeys(("image_path", "label", "synset_id", "class_name"))
            writer.add([{"shard": "a", "row": row, **none} for row in range(len(few))], few)
            writer.close()
    del values

    def array() -> np.ndarray:
        result = np.empty((rows, _CHANNELS), np.float32)
        for file, first, count in files:
            with open(file, "rb") as opened:
                assert read_values(opened, result[first : first + count])
        return result

    def by_pyarrow() -> np.ndarray:
        table = pq.read_table([file for file, _, _ in files], columns=["activation"])
        return table["activation"].combine_chunks().flatten().to_numpy().reshape(rows, _CHANNELS)

    def load() -> np.ndarray:
        return np.load(folder / "rows.npy")

    # They are in memory from now on, all in the same way.
    if not np.array_equal(array(), load()) or not np.array_equal(by_pyarrow(), load()):
        raise RuntimeError("what was read is not what was written")
    found: dict[str, list[float]] = {"array": [], "pyarrow": []}
    for _ in range(repeats):
        plain = _seconds(load)
        found["array"].append(_seconds(array) / plain)
        found["pyarrow"].append(_seconds(by_pyarrow) / plain)
        print(f"reading: {found['array'][-1]:.2f} times numpy.load, by pyarrow {found['pyarrow'][-1]:.2f}", flush=True)
    shutil.rmtree(folder)
    return found


def _seconds(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    function()
    return clock() - started
