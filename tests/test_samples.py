"""Samples beside the top: who is drawn, who counts as a near-duplicate, what a run shows of them."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY_CLASSES, TINY_FLAGS, TINY_NETWORK, encode, random_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from test_spec import resolved
from test_topk import make_scores

from exemplar_ray import open_run
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.gathered import MAPS_SCHEMA, GatheredShard
from exemplar_ray.exemplars.near_duplicates import near_duplicates_of, perceptual_hash, pick_distinct
from exemplar_ray.exemplars.parts import Part, candidates_kept
from exemplar_ray.exemplars.rerank.selection import Selection, rerank
from exemplar_ray.exemplars.sample_names import parse_samples
from exemplar_ray.exemplars.samples import SampledImages, band, draw, priority, sample_rate, sampled_images
from exemplar_ray.exemplars.spec import RunSpec
from exemplar_ray.exemplars.tables.channels import percentiles
from exemplar_ray.exemplars.topk import BOTTOM, TOP, merge
from exemplar_ray.network.layers import Layer

# Who is drawn ------------------------------------------------------------------------------


def test_samples_come_in_the_order_of_results_and_top_is_always_there():
    assert RunSpec(sample="q50,random,q99").sample == ("top", "random", "q99", "q50")
    assert RunSpec().sample == ("top",)
    spec = resolved(samples=parse_samples(["q5", "bottom", "random"]), distinct=True)
    assert spec.shown_samples == ("top", "distinct", "bottom", "random", "q5")
    assert spec.drawn_samples == ("random", "q5")


@pytest.mark.parametrize("name", ["q0", "q100", "q9.5", "botom", "distinct", ""])
def test_unknown_samples_are_refused(name):
    with pytest.raises(UsageError):
        RunSpec(sample=[name])
    with pytest.raises(UsageError, match="did you mean 'bottom'"):
        parse_samples(["botom"])


def test_priorities_are_even_differ_by_seed_and_belong_to_the_image():
    images = [i.to_bytes(4, "little") for i in range(20_000)]
    drawn = np.array([priority(0, image) for image in images])
    assert ((drawn >= 0) & (drawn < 1)).all()
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert (np.abs(counts - 1000) < 5 * np.sqrt(1000)).all()
    other = np.array([priority(1, image) for image in images])
    assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.03
    assert priority(0, images[7]) == drawn[7]


def test_every_shard_keeps_the_images_that_can_be_drawn():
    assert sampled_images(10) == 2000
    assert sampled_images(50) == 10_000
    assert sample_rate(1_281_167, 10) == pytest.approx(1.25 * 2000 / 1_281_167)
    assert sample_rate(0, 10) == sample_rate(800, 10) == 1


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 99), st.integers(1, 3000))
def test_a_band_is_the_ranks_within_half_a_percent(percentile, images):
    first, end = band(percentile, images)
    inside = [i for i in range(images) if abs(100 * (2 * i + 1) - 2 * percentile * images) < images]
    inside += [i for i in range(images) if 100 * (2 * i + 1) == (2 * percentile - 1) * images]
    if inside:
        assert list(range(first, end)) == sorted(inside)
    else:
        assert end - first == 1
        assert abs(100 * (first + 0.5) / images - percentile) <= 100 / images


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.integers(1, 12), st.integers(0, 5))
def test_drawing_takes_the_first_of_the_band(images, count, seed):
    """Against sorting in plain Python; ties among the activations, and one that is not finite."""
    values = np.random.default_rng(seed).integers(0, 30, (images, 2)).astype(np.float32)
    values[images // 3 : images // 3 + 1, 1] = np.nan
    for one in draw(values, ("random", "q90", "q50"), count):
        known = [i for i in range(images) if np.isfinite(values[i, one.channel])]
        if one.sample == "random":
            assert one.images.tolist() == known[:count]
            continue
        ascending = sorted(known, key=lambda i: (values[i, one.channel], i))
        first, end = band(int(one.sample[1:]), len(known))
        assert one.images.tolist() == sorted(ascending[first:end])[:count]
        assert set(one.at_edges.tolist()) >= {ascending[i] for i in (first, end - 1) if known}


# Near-duplicates ---------------------------------------------------------------------------


def textured_picture(seed, width=48, height=40):
    """A picture with detail at every scale, as photographs have: noise that falls with its frequency."""
    random = np.random.default_rng(seed)
    sides = [(3, 90), (6, 60), (12, 40), (24, 20)]
    layers = [random.normal(0, sd, (side, side)).astype(np.float32) for side, sd in sides]
    grey = sum(np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in layers)
    tint = random.uniform(0.5, 1, 3)
    return Image.fromarray(np.clip((grey[..., None] + 128) * tint, 0, 255).astype(np.uint8))


def copies_of(picture, count):
    """Copies of a picture that are not equal to it: recompressed, resized, tinted, cropped."""
    random = np.random.default_rng(5)
    for i in range(count):
        changed = picture
        if i % 4 == 1:
            shrunk = picture.width * 4 // 5, picture.height * 4 // 5
            changed = picture.resize(shrunk).resize(picture.size)
        if i % 4 == 2:
            changed = ImageEnhance.Brightness(picture).enhance(random.uniform(0.8, 1.2))
        if i % 4 == 3:
            changed = picture.crop((1, 1, picture.width - 1, picture.height - 1)).resize(picture.size)
        yield encode(changed, "JPEG", quality=int(random.integers(40, 95)))


def hash_of(data):
    return perceptual_hash(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_copies_are_near_duplicates_and_other_pictures_are_not():
    pictures = [textured_picture(seed, 64, 64) for seed in range(40)]
    others = [perceptual_hash(np.asarray(picture)) for picture in pictures]
    assert near_duplicates_of(others) == [None] * 40
    copies = [hash_of(data) for data in copies_of(pictures[3], 12)]
    assert near_duplicates_of([*others, *copies])[40:] == [3] * 12


def test_distinct_ones_are_picked_in_order_with_so_many_of_a_class():
    a, b, c = (perceptual_hash(np.asarray(textured_picture(seed, 64, 64))) for seed in range(3))
    assert pick_distinct([a, a, b, a, c], [0] * 5, 10, None) == [0, 2, 4]
    assert pick_distinct([a, a, b, a, c], [0] * 5, 2, None) == [0, 2]
    assert pick_distinct([a, b, c], [7, 7, 8], 3, 1) == [0, 2]
    assert pick_distinct([a, b, c], [None, None, None], 3, 1) == [0, 1, 2]
    assert pick_distinct([], [], 3, 1) == []


# The selection -----------------------------------------------------------------------------


def scanned_once(values, error=None, **changes):
    """Pretend to scan a shard of exact activations [images, channels], with an error; return the spec, what it gave."""
    images, channels = values.shape
    spec = resolved(layers=(Layer("mixed4a", channels, None, tuple(range(channels))),), top_k=3, **changes)
    scanned = (values + (0 if error is None else error)).astype(np.float32)
    image, channel = np.nonzero(np.isfinite(scanned))
    rankings = (TOP, BOTTOM) if spec.wants_bottom else (TOP,)
    scores = [make_scores(channel, scanned[image, channel], 0, image, ranking=ranking) for ranking in rankings]
    pool = SampledImages(np.zeros(images, np.int32), np.arange(images), np.arange(images) / images, [scanned])
    merged = replace(Part.empty(spec), scores=merge(scores, candidates_kept(spec)), sampled=pool)
    for tallies in merged.tallies.values():
        tallies[0].update(scanned, np.zeros(images, np.int64))
    return spec, merged


def gathered(candidates, exact, labels, hashes):
    """What gather would hand over of one shard's candidates, given exact activations; labels and hashes by row."""
    rows = np.unique(candidates.row).tolist()
    images = {"row": rows, "label": pa.array([labels[r] for r in rows], pa.int64()), "hash": [hashes[r] for r in rows]}
    nowhere = {name: pa.nulls(len(candidates.row), MAPS_SCHEMA.field(name).type) for name in MAPS_SCHEMA.names}
    scores = candidates._replace(activation=exact.astype(np.float32))
    return GatheredShard(pa.table(images), scores, pa.table(nowhere, schema=MAPS_SCHEMA))


