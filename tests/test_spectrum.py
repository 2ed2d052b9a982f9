"""The mean magnitude spectrum of the images searched, and MACO's pictures, which keep to it."""

import hashlib
import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from awkward_images import broken_images
from conftest import SAMPLE, TINY_CLASSES, TINY_FLAGS, TINY_NETWORK, encode, needs_shared, random_picture
from PIL import Image
from tiny_network import PatchFinder, trained

from exemplar_ray.data.decode import decode_and_crop
from exemplar_ray.data.decorrelated import COLOURS, decorrelating
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.exemplars.running_spectrum import RunningSpectrum
from exemplar_ray.exemplars.tallies.spectrum import UNIT, Spectrum
from exemplar_ray.network.gradients import DifferentiableLayer
from exemplar_ray.network.layers import Layer
from exemplar_ray.visualize.optimise import Recipe, Wanted, optimise
from exemplar_ray.visualize.parameterizations import Canvas, frequencies, maco, resampled

CPU = torch.device("cpu")
TINY = Preprocess(mean=(117, 117, 117), resize=36, crop=32)
GOOD = [encode(random_picture(seed)) for seed in range(30)]


def by_numpy(crops):
    """The mean of |rfft2| of decorrelated colours, from Lucid's numbers and numpy alone: float64."""
    lucids = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    back = np.linalg.inv(lucids / np.sqrt((lucids**2).sum(axis=0)).max())
    total = 0
    for crop in crops:
        total = total + np.abs(np.fft.rfft2(np.einsum("dc,hwc->dhw", back, crop / 255.0)))
    return total / len(crops)


def written(run):
    """The magnitudes of a run's file, and the images they are of."""
    table = pq.read_table(run / "spectrum.parquet")
    assert table["colour"].to_pylist() == [0, 1, 2]
    (images,), (height,), (width,) = (set(table[name].to_pylist()) for name in ("images", "height", "width"))
    return np.array(table["magnitudes"].to_pylist()).reshape(3, height, width), images


def assert_equal(magnitudes, expected):
    """To what float32 and the unit of the sums leave."""
    assert magnitudes.shape == expected.shape
    np.testing.assert_allclose(magnitudes, expected, rtol=1e-5, atol=2e-5)


# As a tally -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster):
    """A run over three shards, with an image that cannot be decoded."""
    folder = tmp_path_factory.mktemp("spectrum")
    return scanned(folder, 11, "--batch-size", "4")


def scanned(folder, rows, *flags):
    from exemplar_ray.cli import main

    data = [*GOOD[:5], next(iter(broken_images().values())), *GOOD[5:]]
    images = [LabelledImage(one, f"{number}.png", number % 3) for number, one in enumerate(data)]
    write_images(images, str(folder / "data"), TINY_CLASSES, rows)
    flags = [*TINY_FLAGS, "--channels", "0-2", "--max-skipped", "1", *flags]
    assert main(["run", "--data", str(folder / "data"), "--out", str(folder / "run"), *flags]) == 0
    return folder / "run"


def test_it_is_plain_numpys_of_all_images_that_were_scored(run):
    magnitudes, images = written(run)
    assert images == 30
    assert_equal(magnitudes, by_numpy([decode_and_crop(one, TINY) for one in GOOD]))


def test_it_is_the_same_bytes_whatever_the_shards_batches_and_threads(run, tmp_path):
    assert len(list((run / "parts").glob("*.spectrum.parquet"))) == 3
    other = scanned(tmp_path, 31, "--batch-size", "7", "--cpus-per-task", "2")
    assert (other / "spectrum.parquet").read_bytes() == (run / "spectrum.parquet").read_bytes()


def test_what_is_merged_has_that_of_its_images_and_older_parts_are_read_without(run, tmp_path, cli):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "parts" / "000001.json").unlink()
    assert cli("merge", copy, "--allow-partial")[0] == 1
    magnitudes, images = written(copy)
    assert images == 19
    assert_equal(magnitudes, by_numpy([decode_and_crop(one, TINY) for one in (*GOOD[:10], *GOOD[21:])]))
    # A part as versions before the spectrum wrote them.
    (copy / "spectrum.parquet").unlink()
    (copy / "parts" / "000002.spectrum.parquet").unlink()
    record = json.loads((copy / "parts" / "000002.json").read_text())
    del record["files"]["spectrum.parquet"]
    (copy / "parts" / "000002.json").write_text(json.dumps(record))
    shutil.copy(run / "parts" / "000001.json", copy / "parts")
    status, said = cli("merge", copy)
    assert (status, (copy / "spectrum.parquet").exists()) == (0, False), said
    for name in ("exemplars", "channels", "histograms", "classes"):
        assert (copy / f"{name}.parquet").read_bytes() == (run / f"{name}.parquet").read_bytes()
    status, said = cli("visualize", copy, "--parameterization", "maco")
    assert (status, "has no spectrum.parquet, which maco keeps to" in said, said.count("\n")) == (2, True, 1), said


