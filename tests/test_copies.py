"""Copies of an image are recomputed once, wherever they are, and what comes of it is what each alone would give."""

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TINY_FLAGS, encode, random_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scan_and_gather import scan_it, shard_of, tiny
from test_topk import make_scores

from exemplar_ray.data.shard import ImageRow
from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.exemplars import answer, left_answers, tasks
from exemplar_ray.exemplars import reference as reference_module
from exemplar_ray.exemplars.gather import gather_shard
from exemplar_ray.exemplars.gather_tasks import Task, likely_originals, split
from exemplar_ray.exemplars.gathered import IMAGES_SCHEMA, NotAsScanned, OfShard, ToGather, bytes_of_answer
from exemplar_ray.exemplars.left_answers import LeftAnswers
from exemplar_ray.exemplars.reference import Reference, key_of
from exemplar_ray.exemplars.tasks import gather
from exemplar_ray.exemplars.topk import image_numbers
from exemplar_ray.network.spec import LABELS_GIVEN


def originals(scores):
    """Return {(shard, row): the (shard, row) that it seems to be a copy of}."""
    images, image = np.unique(image_numbers(scores), return_inverse=True)
    found = likely_originals(scores, images, image)
    places = [(int(number >> 32), int(number & 0xFFFFFFFF)) for number in images]
    return {place: places[original] for place, original in zip(places, found, strict=True) if places[original] != place}


def test_copies_are_told_by_their_activations_in_every_channel():
    channel = [0, 0, 0, 1, 1, 1, 2]
    shard, row = [0, 1, 1, 0, 1, 1, 1], [5, 2, 3, 5, 2, 3, 3]
    scores = make_scores(channel, [4.0, 4.0, 4.0, 7.0, 7.0, 6.0, 1.0], shard, row)
    # Row 3 has one number of three in common with the first: chance.
    assert originals(scores) == {(1, 2): (0, 5)}
    # One number of few digits in common is chance, one of many is not.
    alone = scores.take(scores.channel == 0)
    assert originals(alone) == {}
    assert originals(alone._replace(activation=alone.activation + np.float32(0.1))) == {(1, 2): (0, 5), (1, 3): (0, 5)}
    zeros = scores._replace(activation=np.zeros_like(scores.activation))
    assert originals(zeros) == {}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_candidate_is_in_one_task_and_an_image_s_are_together(data):
    spec, _ = tiny()
    count = data.draw(st.integers(1, 40))
    of = [data.draw(st.lists(st.integers(0, most), min_size=count, max_size=count)) for most in (3, 4, 2, 5)]
    scores = make_scores(of[0], [float(value) for value in of[3]], of[1], of[2])
    scores = scores.take(np.unique(np.stack([scores.shard, scores.row, scores.channel]), axis=1, return_index=True)[1])
    wanted = {int(shard): scores.take(scores.shard == shard) for shard in np.unique(scores.shard)}
    shard = type("Shard", (), {"size": data.draw(st.sampled_from([100, 3 << 30])), "expected_rows": 3})()
    tasks = split(spec, dict.fromkeys(wanted, shard), wanted)
    for position, candidates in wanted.items():
        pieces = [task.candidates[position] for task in tasks if position in task.candidates]
        assert sorted(np.concatenate(pieces).tolist()) == list(range(len(candidates.row)))
        rows = [set(candidates.row[piece].tolist()) for piece in pieces]
        assert sum(map(len, rows)) == len(set.union(*rows))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def copies(request, tmp_path_factory):
    """Three shards, of which the second and a part of the third have the images of the first in another order."""
    folder = tmp_path_factory.mktemp("copies")
    images = [(f"{i}.png", encode(random_picture(i))) for i in range(6)]
    spec, trunk = tiny("hardly_firing", precision=request.param, layer=("classifier", "mixed"))
    shards = [shard_of(folder / str(n), some) for n, some in enumerate((images, images[::-1], images[2:4]))]
    scanner = tiny("hardly_firing", precision=request.param, layer=("classifier", "mixed"))[1]
    scanned = {n: scan_it(scanner, spec, shard, position=n).part.scores for n, shard in enumerate(shards)}
    return spec, trunk, shards, scanned


def forward_passes(trunk, monkeypatch):
    asked = []
    forward = trunk._forward
    monkeypatch.setattr(trunk, "_forward", lambda crops, *more: asked.append(len(crops)) or forward(crops, *more))
    return asked