def select(values, hashes, labels, error=None, **changes):
    """Run the selection over what a scan gave; return its result and in how many rounds."""
    spec, merged = scanned_once(values, error, **changes)
    selection = Selection(spec, merged, len(values))
    rounds = 0

    def gather(wanted):
        nonlocal rounds
        rounds += 1
        return {p: gathered(one, values[one.row, one.channel], labels, hashes) for p, one in wanted.items()}, {}

    assert rerank(selection, gather) == {}
    return selection.result(), rounds


def shown(selected, sample, channel=0):
    return [
        int(row)
        for row, c, name in zip(selected.scores.row, selected.scores.channel, selected.samples, strict=True)
        if name == sample and c == channel
    ]


HASHES = [perceptual_hash(np.asarray(textured_picture(seed, 64, 64))) for seed in range(100)]


def test_distinct_looks_as_deep_as_it_must_and_leaves_the_ranking_alone():
    values = np.arange(100, 0, -1, dtype=np.float64)[:, None]
    hashes = [HASHES[0]] * 30 + HASHES[30:]
    selected, rounds = select(values, hashes, [None] * 100, distinct=True)
    assert shown(selected, "top") == [0, 1, 2]
    assert shown(selected, "distinct") == [0, 30, 31]
    assert selected.duplicate_of == [None, None, 1, None, 1, None]  # by rank, top before distinct
    assert rounds == 5  # 3, 6, 12, 24, 48 deep
    assert selected.short == []
    plain, rounds = select(values, hashes, [None] * 100)
    assert (shown(plain, "top"), rounds) == ([0, 1, 2], 1)


