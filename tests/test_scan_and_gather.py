"""One shard in, one part out; and the second look at what was found. No Ray."""

import dataclasses

import numpy as np
import pytest
import torch
from awkward_images import broken_images, scored_images
from conftest import TINY_NETWORK, write_tiny_data

from exemplar_ray.data.decode import decode_and_crop
from exemplar_ray.data.formats.parquet import ParquetReader
from exemplar_ray.data.shards import discover, inspect, open_shard
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import ShardError
from exemplar_ray.exemplars import collect, parts
from exemplar_ray.exemplars.gather import gather_shard
from exemplar_ray.exemplars.resolve import resolve
from exemplar_ray.exemplars.scan import scan_shard
from exemplar_ray.exemplars.settings import ScanSettings
from exemplar_ray.exemplars.spec import RunSpec
from exemplar_ray.exemplars.to_resolve import ToResolve
from exemplar_ray.exemplars.topk import NEAR_ZERO, TOP
from exemplar_ray.network.loading import trunk_of

PREPROCESS = {"resize": 36, "crop": 32, "mean": [117, 117, 117]}


def tiny(factory="trained", **changes):
    """A spec of a tiny network, and its reference trunk."""
    model = TINY_NETWORK.replace(":trained", f":{factory}")
    changes = {"layer": ("conv1", "mixed"), "statistic": ("max", "mean"), "top_k": 3, **changes}
    spec = resolve(ToResolve(RunSpec(model=model, preprocess=PREPROCESS, **changes))).spec
    return spec, trunk_of(spec.reference_trunk, "cpu")


def shard_of(folder, images):
    paths, _ = write_images([LabelledImage(data, name, None) for name, data in images], str(folder), None, 1000)
    return inspect(discover([str(paths[0])]))[0][0]


def scan_it(trunk, spec, shard, batch_size=4, max_skipped=0, position=0):
    return scan_shard(trunk, ScanSettings(spec, batch_size, threads=2, max_skipped=max_skipped), shard, position)


def by_hand(trunk, spec, images):
    """Score each image alone; {(layer, statistic): [images, channels]}."""
    crops = [torch.from_numpy(decode_and_crop(data, spec.network.preprocess).copy()) for _, data in images]
    scored = [trunk(crop[None]).activations for crop in crops]
    return {key: torch.cat([one[key] for one in scored]).numpy() for key in scored[0]}


def test_awkward_images_are_all_scored_as_the_reference_scores_them(tmp_path):
    images = list(scored_images().items())
    spec, trunk = tiny(top_k=len(images))
    scanned = scan_it(trunk, spec, shard_of(tmp_path / "d", images))
    assert (scanned.read.rows, scanned.read.scored, scanned.read.skipped_images) == (len(images), len(images), [])
    expected = by_hand(trunk, spec, images)
    for readout, channel, activation, row in zip(
        scanned.part.scores.readout,
        scanned.part.scores.channel,
        scanned.part.scores.activation,
        scanned.part.scores.row,
        strict=True,
    ):
        assert activation == pytest.approx(expected[spec.readouts[readout].key][row, channel], rel=1e-5, abs=1e-6)
    assert len(scanned.part.scores.row) == len(images) * (8 + 12) * 2


def test_broken_images_are_counted_listed_and_leave_the_others_as_they_are(tmp_path):
    good, broken = list(scored_images().items())[:9], list(broken_images().items())
    mixed = [image for pair in zip(good, broken, strict=False) for image in pair] + good[len(broken) :]
    spec, trunk = tiny()
    scanned = scan_it(trunk, spec, shard_of(tmp_path / "mixed", mixed), max_skipped=len(broken))
    alone = scan_it(trunk, spec, shard_of(tmp_path / "good", good))
    assert scanned.read.rows == scanned.read.scored + len(scanned.read.skipped_images) == len(mixed)
    assert [entry["row"] for entry in scanned.read.skipped_images] == [2 * i + 1 for i in range(len(broken))]
    assert all(entry["reason"] for entry in scanned.read.skipped_images)
    row_in_mixed = [mixed.index(image) for image in good]
    assert scanned.part.scores.activation.tolist() == alone.part.scores.activation.tolist()
    assert scanned.part.scores.row.tolist() == [row_in_mixed[row] for row in alone.part.scores.row]


def test_too_many_broken_images_fail_the_shard_and_are_named(tmp_path):
    images = [*list(scored_images().items())[:3], *list(broken_images().items())[:4]]
    spec, trunk = tiny()
    shard = shard_of(tmp_path / "d", images)
    with pytest.raises(ShardError) as caught:
        scan_it(trunk, spec, shard, max_skipped=3)
    message = str(caught.value)
    assert "4 undecodable images, max_skipped is 3 (row 3: empty image bytes; row 4: no image bytes; row 5:" in message
    assert "and 1 more" in message
    assert "--max-skipped 4" in message
    assert scan_it(trunk, spec, shard, max_skipped=4).read.scored == 3