def gathered(copies, candidates, reference):
    spec, trunk, shards, scanned = copies
    return [gather_shard(trunk, spec, shards[p], scanned[p].take(which), reference) for p, which in candidates.items()]


def test_a_network_is_asked_once_about_copies_of_an_image(copies, monkeypatch):
    spec, trunk, shards, scanned = copies
    [task] = split(spec, dict(enumerate(shards)), scanned)
    assert list(task.candidates) == [0, 1, 2]
    asked = forward_passes(trunk, monkeypatch)
    together = gathered(copies, task.candidates, Reference(trunk, spec.network))
    assert asked == [1] * 6
    alone = gathered(copies, task.candidates, None)
    assert len(asked) == 6 + 14
    for one, other in zip(together, alone, strict=True):
        assert one.images.equals(other.images)
        assert one.maps.equals(other.maps)
        assert [column.tolist() for column in one.exact] == [column.tolist() for column in other.exact]


def test_what_has_been_forgotten_is_asked_again(copies, monkeypatch):
    spec, trunk, shards, scanned = copies
    monkeypatch.setattr(reference_module, "MOST_REMEMBERED_BYTES", 1)
    [task] = split(spec, dict(enumerate(shards)), scanned)
    asked = forward_passes(trunk, monkeypatch)
    few = gathered(copies, task.candidates, Reference(trunk, spec.network))
    # But for the last, the second shard's first.
    assert len(asked) == 14 - 1
    assert few[1].maps.equals(gathered(copies, task.candidates, None)[1].maps)


def test_what_was_recomputed_for_one_task_is_left_for_later_ones(copies, monkeypatch):
    spec, trunk, shards, scanned = copies
    monkeypatch.setattr(tasks, "trunk_of", lambda *_: trunk)
    asked = forward_passes(trunk, monkeypatch)
    left, stored = LeftAnswers(replace(spec, precision="bfloat16"), {}), []

    def round_of(positions):
        wanted = {position: scanned[position] for position in positions}
        [task] = split(spec, dict(enumerate(shards)), wanted, left.scanned)
        given = [OfShard(shards[p], scanned[p].take(which)) for p, which in task.candidates.items()]
        found, more = gather(spec, ToGather(given, left.wants_more), (stored[number] for number in left.of(task)))
        stored.append(more)
        left.add(task, len(stored) - 1)
        left.note(wanted)
        return found

    round_of([0])
    assert len(asked) == 6
    # Copies, which go to a task of their own as their originals were recomputed before.
    second, third = round_of([1, 2])
    again = round_of([1])
    assert len(asked) == 6
    alone = gathered(copies, {1: np.arange(len(scanned[1].row)), 2: np.arange(len(scanned[2].row))}, None)
    for one, other in zip([second, third, *again], [*alone, alone[0]], strict=True):
        assert one.images.drop_columns(["bytes"]).equals(other.images.drop_columns(["bytes"]))
        assert one.maps.equals(other.maps)
        assert [column.tolist() for column in one.exact] == [column.tolist() for column in other.exact]


def test_an_images_bytes_are_brought_once(copies):
    spec, _, shards, scanned = copies
    of_shards = [OfShard(shard, scanned[n]) for n, shard in enumerate(shards)]
    # What is of a shard that is not as it was scanned has been brought by nobody.
    off = scanned[0]._replace(activation=scanned[0].activation + np.float32(100))
    changed, second, third = gather(spec, ToGather([OfShard(shards[0], off), *of_shards[1:]], leave=False))[0]
    assert isinstance(changed, NotAsScanned)
    assert second.images["bytes"].null_count == 0

    first, second, third = gather(spec, ToGather(of_shards, leave=False))[0]
    contents, data = (
        [row for one in (first, second, third) for row in one.images[c].to_pylist()] for c in ("content", "bytes")
    )
    brought = {content: one for content, one in zip(contents, data, strict=True) if one is not None}
    assert len(contents) == 14
    assert len([one for one in data if one is not None]) == len(brought) == len(set(contents)) == 6
    assert all(hashlib.sha256(one).digest() == content for content, one in brought.items())

    # Whoever asks may have some; and may have had another image there.
    rows, contents = (first.images[name].to_pylist() for name in ("row", "content"))
    had = {rows[0]: contents[0], rows[1]: contents[0]}
    [again] = gather(spec, ToGather([of_shards[0]._replace(had=had)], leave=False))[0]
    assert again.images["bytes"].is_null().to_pylist() == [True, *[False] * 5]
    assert again.images.schema == IMAGES_SCHEMA