def test_when_candidates_run_out_the_channel_is_called_short():
    values = np.arange(100, 0, -1, dtype=np.float64)[:, None]
    selected, _ = select(values, [HASHES[0]] * 100, [None] * 100, distinct=True)
    assert shown(selected, "distinct") == [0]
    assert selected.short == [(0, 0, 1)]
    # A data set of so few images has no more to give: that is not short.
    selected, _ = select(values[:20], [HASHES[0]] * 20, [None] * 20, distinct=True)
    assert (shown(selected, "distinct"), selected.short) == ([0], [])


def test_an_image_that_screening_gave_no_number_leaves_its_channel_in_doubt():
    values = np.arange(100, 0, -1, dtype=np.float64)[:, None] * np.ones(2)
    overflown = np.zeros(values.shape)
    overflown[0, 1] = np.inf
    selected, rounds = select(values, HASHES, [None] * 100, overflown, precision="float16")
    assert (selected.unsettled, rounds) == ([(0, 1, "top")], 1)
    assert [known.settled.tolist() for known in selected.certainty] == [[True, False]]
    assert shown(selected, "top") == [0, 1, 2]


def test_at_most_so_many_of_a_class():
    values = np.arange(50, 0, -1, dtype=np.float64)[:, None]
    selected, _ = select(values, HASHES[:50], [0] * 10 + [1] * 40, distinct=True, max_per_class=1)
    assert shown(selected, "distinct") == [0, 10]
    selected, _ = select(values, HASHES[:50], [0] * 10 + [1] * 40, distinct=True, max_per_class=2)
    assert shown(selected, "distinct") == [0, 1, 10]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000))