def test_the_batch_size_and_the_padding_do_not_change_a_part(tmp_path):
    spec, trunk = tiny()
    [path] = write_tiny_data(tmp_path / "d", shards=1, rows=23)
    [shard], _ = inspect(discover([str(path)]))
    files = [parts.to_files(scan_it(trunk, spec, shard, n).part, spec) for n in (4, 4, 5, 23, 64)]
    assert files[0] == files[1]
    scores = [parts.from_files(content, 0, spec).scores for content in files]
    for other in scores[2:]:
        assert other.row.tolist() == scores[0].row.tolist()
        np.testing.assert_allclose(other.activation, scores[0].activation, rtol=1e-5)


def test_nan_and_infinity_are_counted_by_channel_and_never_ranked(tmp_path):
    spec, trunk = tiny("dividing", layer=("conv1",), statistic=("mean",))
    [path] = write_tiny_data(tmp_path / "d", shards=1, rows=20)
    [shard], _ = inspect(discover([str(path)]))
    scanned = scan_it(trunk, spec, shard)
    [bad] = scanned.not_finite
    assert (bad["layer"], bad["statistic"], bad["channel"]) == ("conv1", "mean", 1)
    images = [(None, row.data) for row in _rows(shard)]
    expected = by_hand(trunk, spec, images)["conv1", "mean"]
    assert bad["images"] == (~np.isfinite(expected[:, 1])).sum() > 0
    kept = scanned.part.scores.row[scanned.part.scores.channel == 1]
    assert set(kept) <= set(np.flatnonzero(np.isfinite(expected[:, 1])))
    assert np.isfinite(scanned.part.scores.activation).all()


def _rows(shard):
    with open_shard(shard) as reader:
        return list(reader.images())


def test_a_row_that_gets_lost_on_the_way_fails_the_shard(tmp_path, monkeypatch):
    spec, trunk = tiny()
    [path] = write_tiny_data(tmp_path / "d", shards=1, rows=20)
    [shard], _ = inspect(discover([str(path)]))
    images = ParquetReader.images
    monkeypatch.setattr(ParquetReader, "images", lambda self: (one for one in images(self) if one.row != 7))
    with pytest.raises(ShardError, match="20 rows, but 19 scored and 0 skipped"):
        scan_it(trunk, spec, shard)


def test_fewer_images_than_k_give_them_all(tmp_path):
    spec, trunk = tiny(top_k=50)
    [path] = write_tiny_data(tmp_path / "d", shards=1, rows=6)
    scanned = scan_it(trunk, spec, inspect(discover([str(path)]))[0][0])
    assert np.unique(scanned.part.scores.row).tolist() == list(range(6))
    assert len(scanned.part.scores.row) == 6 * (8 + 12) * 2


def test_parts_survive_their_bytes_and_others_are_refused(tmp_path):
    spec, trunk = tiny()
    [path] = write_tiny_data(tmp_path / "d", shards=1)
    scanned = scan_it(trunk, spec, inspect(discover([str(path)]))[0][0], position=5)
    files = parts.to_files(scanned.part, spec)
    read = parts.from_files(files, 5, spec)
    assert parts.to_files(read, spec) == files
    for before, after in zip(scanned.part.scores, read.scores, strict=True):
        assert before.dtype == after.dtype
        assert before.tolist() == after.tolist()
    for name, tallies in scanned.part.tallies.items():
        for before, after in zip(tallies, read.tallies[name], strict=True):
            assert before.to_table().equals(after.to_table())
    with pytest.raises(ValueError, match="a part of another run: it has"):
        parts.from_files(files, 5, dataclasses.replace(spec, statistics=("mean",)))
    with pytest.raises(ValueError, match="not a part: its columns are image, label"):
        parts.from_files({**files, parts.CANDIDATES: path.read_bytes()}, 5, spec)


def test_tallies_are_the_same_however_many_rows_are_tallied_at_once(tmp_path, monkeypatch):
    spec, trunk = tiny()
    [path] = write_tiny_data(tmp_path / "d", shards=1, rows=23)
    [shard], _ = inspect(discover([str(path)]))
    expected = scan_it(trunk, spec, shard).part.tallies
    for block in (1, 5, 22, 23):
        monkeypatch.setattr(collect, "ROWS_PER_BLOCK", block)
        tallies = scan_it(trunk, spec, shard).part.tallies
        for one, other in zip(tallies["histogram"], expected["histogram"], strict=True):
            assert one.to_table().equals(other.to_table())
        for one, other in zip(tallies["moments"], expected["moments"], strict=True):
            assert one.images.tolist() == [23] * len(one.images)
            np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12)
            np.testing.assert_allclose(one.deviations, other.deviations, rtol=1e-9, atol=1e-15)


@pytest.fixture
def scanned_shard(tmp_path):
    """(spec, trunk, shard, candidates) of one tiny shard."""
    spec, trunk = tiny()
    [path] = write_tiny_data(tmp_path / "d", shards=1, rows=40)
    [shard], _ = inspect(discover([str(path)]))
    return spec, trunk, shard, scan_it(trunk, spec, shard).part.scores


