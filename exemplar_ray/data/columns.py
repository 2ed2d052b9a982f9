"""Which columns of a shard hold the images and the labels, and what a label's column says.

`image` and `label` are taken where they are there. Where they are not, the one column that must be it is taken, and
that is said; where several might be, the user chooses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from exemplar_ray.data.chosen import NO_LABELS, Chosen
from exemplar_ray.data.labels import label_of
from exemplar_ray.errors import UsageError

IMAGE, LABEL = "image", "label"

WHOLE, FLOAT, TEXT = "whole", "float", "text"

_LARGEST = 2**63

_IMAGE_WORDS = {"image", "images", "img", "imgs", "picture", "pictures", "photo", "photos"} | {
    *("jpg", "jpeg", "png", "webp", "tif", "tiff", "gif", "bmp")
}
_LABEL_WORDS = {"label", "labels", "class", "cls", "target", "targets", "category"}
# What may stand behind such a word: class_id, label_name.
_OF_A_LABEL = {"id", "idx", "index", "name"}
_COUNTS = {"num", "n", "number", "count"}


@dataclass(frozen=True)
class Columns:
    """Where a shard's images and labels are, if not in `image` and as whole numbers in `label`.

    Formats without columns call their usual places so, too.
    """

    image: str = IMAGE
    label: str | None = LABEL
    """None where the shard has none; `NO_LABELS` where it has one in the usual place that the user does not want."""
    texts: bool = False
    """Whether labels are texts."""
    names: tuple[str, ...] | None = None
    """The texts of the whole data set, sorted: a label's number is its place here. None until they are known."""

    @property
    def label_column(self) -> str | None:
        """Return the column to read labels from."""
        return None if self.label == NO_LABELS else self.label

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, without the names: a data set has them once."""
        return {"image": self.image, "label": self.label, "texts": self.texts}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], names: Sequence[str] | None) -> Columns:
        """Read back what `to_json` wrote."""
        texts = values.get("texts", False)
        return cls(values["image"], values["label"], texts, tuple(names or ()) if texts else None)


USUAL = Columns()


def find_columns(schema: pa.Schema, chosen: Chosen, where: str) -> Columns:
    """Find the columns of images and labels.

    Args:
        where: what the schema is of, for messages.

    Raises:
        UsageError: there are no images, or several columns might be it, or a chosen one cannot be.
    """
    image = _image_column(schema, chosen.image, where)
    label = _label_column(schema, chosen.label, where, image)
    kind = None if label in (None, NO_LABELS) else label_kind(schema.field(label).type)
    return Columns(image, label, kind == TEXT)


# Images -----------------------------------------------------------------------------------


def _image_column(schema: pa.Schema, chosen: str | None, where: str) -> str:
    if chosen is not None:
        _refuse_missing(schema, chosen, where, "--image-column")
        if image_fields(schema, chosen) is None:
            raise UsageError(f"'{where}' has no images in column '{chosen}': {_no_image(schema, chosen)}")
        return chosen
    if image_fields(schema, IMAGE) is not None:
        return IMAGE
    found = [name for name in dict.fromkeys(schema.names) if _may_be_image(schema, name)]
    if len(found) > 1:
        raise UsageError(
            f"'{where}' has several columns that may be the images: {', '.join(found)}; "
            "choose one with --image-column NAME"
        )
    if found:
        return found[0]
    why = f"; '{IMAGE}' is none: {_no_image(schema, IMAGE)}" if IMAGE in schema.names else ""
    raise UsageError(
        f"'{where}' has no image column (image: struct<bytes, path> or image: binary); it has {_listed(schema)}{why}; "
        "--image-column NAME says if one of these holds images' bytes"
    )


def image_fields(schema: pa.Schema, name: str) -> list[str] | None:
    """Return the parquet columns that hold an image's bytes (first) and path, or None if the column has no bytes."""
    if schema.names.count(name) != 1:
        return None
    kind = schema.field(name).type
    if not pa.types.is_struct(kind):
        return [name] if _is_bytes(kind) else None
    fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    if "bytes" not in fields or not _is_bytes(fields["bytes"]):
        return None
    return [f"{name}.{field}" for field in ("bytes", "path") if field in fields]


def _may_be_image(schema: pa.Schema, name: str) -> bool:
    """Whether a column of another name is one of images: it says so, or is made as one, or is called so."""
    if image_fields(schema, name) is None:
        return False
    feature = _features(schema).get(name)
    kind = feature.get("_type") if isinstance(feature, dict) else None
    if kind in ("Image", "Audio", "Video"):
        return kind == "Image"
    return pa.types.is_struct(schema.field(name).type) or bool(_words(name) & _IMAGE_WORDS)


def _no_image(schema: pa.Schema, name: str) -> str:
    """Say why a column holds no images."""
    if schema.names.count(name) > 1:
        return "several columns have this name"
    kind = schema.field(name).type
    if _is_list(kind):
        return f"it is {kind}, several a row; a row is one image"
    if _is_text(kind) or pa.types.is_struct(kind):
        return f"it is {kind}: paths or addresses, not the images' bytes"
    return f"it is {kind}, no bytes"


def _is_bytes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def image_bytes(images: pa.Array) -> list[bytes | None]:
    """Return the encoded bytes of each row of an image column; None where there are none."""
    found = _field(images, "bytes") if pa.types.is_struct(images.type) else images
    return [None] * len(images) if found is None else found.to_pylist()


def image_paths(images: pa.Array) -> list[str | None]:
    """Return the path of each row of an image column; None where there is none."""
    found = _field(images, "path") if pa.types.is_struct(images.type) else None
    return [None] * len(images) if found is None or not _is_text(found.type) else found.to_pylist()