def test_recomputing_decides_who_is_in_a_band(seed):
    """The scan's rounding swaps neighbours; the drawn images are those of the exact order all the same."""
    random = np.random.default_rng(seed)
    values = random.permutation(np.arange(400.0))[:, None]
    error = np.where(random.random((400, 1)) < 0.5, 0.6, -0.6)
    samples = ("top", "random", "q90", "q50")
    hashes = [bytes(32)] * 400
    exact, _ = select(values, hashes, [None] * 400, samples=samples)
    with_error, _ = select(values, hashes, [None] * 400, error, samples=samples)
    for sample in samples:
        assert shown(with_error, sample) == shown(exact, sample)
    assert shown(exact, "random") == [0, 1, 2]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000))
def test_percentiles_are_exact_where_images_are_level_with_the_last_and_all_lie_in_one_bin(seed):
    """A channel that hardly varies: its histogram says nothing, and the K-th of an exact scan may have equals."""
    random = np.random.default_rng(seed)
    level = random.integers(0, 200, (60, 8))
    distinct = np.stack([4 * random.permutation(60) for _ in range(8)], axis=1)
    erring = np.arange(8) % 2
    values = 1 + np.where(erring, distinct, level) * 2.0**-20
    error = erring * random.choice([-1, 1], (60, 8)) * 2.0**-20
    spec, merged = scanned_once(values, error, samples=("top", "bottom"))
    selected, _ = select(values, [bytes(32)] * 60, [None] * 60, error, samples=("top", "bottom"))
    found = percentiles(spec, merged, selected.tails, selected.scores)
    below = (values[:, selected.scores.channel] < selected.scores.activation).mean(axis=0)
    assert found == pytest.approx(100 * below)


# In a run ----------------------------------------------------------------------------------

SAMPLES = ["--sample", "bottom", "random", "q90", "q50", "--class-top-k", "2"]


@pytest.fixture
def finished(tiny_data, tmp_path, cli, ray_cluster):
    flags = [*TINY_FLAGS, "--layer", "mixed", "mixed_pre_relu", "--statistic", "mean", "center", *SAMPLES, "--distinct"]
    status, text = cli("run", "--data", tiny_data, "--out", tmp_path / "run", *flags)
    assert status == 0, text
    return tmp_path / "run"


def test_the_strongest_are_the_same_with_and_without_other_samples(finished, tiny_data, tmp_path, cli):
    flags = [*TINY_FLAGS, "--layer", "mixed", "mixed_pre_relu", "--statistic", "mean", "center"]
    assert cli("run", "--data", tiny_data, "--out", tmp_path / "plain", *flags)[0] == 0
    plain = pq.read_table(tmp_path / "plain" / "exemplars.parquet")
    rows = pq.read_table(finished / "exemplars.parquet")
    top = rows.filter(np.array(rows["sample"]) == "top")
    assert top.equals(plain)
    assert not (tmp_path / "plain" / "images.parquet").exists()


def test_rows_are_sorted_and_every_sample_has_its_ranks(finished):
    rows = pq.read_table(finished / "exemplars.parquet").drop_columns(["image"]).to_pandas()
    keys = list(zip(rows["layer"], rows["statistic"], rows["channel"], rows["rank"], strict=True))
    assert keys == sorted(keys)
    ranks = rows.groupby(["layer", "statistic", "channel", "sample"])["rank"].apply(list)
    for (_, _, _, sample), found in ranks.items():
        assert found == list(range(1, len(found) + 1))
        assert len(found) == (1 if sample in ("q90", "q50") else 3)
    assert len(ranks) == 2 * 2 * 12 * 6