def test_gather_recomputes_every_candidate_from_its_image(scanned_shard):
    spec, trunk, shard, candidates = scanned_shard
    gathered = gather_shard(trunk, spec, shard, candidates)
    assert gathered.exact.row.tolist() == candidates.row.tolist()
    np.testing.assert_allclose(gathered.exact.activation, candidates.activation, rtol=1e-4)
    rows = _rows(shard)
    assert gathered.images["row"].to_pylist() == sorted(set(candidates.row.tolist()))
    for row, data, path in zip(*(gathered.images[c].to_pylist() for c in ("row", "bytes", "path")), strict=True):
        assert data == rows[row].data
        assert path.endswith(f"_{row}.JPEG")


def test_gather_does_not_believe_the_scan(scanned_shard):
    spec, trunk, shard, candidates = scanned_shard
    rounded = candidates._replace(activation=candidates.activation * np.float32(1 + 1e-5))
    exact = gather_shard(trunk, spec, shard, rounded).exact
    assert exact.activation.tolist() == gather_shard(trunk, spec, shard, candidates).exact.activation.tolist()


@pytest.mark.parametrize("mix_up", ["rows", "channels", "one number", "nan"])
def test_a_mix_up_of_rows_and_numbers_cannot_survive(scanned_shard, mix_up):
    spec, trunk, shard, candidates = scanned_shard
    activation = candidates.activation.copy()
    if mix_up == "rows":
        wrong = candidates._replace(row=(candidates.row + 1) % 40)
    elif mix_up == "channels":
        wrong = candidates._replace(channel=(candidates.channel + 1) % 8)
    else:
        activation[len(activation) // 2] = np.nan if mix_up == "nan" else activation[len(activation) // 2] * 1.01
        wrong = candidates._replace(activation=activation)
    with pytest.raises(ShardError, match="changed: row .* the scan recorded"):
        gather_shard(trunk, spec, shard, wrong)


@pytest.mark.parametrize("column", ["row", "channel"])
def test_screening_allows_for_its_error_but_for_no_mix_up(scanned_shard, column):
    spec, trunk, shard, candidates = scanned_shard
    spec = dataclasses.replace(spec, precision="bfloat16")
    off = candidates._replace(activation=candidates.activation * np.float32(1.02))
    exact = gather_shard(trunk, spec, shard, off).exact
    assert exact.activation.tolist() == gather_shard(trunk, spec, shard, candidates).exact.activation.tolist()
    size = {"row": 40, "channel": 8}[column]
    with pytest.raises(ShardError, match="changed: row .* the scan recorded"):
        gather_shard(trunk, spec, shard, off._replace(**{column: (getattr(off, column) + 1) % size}))


@pytest.mark.parametrize("channels", ["all", "2"])
def test_screening_that_is_off_by_as_much_as_the_activation_is_no_mix_up(tmp_path, channels):
    """Of a shard that has nothing but images near 0, or at 0 though the scan saw them below."""
    flags = {"layer": ("mixed",), "statistic": ("max",), "precision": "bfloat16", "channels": channels}
    spec, trunk = tiny("hardly_firing", **flags)
    paths = write_tiny_data(tmp_path / "d", shards=1, rows=40)
    shard = inspect(discover([str(paths[0])]))[0][0]
    scores = scan_it(trunk, spec, shard).part.scores
    near = np.flatnonzero((scores.ranking == NEAR_ZERO) & (np.abs(scores.activation) < 0.05))
    weak = np.flatnonzero((scores.ranking == TOP) & (scores.activation > 0) & (scores.activation < 0.02))
    assert len(weak)
    assert len(near) or channels == "2"
    for one in (*near, *weak):
        exact = scores.take(np.array([one]))
        seen_as = [-0.02] if exact.ranking[0] == NEAR_ZERO else [0.0, 0.04] if channels == "all" else [0.0]
        for activation in seen_as:
            seen = exact._replace(activation=np.array([activation], np.float32))
            assert gather_shard(trunk, spec, shard, seen).exact.activation == pytest.approx(exact.activation, abs=1e-6)
        if exact.ranking[0] == TOP:
            with pytest.raises(ShardError, match="changed: row .* the scan recorded"):
                gather_shard(trunk, spec, shard, exact._replace(activation=np.ones(1, np.float32)))


def test_an_image_that_broke_after_the_scan_is_noticed(scanned_shard, tmp_path):
    spec, trunk, shard, candidates = scanned_shard
    broken = candidates.row[0]
    images = [LabelledImage(b"broken" if row.row == broken else row.data, None, 0) for row in _rows(shard)]
    paths, _ = write_images(images, str(tmp_path / "changed"), None, 1000)
    with pytest.raises(ShardError, match=f"row {broken} was scanned and is now broken"):
        gather_shard(trunk, spec, dataclasses.replace(shard, uri=str(paths[0])), candidates)


def test_the_reference_does_not_depend_on_how_many_images_are_gathered_together(scanned_shard):
    spec, trunk, shard, candidates = scanned_shard
    torch.set_num_threads(1)
    together = gather_shard(trunk, spec, shard, candidates).exact
    for row in np.unique(candidates.row)[:5]:
        mine = candidates.row == row
        alone = gather_shard(trunk, spec, shard, candidates.take(mine)).exact
        assert alone.activation.tolist() == together.take(mine).activation.tolist()