@needs_shared
def test_that_of_the_sample_images_is_plain_numpys():
    preprocess = Preprocess(mean=(117, 117, 117))
    crops = [
        decode_and_crop(image["bytes"], preprocess)
        for path in sorted(SAMPLE.glob("*.parquet"))
        for image in pq.read_table(path, columns=["image"])["image"].to_pylist()
    ]
    of_batches, of_others = (RunningSpectrum(preprocess, CPU) for _ in range(2))
    for start in range(0, len(crops), 100):
        of_batches.update(torch.tensor(np.stack(crops[start : start + 100])))
    for start in range(0, 100, 7):
        of_others.update(torch.tensor(np.stack(crops[start : min(start + 7, 100)])))
    merged = Spectrum.from_table(of_others.result().to_table())
    rest = RunningSpectrum(preprocess, CPU)
    rest.update(torch.tensor(np.stack(crops[100:])))
    assert np.array_equal(rest.result().merge(merged).magnitudes, of_batches.result().magnitudes)
    table = of_batches.result().mean_table()
    magnitudes = np.array(table["magnitudes"].to_pylist()).reshape(3, 224, 113)
    assert table["images"].to_pylist() == [800] * 3
    assert_equal(magnitudes, by_numpy(crops))


def test_that_of_grey_images_is_of_their_grey_as_red_green_and_blue():
    random = np.random.default_rng(0)
    crops = random.integers(0, 256, (5, 17, 17, 1), dtype=np.uint8)
    running = RunningSpectrum(Preprocess(mean=(0.0,), resize=17, crop=17, order="grey"), CPU)
    running.update(torch.tensor(crops))
    spectrum = running.result()
    assert_equal(spectrum.magnitudes / 5, by_numpy(crops.repeat(3, axis=-1)))
    # Whole units, of which float64 holds any sum.
    assert np.array_equal(spectrum.magnitudes / UNIT, np.round(spectrum.magnitudes / UNIT))
    assert np.allclose(COLOURS @ decorrelating(1), 1)
    with pytest.raises(ValueError, match="no images have no spectrum"):
        Spectrum.empty(17).mean_table()


# MACO -------------------------------------------------------------------------------------


def natural(side):
    """Magnitudes like those of natural images, other ones for each colour and direction."""
    down, right = np.abs(np.fft.fftfreq(side))[:, None], np.fft.rfftfreq(side)[None, :]
    flat = np.stack([1 + down + 2 * right, 2 + 0 * down + right, 3 + 0.5 * down + 0 * right])
    spectrum = side * flat / np.maximum(np.hypot(down, right), 1 / side)
    spectrum[:, 0, 0] = side**2 * np.array([0.8, 0.3, 0.2])
    return spectrum


def standardised(values):
    return (values - values.mean()) / (values.std(ddof=1) + 1e-4)


@pytest.mark.parametrize("size", [16, 31])
def test_a_picture_is_macos_formula_by_plain_numpy(size):
    """serre-lab/Horama, horama/maco_fv.py: maco_preconditioner, but that phases deviate by 2 instead of 1."""
    made = maco(Canvas(["a", "b"], size, CPU, natural(size)))
    pictures = made.pictures(made.parameters).detach().numpy()
    assert pictures.shape == (2, 3, size, size)
    for phases, picture in zip(made.parameters.detach().numpy().astype(np.float64), pictures, strict=True):
        assert abs(phases.std() - 1) < 0.1
        spectrum = natural(size) * np.exp(2j * standardised(phases))
        channels = standardised(np.fft.irfft2(spectrum, s=(size, size)))
        assert np.abs(picture - 1 / (1 + np.exp(-np.tensordot(COLOURS, channels, axes=(1, 0))))).max() < 1e-5
    assert isinstance(made.optimizer([made.parameters]), torch.optim.NAdam)


def test_its_magnitudes_stay_those_of_the_spectrum_up_to_one_factor():
    layer = DifferentiableLayer(trained(), Layer("mixed", 12, (16, 16), tuple(range(12))), TINY, CPU)
    made = maco(Canvas(["a"], 32, CPU, natural(32)))
    optimizer = made.optimizer([made.parameters])
    before = made.parameters.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        (-layer(made.pictures(made.parameters)).maps[0, 3].mean()).backward()
        optimizer.step()
    assert float((made.parameters.detach() - before).abs().max()) > 1
    picture = made.pictures(made.parameters).detach().numpy()[0].astype(np.float64)
    colours = np.tensordot(np.linalg.inv(COLOURS), np.log(picture / (1 - picture)), axes=(1, 0))
    # The first and the last column hold each frequency twice, with two phases: what is seen is half of their sum.
    factor = np.abs(np.fft.rfft2(colours))[:, :, 1:-1] / natural(32)[:, :, 1:-1]
    assert factor.max() / factor.min() < 1 + 1e-3