def test_what_the_samples_show_lies_where_it_should(finished):
    run = open_run(str(finished))
    rows = run.table(layer="mixed_pre_relu", statistic="center").to_pandas()
    for _, of_channel in rows.groupby("channel"):
        bottom = of_channel[of_channel["sample"] == "bottom"]["activation"].tolist()
        assert bottom == sorted(bottom)
        top = of_channel[of_channel["sample"] == "top"]["activation"].tolist()
        middle = of_channel[of_channel["sample"].isin(["q90", "q50", "random"])]["activation"]
        assert middle.between(bottom[0], top[0]).all()
        assert of_channel[of_channel["sample"] == "bottom"]["percentile"].tolist() == [0, 100 / 80, 200 / 80]
    random = rows[rows["sample"] == "random"].groupby("channel")["row"].apply(list)
    assert len({tuple(found) for found in random}) == 1
    assert (rows["activation"] < 0).any()


def test_images_of_other_samples_are_stored_once_and_found_again(finished):
    run = open_run(str(finished))
    stored = pq.read_table(finished / "images.parquet")
    keys = list(zip(stored["shard"].to_pylist(), stored["row"].to_pylist(), strict=True))
    assert len(set(keys)) == len(keys)
    by_key = dict(zip(keys, stored["image"].to_pylist(), strict=True))
    bare = pq.read_table(finished / "exemplars.parquet").to_pylist()
    assert {row["sample"] for row in bare if row["image"]} == {"top"}
    for exemplar in run.exemplars(channel=3):
        if exemplar["sample"] != "top":
            assert exemplar["image"] == by_key[exemplar["shard"], exemplar["row"]]
        assert exemplar.image.size == (48, 40)
    assert {e["sample"] for e in run.exemplars(sample=["bottom", "q50"])} == {"bottom", "q50"}


def test_the_centre_units_field_can_be_cut_out(finished):
    run = open_run(str(finished))
    [layer] = [layer for layer in run.plan.spec.layers if layer.name == "mixed"]
    assert layer.map_size == (16, 16)
    for exemplar in run.exemplars(layer="mixed", statistic="center", channel=[0, 5]):
        assert exemplar["activation_map"][8 * 16 + 8] == pytest.approx(exemplar["activation"], rel=1e-3, abs=1e-6)
        # conv1 (5, stride 2, padding 2) then 3 x 3: unit 8 sees 9 pixels from 12 of the 32 in the crop.
        scale = 40 / 36
        left = (round((43 - 32) / 2) + 12) * 48 / 43
        assert exemplar["unit_box"][0] == pytest.approx(left, abs=1e-3)
        assert exemplar["unit_box"][1] == pytest.approx((2 + 12) * scale, abs=1e-3)
        assert exemplar.unit.size[1] in (10, 11)
    assert run.exemplars(layer="mixed", statistic="mean", channel=0)[0].unit is None


def test_exemplars_of_classes_are_the_strongest_of_each(finished, tiny_data):
    run = open_run(str(finished))
    best = run.class_exemplars(layer="mixed", statistic="mean").to_pandas()
    assert list(best.columns[:5]) == ["layer", "statistic", "channel", "label", "class_name"]
    assert len(best) == 12 * 3 * 2
    assert set(best["class_name"]) == set(TINY_CLASSES)
    classes = run.classes(layer="mixed", statistic="mean").to_pandas().set_index(["channel", "label"])
    for row in best[best["rank"] == 1].itertuples():
        assert row.activation == pytest.approx(classes.loc[row.channel, row.label]["max"], rel=2**-11)
    top = run.table(layer="mixed", statistic="mean", rank=1, sample="top").to_pandas().set_index("channel")
    strongest = best.loc[best.groupby("channel")["activation"].idxmax()].set_index("channel")
    assert strongest["shard"].tolist() == top["shard"].tolist()
    assert strongest["row"].tolist() == top["row"].tolist()
    with pytest.raises(UsageError, match="--class-top-k"):
        replace_spec(run, class_top_k=0).class_exemplars()


def replace_spec(run, **changes):
    run.plan = replace(run.plan, spec=replace(run.plan.spec, **changes))
    return run