def _field(images: pa.StructArray, name: str) -> pa.Array | None:
    names = [images.type.field(i).name for i in range(images.type.num_fields)]
    # flatten() carries a null struct over to its fields.
    return images.flatten()[names.index(name)] if name in names else None


# Labels -----------------------------------------------------------------------------------


def _label_column(schema: pa.Schema, chosen: str | None, where: str, image: str) -> str | None:
    usual = LABEL if LABEL in schema.names and image != LABEL else None
    if chosen == NO_LABELS:
        return NO_LABELS if usual else None
    # Whether a chosen column is anywhere is known when all shards have been looked at.
    wanted = usual if chosen is None else chosen if chosen in schema.names else None
    if wanted is not None:
        _refuse_no_label(schema, wanted, where)
        return wanted
    found = [name for name in dict.fromkeys(schema.names) if name != image and _may_be_label(schema, name)]
    if chosen is not None or not found:
        return None
    if len(found) > 1:
        raise UsageError(
            f"'{where}' has several columns that may be the labels: {', '.join(found)}; "
            f"choose one with --label-column NAME, or --label-column {NO_LABELS}"
        )
    return found[0]


def _refuse_no_label(schema: pa.Schema, name: str, where: str) -> None:
    several = schema.names.count(name) > 1
    if several or label_kind(schema.field(name).type) is None:
        kind = "there several times" if several else schema.field(name).type
        raise UsageError(
            f"'{where}': column '{name}' is {kind}; a label is one whole number or text a row; "
            f"choose another column with --label-column NAME, or --label-column {NO_LABELS}"
        )


def _may_be_label(schema: pa.Schema, name: str) -> bool:
    """Whether a column of another name is one of labels: it says so, or is called so and has whole numbers or texts."""
    if schema.names.count(name) > 1 or label_kind(schema.field(name).type) not in (WHOLE, TEXT):
        return False
    feature = _features(schema).get(name)
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        return True
    words = _in_words(name)
    if len(words) > 1 and words[-1] in _OF_A_LABEL:
        words.pop()
    return bool(words) and words[-1] in _LABEL_WORDS and words[0] not in _COUNTS


def label_kind(kind: pa.DataType) -> str | None:
    """Return how labels of a type are read: `WHOLE`, `FLOAT` (of whole numbers), `TEXT`; None if they are no labels."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return WHOLE
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return FLOAT
    return TEXT if _is_text(kind) else None


def label_reader(kind: pa.DataType, names: Sequence[str] | None) -> Callable[[pa.Array], list[int | None]]:
    """Return what reads a column of labels: class ids, None where there is none.

    Args:
        kind: the column's type.
        names: the texts of the whole data set, sorted, if labels are texts.

    Raises:
        ValueError: by what is returned: a number is not whole, a text is none of the names.
    """
    if label_kind(kind) == TEXT:
        numbers = {name: number for number, name in enumerate(names or ())}
        return lambda column: [label_of(value, numbers) for value in column.to_pylist()]
    if pa.types.is_integer(kind):
        return lambda column: [v if v is None or 0 <= v < _LARGEST else label_of(v) for v in column.to_pylist()]
    return lambda column: [label_of(value) for value in column.to_pylist()]


def class_names(schema: pa.Schema, label: str | None) -> list[str] | None:
    """Return the names of a label column's ClassLabel feature, where the schema has one."""
    feature = _features(schema).get(label) if label is not None else None
    names = feature.get("names") if isinstance(feature, dict) else None
    return names if isinstance(names, list) and names and all(isinstance(n, str) for n in names) else None


# Both -------------------------------------------------------------------------------------


def describe(columns: Iterable[Columns | None], word: str = "column", usual_label: str = LABEL) -> list[str]:
    """Say in lines what is unusual about the columns of a data set's shards; nothing of the usual ones.

    Args:
        columns: of each shard; None for the usual ones, or where they are not known.
        word: what they are called, where they are none.
        usual_label: what the usual one of labels is called.
    """
    found = list(columns)
    unusual = [one for one in found if one is not None]
    lines = [f"images are read from {word} '{name}'" for name in sorted({c.image for c in unusual} - {IMAGE})]
    labels = {c.label_column: c for c in unusual}
    for name in sorted(name for name in labels if name is not None):
        texts = f", as texts of {len(labels[name].names or ())} classes" if labels[name].texts else ""
        if name != LABEL or texts:
            lines.append(f"labels are read from {word} '{usual_label if name == LABEL else name}'{texts}")
    return lines + lacking_labels(found, f"no {word} is called '{usual_label}' or like it (--label-column NAME)")


def lacking_labels(columns: Sequence[Columns | None], why: str) -> list[str]:
    """Say in lines that shards have no labels, and why; nothing if all have some.

    Args:
        columns: see `describe`.
    """
    lacking = sum(one is not None and one.label_column is None for one in columns)
    if any(one is not None and one.label == NO_LABELS for one in columns):
        return [f"no labels are read (--label-column {NO_LABELS})"]
    which = "" if lacking == len(columns) else f" in {lacking} of {len(columns)} shards"
    return [f"no labels{which}: {why}"] if lacking else []


def _refuse_missing(schema: pa.Schema, name: str, where: str, flag: str) -> None:
    if name not in schema.names:
        raise UsageError(f"'{where}' has no column '{name}' ({flag}); it has {_listed(schema)}")


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema) or "no columns"


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Return the Hugging Face features that the schema's metadata has, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _in_words(name: str) -> list[str]:
    """Take a column's name apart.

    >>> _in_words("fineLabel_id")
    ['fine', 'label', 'id']
    """
    return [word for word in re.split(r"[\W_]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()) if word]


def _words(name: str) -> set[str]:
    return set(_in_words(name))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(test(kind) for test in tests)