@pytest.mark.parametrize(("of", "to"), [(32, 16), (32, 48), (31, 20), (20, 33)])
def test_a_frequency_keeps_its_magnitude_at_other_sizes(of, to):
    """What is linear but for 1/frequency is resampled exactly; in the middle of a larger picture, nearly."""
    found, expected = resampled(natural(of), to) / of, natural(to) / to
    far = np.hypot(np.fft.fftfreq(to)[:, None], np.fft.rfftfreq(to)[None, :]) >= 1 / of
    inside = (np.abs(np.fft.fftfreq(to)) <= 0.5 - 1 / of)[:, None] & (np.fft.rfftfreq(to) <= 0.5 - 0.5 / of)[None, :]
    known = far & inside & (to < of or frequencies(to) >= 2 / of)
    assert known.sum() > known.size / 3
    assert np.allclose(found[:, known], expected[:, known], rtol=1e-9)
    assert np.allclose(found[:, 0, 0], expected[:, 0, 0])
    assert np.allclose(found, expected, rtol=0.15)
    assert np.array_equal(resampled(natural(of), of), natural(of))


def test_a_picture_is_the_same_bytes_alone_and_in_any_group():
    torch.set_num_threads(1)
    layer = DifferentiableLayer(trained(), Layer("mixed", 12, (16, 16), tuple(range(12))), TINY, CPU)
    recipe = Recipe("mean", 1, False, "maco", 32, 6, natural(32))
    wanted = [Wanted(channel, f"{channel} 0") for channel in range(4)]
    digest = lambda one: hashlib.sha256(one.pixels).hexdigest()  # noqa: E731
    together = [digest(one) for one in optimise(layer, wanted, recipe, CPU)]
    assert len(set(together)) == 4
    assert [digest(optimise(layer, [one], recipe, CPU)[0]) for one in wanted] == together
    assert [digest(one) for one in optimise(layer, wanted[::-1], recipe, CPU)] == together[::-1]


def test_a_channel_is_excited_more_by_its_picture():
    layer = DifferentiableLayer(PatchFinder(), Layer("find", 2, (8, 8), (0, 1)), TINY, CPU)

    def worth(steps):
        [made] = optimise(layer, [Wanted(0, "0")], Recipe("mean", 1, False, "maco", 32, steps, natural(32)), CPU)
        with torch.no_grad():
            return float(layer(torch.tensor(made.pixels[None]).permute(0, 3, 1, 2) / 255).maps[0, 0].mean())

    assert worth(60) > 1.3 * worth(1) > 0


def test_a_runs_pictures_keep_to_its_own_spectrum(run, tmp_path, cli):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    flags = ["--parameterization", "maco", "--size", "24", "--steps", "4"]
    assert cli("visualize", copy, *flags)[0] == 0
    rows = pq.read_table(copy / "visualizations" / "visualizations.parquet").to_pylist()
    assert [(row["channel"], row["parameterization"]) for row in rows] == [(0, "maco"), (1, "maco"), (2, "maco")]
    layer = DifferentiableLayer(trained(), Layer("mixed", 12, (16, 16), (0, 1, 2)), TINY, CPU)
    wanted = [Wanted(channel, f"mixed\n{channel}\nchannel\n0\n0") for channel in range(3)]
    torch.set_num_threads(1)
    made = optimise(layer, wanted, Recipe("mean", 1, False, "maco", 24, 4, written(run)[0]), CPU)
    for row, one in zip(rows, made, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))), one.pixels)
    # Pictures of other images than those that the run now has are not gone on with.
    table = pq.read_table(copy / "spectrum.parquet")
    pq.write_table(table.take([1, 0, 2]).set_column(0, "colour", table["colour"]), copy / "spectrum.parquet")
    status, said = cli("visualize", copy, *flags)
    assert (status, "these keys differ: spectrum" in said) == (2, True), said


def test_without_a_run_there_is_no_spectrum(tmp_path, cli, ray_cluster):
    flags = ["--model", TINY_NETWORK, "--layer", "mixed", "--preprocess", "{resize: 36, crop: 32, mean: [1, 1, 1]}"]
    status, said = cli("visualize", *flags, "--out", tmp_path / "out", "--parameterization", "maco")
    assert (status, "give a run instead of --model and --layer" in said, said.count("\n")) == (2, True, 1), said
    with pytest.raises(ValueError, match="needs the spectrum"):
        maco(Canvas(["a"], 16, CPU))
