"""From rows to batches: every row in one batch, in order, however it is decoded."""

import io

import numpy as np
import pytest
import torch
from awkward_images import broken_images, scored_images
from conftest import SAMPLE, TINY_FLAGS, encode, needs_shared, random_picture
from PIL import Image

from exemplar_ray.data import decode_gpu as gpu_decoding
from exemplar_ray.data.batches import batches
from exemplar_ray.data.decode import UndecodableImageError, decode_and_crop
from exemplar_ray.data.preprocess import DECODERS, Preprocess
from exemplar_ray.data.shards import ImageRow, discover, inspect, open_shard
from exemplar_ray.storage.transient import is_transient

CPU = torch.device("cpu")
PREPROCESS = Preprocess(mean=(117, 117, 117))
SMALL = Preprocess(mean=(0, 0, 0), resize=80, crop=64, interpolation="bicubic")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]


def rows_of(contents):
    return [ImageRow(row, data, None, None) for row, data in enumerate(contents)]


def jpeg_without_tables():
    """A JPEG whose header reads well, and which no decoder can go on with."""
    data = encode(random_picture(3), "JPEG")
    kept, at = data[:2], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += b"" if data[at + 1] == 0xDB else data[at:end]
        at = end
    return kept + data[at:]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_every_row_is_in_one_batch_in_order(device, decoder, batch_size):
    good, broken = list(scored_images().values()), list(broken_images().values())
    contents = [*broken[:2], *good[:5], broken[2], *good[5:], *broken[3:]]
    found = batches(rows_of(contents), SMALL, batch_size, 2, torch.device(device), decoder)
    scored, skipped = [], []
    for batch in found:
        assert batch.crops.shape == (batch_size, 64, 64, 3)
        assert not batch.crops[len(batch.images) :].any()
        assert all(image.data is None for image in batch.images)
        scored += [(image.row, batch.crops[i].cpu().numpy().copy()) for i, image in enumerate(batch.images)]
        skipped += [(image.row, str(reason)) for image, reason in batch.undecodable]
    expected_skipped = []
    for row, data in enumerate(contents):
        try:
            expected = decode_and_crop(data, SMALL)
        except UndecodableImageError as error:
            expected_skipped.append((row, str(error)))
            continue
        seen_row, pixels = scored.pop(0)
        assert seen_row == row
        levels = {"reference": 0, "fast": 1, "gpu": 2 if device == "cpu" else 255}[decoder]
        assert np.abs(pixels.astype(int) - expected).max() <= levels
    assert (scored, skipped) == ([], expected_skipped)


@needs_shared
@pytest.mark.parametrize("device", DEVICES)
def test_a_gpus_pixels_are_near_the_references(device):
    [shard] = inspect(discover([str(SAMPLE)]))[0][:1]
    with open_shard(shard) as reader:
        contents = [image.data for image in reader.images()]
    found = gpu_decoding.decode_and_crop(contents, PREPROCESS, torch.device(device))
    off = [
        np.abs(pixels.cpu().numpy().astype(int) - decode_and_crop(data, PREPROCESS))
        for pixels, data in zip(found, contents, strict=True)
    ]
    # On the CPU decoding is the reference's; resizing rounds once where Pillow rounds twice.
    assert max(one.max() for one in off) <= (1 if device == "cpu" else 255)
    assert max(one.mean() for one in off) < (0.3 if device == "cpu" else 3)


@pytest.mark.parametrize("device", DEVICES)
def test_one_faulty_image_does_not_fail_the_others_beside_it(device):
    faulty = jpeg_without_tables()
    assert gpu_decoding._is_ordinary(faulty, SMALL)
    good = [encode(random_picture(seed), "JPEG") for seed in (1, 2)]
    first, none, second = gpu_decoding.decode_and_crop([good[0], faulty, good[1]], SMALL, torch.device(device))
    assert isinstance(none, UndecodableImageError)
    for pixels, data in ((first, good[0]), (second, good[1])):
        assert np.abs(pixels.cpu().numpy().astype(int) - decode_and_crop(data, SMALL)).mean() < 3


# As torchvision wraps what CUDA and nvJPEG say.
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("Error while decoding JPEG images: CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("Error while decoding JPEG images: Failed to decode image: 5"),
]
IN_TROUBLE = [
    RuntimeError("Failed to initialize nvjpeg with hardware backend: 7"),
    RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support"),
    RuntimeError("Error while decoding JPEG images: CUDA error: an illegal memory access was encountered"),
]


@pytest.mark.parametrize("error", [*OUT_OF_MEMORY, *IN_TROUBLE], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_a_gpu_that_cannot_decode_is_no_reason_to_decode_elsewhere(monkeypatch, error, count):
    def decode_jpeg(*_):
        raise error

    monkeypatch.setattr(gpu_decoding, "decode_jpeg", decode_jpeg)
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        list(batches(rows_of([encode(random_picture(1), "JPEG")] * count), SMALL, 4, 2, CPU, "gpu"))
    of_memory = error in OUT_OF_MEMORY
    assert isinstance(caught.value, MemoryError) == is_transient(caught.value) == of_memory
    assert is_transient(OUT_OF_MEMORY[0])
    assert ("no memory to decode on cpu" if of_memory else "cannot decode JPEGs") in str(caught.value)
    assert "--batch-size" in str(caught.value) if of_memory else "--decode fast" in str(caught.value)


def test_what_does_not_fit_at_once_is_decoded_one_by_one(monkeypatch):
    original = gpu_decoding.decode_jpeg

    def decode_jpeg(encoded, *more):
        if len(encoded) > 1:
            raise OUT_OF_MEMORY[0]
        return original(encoded, *more)

    contents = [encode(random_picture(seed), "JPEG") for seed in (1, 2)]
    expected = gpu_decoding.decode_and_crop(contents, SMALL, CPU)
    monkeypatch.setattr(gpu_decoding, "decode_jpeg", decode_jpeg)
    assert all(map(torch.equal, gpu_decoding.decode_and_crop(contents, SMALL, CPU), expected))


def test_what_is_no_ordinary_jpeg_is_left_to_the_reference():
    plain = encode(random_picture(5), "JPEG")
    cmyk = io.BytesIO()
    random_picture(6).convert("CMYK").save(cmyk, "JPEG")
    assert gpu_decoding._is_ordinary(plain, SMALL)
    strip = encode(Image.new("RGB", (4000, 1)), "JPEG")
    assert not gpu_decoding._is_ordinary(strip, Preprocess(mean=(0, 0, 0), resize=256, crop=224))
    for data in (None, b"", plain[:-100], encode(random_picture(5)), cmyk.getvalue()):
        assert not gpu_decoding._is_ordinary(data, SMALL)


@needs_gpu
def test_batches_on_a_gpu_are_not_overwritten_by_those_that_follow():
    contents = [encode(random_picture(seed), "JPEG") for seed in range(64)]
    kept = [batch.crops for batch in batches(rows_of(contents), SMALL, 4, 2, torch.device("cuda"))]
    for i, data in enumerate(contents):
        np.testing.assert_array_equal(kept[i // 4][i % 4].cpu().numpy(), decode_and_crop(data, SMALL))


def test_decoding_on_a_gpu_is_refused_where_there_is_none(tmp_path, cli, tiny_data, ray_cluster):
    status, text = cli("run", "--data", tiny_data, "--out", tmp_path / "run", *TINY_FLAGS, "--decode", "gpu")
    assert status == 2
    assert "decode gpu needs a GPU a task" in text
    assert not (tmp_path / "run").exists()