@pytest.mark.usefixtures("ray_cluster")
def test_30_near_duplicates_are_marked_and_skipped_where_asked(tmp_path, cli):
    """The picture that excites channel 0 most, 30 times over, spread over the shards."""
    pictures = [LabelledImage(encode(textured_picture(i)), f"{i}.png", i % 3) for i in range(60)]
    write_images(pictures, str(tmp_path / "plain"), TINY_CLASSES, 20)
    flags = [*TINY_FLAGS, "--channels", "0", "--top-k", "35"]
    assert cli("run", "--data", tmp_path / "plain", "--out", tmp_path / "first", *flags)[0] == 0
    [best] = open_run(str(tmp_path / "first")).exemplars(rank=1)
    copies = list(copies_of(best.image, 30))
    copied = [LabelledImage(data, f"copy{i}.jpg", 0) for i, data in enumerate(copies)]
    others = [picture for picture in pictures if picture.path != best["image_path"]]
    images = [image for pair in zip(others, copied, strict=False) for image in pair] + others[len(copied) :]
    write_images(images, str(tmp_path / "data"), TINY_CLASSES, 9)
    tables = {}
    for name, more in (("raw", []), ("distinct", ["--distinct"]), ("classes", ["--max-per-class", "4"])):
        status, text = cli("run", "--data", tmp_path / "data", "--out", tmp_path / name, *flags, *more)
        assert status == 0, text
        tables[name] = open_run(str(tmp_path / name)).table()
    raw = tables["raw"].to_pandas()
    is_copy = raw["image_path"].str.startswith("copy")
    assert is_copy.sum() >= 25
    marked = raw["duplicate_of"].notna()
    first = raw[is_copy]["rank"].iloc[0]
    assert (raw[is_copy & (raw["rank"] > first)]["duplicate_of"] == first).all()
    assert not marked[~is_copy].any()
    for name in ("distinct", "classes"):
        rows = tables[name]
        assert rows.filter(np.array(rows["sample"]) == "top").equals(tables["raw"])
        picked = rows.filter(np.array(rows["sample"]) == "distinct").to_pandas()
        assert picked["duplicate_of"].isna().all()
        assert picked["image_path"].str.startswith("copy").sum() <= 1
        assert picked["activation"].is_monotonic_decreasing
    assert (picked["label"].value_counts() <= 4).all()
    assert json.loads((tmp_path / "distinct" / "summary.json").read_text())["short_of_distinct"] == []


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_drawn_belongs_to_the_image_not_to_the_shards(tmp_path, cli):
    """The same images in other shards, in another order: the same random images, the same bands."""
    images = [LabelledImage(encode(random_picture(i)), f"{i}.png", i % 3) for i in range(60)]
    write_images(images, str(tmp_path / "a"), TINY_CLASSES, 25)
    write_images(images[::-1], str(tmp_path / "b"), TINY_CLASSES, 7)
    found = []
    for name in "ab":
        flags = [*TINY_FLAGS, *SAMPLES, "--model", TINY_NETWORK]
        assert cli("run", "--data", tmp_path / name, "--out", tmp_path / f"run-{name}", *flags)[0] == 0
        rows = open_run(str(tmp_path / f"run-{name}")).table(["channel", "sample", "rank", "image_path", "activation"])
        found.append(rows.to_pylist())
    assert found[0] == found[1]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sample", "q100"], "unknown sample 'q100'"),
        (["--max-per-class", "0"], "max_per_class is a whole number from 1"),
        (["--layer", "wide_pre_relu"], "does not end in a ReLU"),
        (["--layer", "nowhere_pre_relu"], "unknown layer"),
        (["--statistic", "centre"], "did you mean 'center'"),
    ],
)
def test_what_cannot_be_had_is_one_line(tiny_data, tmp_path, cli, flags, message):
    status, text = cli("run", "--data", tiny_data, "--out", tmp_path / "run", *TINY_FLAGS, *flags)
    assert status == 2
    assert message in text
    assert len(text.strip().splitlines()) == 1
