"""Hostile input: mutated JPEGs by the thousand, odd parquet files, and memory that does not follow the shard."""

import json
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SAMPLE, TINY_FLAGS, TINY_NETWORK, encode, random_picture

from exemplar_ray.data.decode import UndecodableImageError
from exemplar_ray.data.decode_fast import decoder_of
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.executor.malloc import keep_freed_memory

PREPROCESS = Preprocess(mean=(117, 117, 117), resize=36, crop=32)


def real_jpegs():
    """Some of ImageNet's where they are at hand, else pictures of our own."""
    if SAMPLE.exists():
        table = pq.read_table(sorted(SAMPLE.glob("*.parquet"))[0], columns=["image"]).slice(0, 40)
        return [row["image"]["bytes"] for row in table.to_pylist()]
    return [encode(random_picture(i, 300, 200), "JPEG", progressive=bool(i % 2)) for i in range(40)]


def mutated(jpegs, seed):
    """One JPEG, damaged in one of the ways in which files are."""
    random = np.random.default_rng(seed)
    data = bytearray(jpegs[random.integers(len(jpegs))])
    # Of images that say they are huge, a few do: each takes a second.
    kind = seed % 5 if seed % 12 < 10 else 5 + seed % 2
    if kind == 0:  # bit flips, anywhere
        for place in random.integers(0, len(data), random.integers(1, 30)):
            data[place] ^= 1 << random.integers(8)
    elif kind == 1:  # in the header
        for place in random.integers(2, min(700, len(data)), random.integers(1, 8)):
            data[place] = random.integers(256)
    elif kind == 2:  # cut
        data = data[: random.integers(len(data))]
    elif kind == 3:  # two files spliced
        other = jpegs[random.integers(len(jpegs))]
        data = data[: random.integers(len(data))] + other[random.integers(len(other)) :]
    elif kind == 4:  # a piece repeated, or left out
        start, end = sorted(random.integers(0, len(data), 2))
        data = data[:end] + data[start:] if random.random() < 0.5 else data[:start] + data[end:]
    else:  # the frame says that it is of another size, up to 65,500 pixels, or of other components
        frame = next((i for i in range(len(data) - 9) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC1, 0xC2)), None)
        if frame is not None:
            huge = [65500, 65535, 1, 0, 40000, 4096]
            height, width = (int(random.choice(huge)) for _ in range(2))
            data[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
            if kind == 6:
                data[frame + 9] = random.integers(256)
    return bytes(data)


def peak_memory():
    """Bytes. Not getrusage's: that begins with what the parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def decode_mutations(first, count, decoder):
    """Decode in this process; return how many gave pixels, how many a reason, and the peak memory in bytes."""
    keep_freed_memory()  # as workers do
    jpegs = real_jpegs()
    pixels = reasons = 0
    for seed in range(first, first + count):
        try:
            crop = decoder_of(decoder)(mutated(jpegs, seed), PREPROCESS)
            assert (crop.shape, crop.dtype) == ((32, 32, 3), np.uint8)
            pixels += 1
        except UndecodableImageError as error:
            reasons += bool(str(error))
    return pixels, reasons, peak_memory()


def in_own_process(function, *arguments):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@pytest.mark.parametrize(("decoder", "count"), [("reference", 2000), ("fast", 1000)])
def test_no_mutated_jpeg_ends_a_process_or_eats_the_memory(decoder, count):
    pixels, reasons, peak = in_own_process(decode_mutations, 0, count, decoder)
    assert pixels + reasons == count
    assert pixels > count / 10
    assert reasons > count / 10
    # Pillow refuses what is larger than 179 million pixels, three bytes each, and resizing holds a second copy.
    assert peak < 2.5 * 2**30


def write_shard(path, images, rows_per_group=100, **columns):
    image = pa.array([{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)])
    # A dictionary of the few images that there are would be what no real shard has.
    pq.write_table(pa.table({"image": image, **columns}), path, row_group_size=rows_per_group, use_dictionary=False)


def test_a_shard_of_mutations_is_accounted_for_row_by_row(tmp_path, cli, ray_cluster):
    jpegs = real_jpegs()
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data" / "hostile.parquet", [mutated(jpegs, seed) for seed in range(300)])
    arguments = ["run", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY_FLAGS, "--max-skipped", "300"]
    status, text = cli(*arguments)
    assert status == 0, text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rows"] == 300 == summary["scored"] + summary["skipped"]
    assert len(summary["skipped_images"]) == summary["skipped"] > 30
    assert all(image["reason"] for image in summary["skipped_images"])


def scan_memory(path):
    """Scan a shard in this process; return its peak memory in bytes."""
    import torch
    from test_scan_and_gather import scan_it

    from exemplar_ray.data.shards import discover, inspect
    from exemplar_ray.exemplars.resolve import resolve
    from exemplar_ray.exemplars.spec import RunSpec
    from exemplar_ray.exemplars.to_resolve import ToResolve
    from exemplar_ray.network.models import load_network
    from exemplar_ray.network.trunk import Trunk

    keep_freed_memory()
    torch.set_num_threads(1)
    asked = RunSpec(
        model=TINY_NETWORK,
        layer=("mixed",),
        preprocess={"resize": 36, "crop": 32, "mean": [117, 117, 117]},
        top_k=3,
    )
    spec = resolve(ToResolve(asked)).spec
    network = load_network(spec.network.model, spec.network.weights, check_factory=False)
    trunk = Trunk(network.module, spec.layers, spec.statistics, spec.network.preprocess, torch.device("cpu"))
    [shard], _ = inspect(discover([path]))
    scanned = scan_it(trunk, spec, shard, batch_size=8)
    assert scanned.read.scored == shard.rows
    return peak_memory()


# Pages are what a reader must hold, two at a time: of up to 1,024 rows, where a row group is that long.
@pytest.mark.parametrize(("rows_per_group", "small"), [(100, 500), (5000, 2500)])
def test_memory_does_not_follow_the_size_of_the_shard(tmp_path, rows_per_group, small):
    # What follows a JPEG's end is read as all of it, and not decoded.
    behind = np.random.default_rng(0).bytes(60_000)
    jpegs = [encode(random_picture(i, 100, 75), "JPEG") + behind for i in range(20)]
    peaks = {}
    for rows in (small, 5000):
        path = tmp_path / f"{rows}.parquet"
        write_shard(path, [jpegs[i % 20] for i in range(rows)], rows_per_group)
        peaks[rows] = in_own_process(scan_memory, str(path))
    # All images of the large shard together are 300 MB.
    print(peaks)
    assert peaks[5000] < 1.1 * peaks[small], peaks


def odd_tables():
    """{name: (table, the rows that are scored)}"""
    jpegs = [encode(random_picture(i), "JPEG") for i in range(6)]
    structs = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(jpegs)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return {
        "zero rows": (pa.table({"image": pa.array([], struct)}), 0),
        "null images": (pa.table({"image": pa.array([*structs[:3], None, *structs[4:]], struct)}), 5),
        "null bytes": (pa.table({"image": pa.array([*structs[:3], {"bytes": None, "path": "x"}], struct)}), 3),
        "plain bytes": (pa.table({"image": pa.array(jpegs, pa.binary())}), 6),
        "large binary": (pa.table({"image": pa.array(jpegs, pa.large_binary())}), 6),
        "nested columns beside": (
            pa.table({"objects": pa.array([[{"box": [1.0, 2.0]}]] * 6), "image": pa.array(structs, struct)}),
            6,
        ),
        "labels that are null": (
            pa.table({"image": pa.array(structs, struct), "label": pa.array([None] * 6, pa.int64())}),
            6,
        ),
    }


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip", "brotli"])
@pytest.mark.parametrize("name", odd_tables())
def test_odd_parquet_files_are_read_for_what_they_are(tmp_path, name, compression):
    from exemplar_ray.data.shards import discover, inspect, open_shard

    table, scored = odd_tables()[name]
    path = tmp_path / "odd.parquet"
    pq.write_table(table, path, compression=compression)
    [shard], _ = inspect(discover([str(path)]))
    with open_shard(shard) as reader:
        rows = list(reader.images())
    assert len(rows) == len(table) == shard.rows
    assert sum(row.data is not None for row in rows) == scored
    assert all(row.label is None for row in rows)


def test_parquet_without_bytes_is_refused_by_name_and_no_parquet_fails_its_shard(tmp_path, cli, ray_cluster):
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.table({"image": pa.array([{"path": "elsewhere.jpg"}])}), data / "paths.parquet")
    status, text = cli("run", "--data", data, "--out", tmp_path / "run", *TINY_FLAGS)
    assert (status, text.count("\n"), "has no image column" in text) == (2, 1, True), text
    (data / "paths.parquet").unlink()
    write_shard(data / "good.parquet", [encode(random_picture(1), "JPEG")] * 20)
    whole = (data / "good.parquet").read_bytes()
    (data / "truncated.parquet").write_bytes(whole[: len(whole) * 2 // 3])
    (data / "footer only.parquet").write_bytes(whole[-600:])
    status, text = cli("run", "--data", data, "--out", tmp_path / "run", *TINY_FLAGS, "--retries", "0")
    assert (status, "2 of 3 shards have no result" in text) == (1, True), text