def test_tasks_leave_what_will_be_asked_for_while_there_is_room(copies, monkeypatch):
    spec, _, _, _ = copies
    screened = replace(spec, precision="bfloat16")
    one_round = replace(spec, precision="float32", decode="reference", distinct=False)
    task = Task({}, np.arange(3), np.arange(2))
    assert not LeftAnswers(one_round, {}).wants_more
    assert LeftAnswers(replace(one_round, distinct=True), {}).wants_more
    # The scan has left all that there is.
    assert not LeftAnswers(screened, {0: "of the scan"}).wants_more
    monkeypatch.setattr(left_answers, "MOST_BYTES", 3 * bytes_of_answer(screened))
    left = LeftAnswers(screened, {})
    left.add(task, "first")
    assert left.wants_more
    left.add(Task({}, np.arange(1, 5), np.arange(1, 5)), "second")
    assert not left.wants_more
    left.add(Task({}, np.array([9]), np.array([9])), None)
    assert left.of(Task({}, np.array([2, 9, 4]), np.array([0]))) == ["first", "second"]


def test_labels_that_a_network_is_given_tell_copies_apart(copies):
    spec, _, _, _ = copies
    rows = [ImageRow(0, b"x", None, label) for label in (1, 2)]
    assert len({key_of(spec.network, b"content", row) for row in rows}) == 1
    takes_labels = replace(spec.network, labels=LABELS_GIVEN)
    assert len({key_of(takes_labels, b"content", row) for row in rows}) == 2


def test_a_shard_that_changed_is_told_of_beside_the_others(copies):
    spec, _, shards, scanned = copies
    off = scanned[1]._replace(activation=scanned[1].activation + np.float32(100))
    given = [OfShard(shards[0], scanned[0]), OfShard(shards[1], off), OfShard(shards[2], scanned[2])]
    (exact, changed, last), left = gather(spec, ToGather(given, leave=False))
    assert left is None
    assert (len(exact.images), len(last.images)) == (6, 2)
    assert "changed: row" in changed.reason


def test_of_shards_with_copies_only_the_damaged_one_fails(tmp_path, cli, ray_cluster, monkeypatch):
    gather_candidates, rounds = answer.gather_candidates, []

    def noted(plan, context, images, left, wanted):
        task, *_ = split(plan.spec, {p: plan.shards[p] for p in wanted}, wanted, left.scanned)
        rounds.append(left.of(task))
        return gather_candidates(plan, context, images, left, wanted)

    monkeypatch.setattr(answer, "gather_candidates", noted)
    images = [LabelledImage(encode(random_picture(i)), f"{i}.png", 0) for i in range(8)]
    for name in "abcdefghij":
        write_images(images, str(tmp_path / "data" / name), ["n01440764"], 8)
    run = [
        "run",
        "--data",
        *(tmp_path / "data" / name for name in "abcdefghij"),
        "--out",
        tmp_path / "run",
        *TINY_FLAGS,
        "--distinct",
    ]
    status, said = cli(*run)
    assert status == 0, said
    # Copies stand before distinct images: these take further rounds, which are handed what the first one left.
    assert len(rounds) > 1
    assert [bool(handed) for handed in rounds] == [False] + [True] * (len(rounds) - 1)
    whole = pq.read_table(tmp_path / "run" / "exemplars.parquet")
    assert {name.split("/")[0] for name in whole["shard"].to_pylist()} == {"a", "b", "c"}
    [damaged] = (tmp_path / "data" / "b").glob("*.parquet")
    shutil.copy(damaged, tmp_path / "kept")
    damaged.unlink()
    status, said = cli("merge", tmp_path / "run")
    assert status == 1
    assert "INCOMPLETE: 1 of 10 shards have no result:\n  b/train-00000-of-00001.parquet: FileNotFoundError" in said
    shutil.copy(tmp_path / "kept", damaged)
    assert cli("merge", tmp_path / "run")[0] == 0
    assert pq.read_table(tmp_path / "run" / "exemplars.parquet").equals(whole)
