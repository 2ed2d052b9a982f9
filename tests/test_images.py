"""The reference preprocessing is bit for bit torchvision's; broken bytes are one kind of error."""

import io

import numpy as np
import pytest
from awkward_images import broken_images, scored_images
from conftest import SAMPLE, encode, needs_shared, random_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from torchvision import transforms

from exemplar_ray.data import decode as images
from exemplar_ray.data.decode import UndecodableImageError, crop, decode, decode_and_crop
from exemplar_ray.data.decode_fast import decoder_of
from exemplar_ray.data.framing import Framing
from exemplar_ray.data.preprocess import INTERPOLATIONS, Preprocess
from exemplar_ray.data.shards import discover, open_shard
from exemplar_ray.storage.transient import is_transient

DEFAULT = Preprocess(mean=(117, 117, 117))
BICUBIC = Preprocess(mean=(0, 0, 0), resize=80, crop=64, interpolation="bicubic")


def torchvisions(image, preprocess):
    mode = transforms.InterpolationMode(preprocess.interpolation)
    pipeline = transforms.Compose([transforms.Resize(preprocess.resize, mode), transforms.CenterCrop(preprocess.crop)])
    return np.asarray(pipeline(image))


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    resize=st.integers(1, 90),
    cut=st.integers(0, 30),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
def test_crops_equal_torchvisions_bit_for_bit(width, height, resize, cut, interpolation):
    preprocess = Preprocess((0, 0, 0), resize=resize, crop=max(1, resize - cut), interpolation=interpolation)
    image = random_picture(width * 1000 + height, width, height)
    np.testing.assert_array_equal(crop(image, preprocess), torchvisions(image, preprocess))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    sides=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    cut=st.one_of(st.none(), st.integers(0, 30)),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
def test_squashed_images_equal_torchvisions_bit_for_bit(width, height, sides, cut, interpolation):
    """Height first, as torchvision has it; without a crop, too, where that leaves a square."""
    sides, side = (sides, max(1, min(sides) - cut)) if cut is not None else ((sides[0], sides[0]), None)
    preprocess = Preprocess((0, 0, 0), resize=list(sides), crop=side, interpolation=interpolation)
    image = random_picture(width * 1000 + height, width, height)
    np.testing.assert_array_equal(crop(image, preprocess), torchvisions(image, preprocess))
    framing = Framing.of(width, height, preprocess)
    if side is None:
        assert framing.view_box == pytest.approx((0, 0, width, height))
    assert framing.resized == (sides[1], sides[0])


@pytest.mark.parametrize("name", scored_images())
@pytest.mark.parametrize("preprocess", [DEFAULT, BICUBIC], ids=["default", "bicubic"])
def test_awkward_images_are_seen_as_the_reference_sees_them(name, preprocess):
    data = scored_images()[name]
    reference = torchvisions(Image.open(io.BytesIO(data)).convert("RGB"), preprocess)
    np.testing.assert_array_equal(decode_and_crop(data, preprocess), reference)


@needs_shared
def test_real_images_are_seen_as_the_reference_sees_them():
    with open_shard(discover([str(SAMPLE)])[0]) as reader:
        for image in reader.images():
            reference = torchvisions(Image.open(io.BytesIO(image.data)).convert("RGB"), DEFAULT)
            np.testing.assert_array_equal(decode_and_crop(image.data, DEFAULT), reference)


@pytest.mark.parametrize("name", broken_images())
def test_broken_images_are_undecodable_and_the_reason_is_one_line(name):
    with pytest.raises(UndecodableImageError) as caught:
        decode(broken_images()[name])
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("width", "height"), [(700, 3), (3, 700), (512, 9)])
def test_where_only_the_crop_is_computed_it_is_the_same_to_one_level(monkeypatch, width, height):
    image = random_picture(9, width, height)
    whole = crop(image, DEFAULT).astype(int)
    monkeypatch.setattr(images, "_LARGEST_RESIZED", 0)
    assert np.abs(crop(image, DEFAULT) - whole).max() <= 1


OUT_OF_MEMORY = [MemoryError(), OSError("out of memory error when reading image file"), OSError(12, "Cannot allocate")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
@pytest.mark.parametrize("decoder", ["reference", "fast"])
def test_an_image_is_not_broken_because_this_machine_is_short_of_memory(monkeypatch, error, decoder):
    data = encode(random_picture(1))

    def load(*_):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(MemoryError) as caught:
        decoder_of(decoder)(data, DEFAULT)
    assert is_transient(caught.value)
