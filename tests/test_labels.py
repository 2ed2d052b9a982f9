"""Synset ids and class names, from every place they may be in."""

import json

import pytest

from exemplar_ray.data.labels import ClassLabels, entries_of_texts, read_class_labels
from exemplar_ray.errors import UsageError


@pytest.mark.parametrize(
    ("path", "synset"),
    [
        ("n01440764_18.JPEG", "n01440764"),
        ("n04153751_783_n04153751.JPEG", "n04153751"),
        ("ILSVRC2012_val_00000293_n01440764.JPEG", "n01440764"),
        ("train/n02105855/n02105855_2933.JPEG", "n02105855"),
        ("n99999999/photo.jpeg", None),
        ("in01440764.jpeg", None),
        ("n014407641.jpeg", None),
        (None, None),
    ],
)
def test_synset_ids_in_paths(path, synset):
    assert ClassLabels().synset_id(None, path) == synset


def test_names_come_from_the_shards_and_the_users_file_wins():
    shards = ClassLabels(["tench", "goldfish"])
    assert (shards.class_name(1), shards.class_name(2), shards.class_name(None)) == ("goldfish", None, None)
    assert shards.synset_id(1, "x.png") is None
    both = ClassLabels(["tench", "goldfish"], {"1": ("n01443537", "Carassius auratus")})
    assert (both.class_name(0), both.class_name(1)) == ("tench", "Carassius auratus")
    assert both.synset_id(1, "x.png") == "n01443537"
    assert both.synset_id(1, "n01440764_18.JPEG") == "n01440764"
    assert both.all_names() == ["tench", "Carassius auratus"]
    assert ClassLabels.from_json(json.loads(json.dumps(both.to_json()))) == both


def test_names_that_are_synset_ids_give_the_synset():
    assert ClassLabels(["n01440764"]).synset_id(0, "x.png") == "n01440764"


def test_names_that_hugging_face_would_refuse_are_not_given_as_class_labels():
    assert ClassLabels(["crane", "crane"]).all_names() is None
    assert ClassLabels(None, {"2": ("n1", "two")}).all_names() is None
    assert ClassLabels().all_names() is None


@pytest.mark.parametrize(
    "content", ["not json", "[1]", '{"0": "tench"}', '{"0": ["n01440764"]}', '{"zero": ["n01440764", "tench"]}']
)
def test_class_labels_of_another_shape_are_refused(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(UsageError, match="class labels"):
        read_class_labels(str(tmp_path / "labels.json"))


def test_class_labels_of_texts_go_by_what_they_say_not_by_number():
    table = {"0": ("n01440764", "tench"), "5": ("n01443537", "goldfish"), "1": ("n1", "crane"), "2": ("n2", "crane")}
    found = entries_of_texts(["5", "crane", "n01440764", "other"], table)
    assert found == {"0": table["5"], "2": table["0"]}
    assert entries_of_texts(["goldfish"], table) == {"0": table["5"]}
    assert entries_of_texts(["goldfish"], {}) == {}
    with pytest.raises(UsageError, match="labels are texts, such as 'dog', and the class labels have no entry"):
        entries_of_texts(["dog"], table)
