"""Looking at shards before a run: what each says of itself, and whether they agree on what labels are."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from exemplar_ray.data.columns import (
    FLOAT,
    NO_LABELS,
    Chosen,
    Columns,
    class_names,
    find_columns,
    image_fields,
    label_kind,
    label_reader,
)
from exemplar_ray.data.footers import PointerError, open_file, read_footer, read_surely
from exemplar_ray.errors import UsageError

_THREADS = 32
_MOST_NAMED = 10
# Texts that are as many are captions, or names of files.
_MOST_CLASSES = 100_000
_LABELS_PER_READ = 1 << 16
PATHS_ONLY = (
    "holds paths of images, not their bytes: they are read where the data set was made only; write it anew with the "
    "bytes inside (datasets: embed_external_files; or exemplar-ray shard FOLDER DIR)"
)


class Look(NamedTuple):
    """What a shard's footer says."""

    uri: str
    size: int
    rows: int
    footer: str
    columns: Columns
    label_type: pa.DataType | None
    """None without labels."""
    class_names: list[str] | None
    """Of its ClassLabel feature."""


class Surveyed(NamedTuple):
    """What a data set's files are."""

    looks: list[Look | None]
    """In the order of the files; None for those that are no parquet files."""
    class_names: list[str] | None
    """Index = label."""


def look_at(files: Sequence[tuple[str, int]], chosen: Chosen, numbers_are_known: bool) -> Surveyed:
    """Read the footers of files, and find out what is where.

    Args:
        files: URIs and sizes in bytes.
        chosen: the columns that the user names.
        numbers_are_known: the user says what class each number is, so that shards may name them differently.

    Raises:
        UsageError: see `shards.inspect`.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        looked = list(pool.map(lambda file: _look_or_pointer(file[0], file[1], chosen), files))
        _refuse_pointers([pointer for pointer in looked if isinstance(pointer, PointerError)])
        looks = [look for look in looked if not isinstance(look, PointerError)]
        found = [look for look in looks if look is not None]
        _refuse_different_labels(found, chosen)
        if any(look.columns.texts for look in found):
            names: list[str] | None = _texts(files, looks, pool)
            texts = tuple(names or ())
            looks = [
                look and look._replace(columns=replace(look.columns, names=texts if look.columns.texts else None))
                for look in looks
            ]
        else:
            list(pool.map(_refuse_fractions, found))
            names = None if numbers_are_known and _differing_names(found) else _agreed_names(found)
    return Surveyed(looks, names)


def _look_or_pointer(uri: str, size: int, chosen: Chosen) -> Look | PointerError | None:
    try:
        return _look_at(uri, size, chosen)
    except PointerError as pointer:
        return pointer


def _refuse_pointers(pointers: Sequence[PointerError]) -> None:
    """Refuse files that are pointers, all of them in one line.

    Raises:
        UsageError: there are some.
    """
    if len(pointers) == 1:
        raise pointers[0]
    if pointers:
        _, what, command = pointers[0].args
        named = ", ".join(f"'{pointer.args[0]}'" for pointer in pointers[:_MOST_NAMED])
        more = f" and {len(pointers) - _MOST_NAMED} more" if len(pointers) > _MOST_NAMED else ""
        raise UsageError(
            f"{len(pointers)} files are {what}s, not the files: {named}{more}; run `{command}` where the data set was "
            "cloned"
        )


def _look_at(uri: str, size: int, chosen: Chosen) -> Look | None:
    footer = read_footer(uri, size)
    if footer is None:
        return None
    schema = footer.metadata.schema.to_arrow_schema()
    columns = find_columns(schema, chosen, uri)
    _refuse_paths_only(uri, footer.metadata, image_fields(schema, columns.image) or [])
    label = columns.label_column
    kind = None if label is None else schema.field(label).type
    return Look(uri, size, footer.metadata.num_rows, footer.digest, columns, kind, class_names(schema, label))


def _refuse_paths_only(uri: str, metadata: pq.FileMetaData, fields: list[str]) -> None:
    """Refuse a shard of which the footer says that it has paths of images, and not the images.

    Raises:
        UsageError: it is one.
    """
    if len(fields) < 2 or not metadata.num_rows:
        return
    nulls = dict.fromkeys(fields, 0)
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for i in range(row_group.num_columns):
            chunk = row_group.column(i)
            if chunk.path_in_schema in nulls:
                known = chunk.statistics is not None and chunk.statistics.has_null_count
                if not known:
                    return
                nulls[chunk.path_in_schema] += chunk.statistics.null_count
    data, path = fields
    if nulls[data] == metadata.num_rows > nulls[path]:
        raise UsageError(f"'{uri}' {PATHS_ONLY}")


# Labels that agree ------------------------------------------------------------------------


def _refuse_different_labels(looks: Sequence[Look], chosen: Chosen) -> None:
    """Refuse shards whose labels cannot be put together.

    Raises:
        UsageError: labels are in columns of different names, or texts here and numbers there; or nowhere, though the
            user names a column.
    """
    labelled = [look for look in looks if look.label_type is not None]
    if looks and not labelled and chosen.label not in (None, NO_LABELS):
        raise UsageError(
            f"no shard has a column '{chosen.label}' (--label-column), '{looks[0].uri}' as little as others"
        )
    for look in labelled[1:]:
        first = labelled[0]
        here, there = look.columns, first.columns
        if here.label != there.label:
            raise UsageError(
                f"labels are in column '{there.label}' of '{first.uri}', and in '{here.label}' of '{look.uri}'; choose "
                f"one with --label-column NAME, or --label-column {NO_LABELS}"
            )
        # A column without a single value says nothing of its type.
        if here.texts != there.texts and not any(pa.types.is_null(one.label_type) for one in (look, first)):
            raise UsageError(
                f"labels in column '{here.label}' are {first.label_type} in '{first.uri}' and {look.label_type} in "
                f"'{look.uri}'; make them the same, or give --label-column {NO_LABELS}"
            )


def _agreed_names(looks: Sequence[Look]) -> list[str] | None:
    """Return the class names of the shard that has most.

    Raises:
        UsageError: two shards name a class differently.
    """
    differing = _differing_names(looks)
    if differing:
        first, second, label = differing
        names = [(look.class_names or [])[label] for look in (first, second)]
        raise UsageError(
            f"class {label} is '{names[0]}' in '{first.uri}' and '{names[1]}' in '{second.uri}': their labels are "
            "numbered differently; give the shards the same numbers, or each a run of its own. If the numbers are the "
            "same and only names differ, --class-labels FILE says what they are"
        )
    return max((look.class_names for look in looks if look.class_names), key=len, default=None)


def _differing_names(looks: Sequence[Look]) -> tuple[Look, Look, int] | None:
    """Return two shards that name a class differently, and the class; None if all agree as far as they go."""
    longest: Look | None = None
    for look in looks:
        if not look.class_names:
            continue
        if longest is None or not longest.class_names:
            longest = look
            continue
        if look.class_names == longest.class_names:
            continue
        for label, (there, here) in enumerate(zip(longest.class_names, look.class_names, strict=False)):
            if there != here:
                return longest, look, label
        longest = max(longest, look, key=lambda one: len(one.class_names or ()))
    return None


# Labels that have to be read ---------------------------------------------------------------


def _texts(files: Sequence[tuple[str, int]], looks: Sequence[Look | None], pool: Executor) -> list[str]:
    """Return the texts that labels are, sorted.

    Raises:
        UsageError: a shard cannot be read, so that its classes are not known; or there are too many to be classes.
    """
    unknown = [uri for (uri, _), look in zip(files, looks, strict=True) if look is None]
    if unknown:
        raise UsageError(
            f"labels are texts, and '{unknown[0]}' is no parquet file, so that its classes are not known; mend it, or "
            "leave it out"
        )
    texts: set[str] = set()
    for found in pool.map(_texts_of, [look for look in looks if look is not None and look.columns.texts]):
        texts |= found
        if len(texts) > _MOST_CLASSES:
            look = next(look for look in looks if look is not None and look.columns.texts)
            raise UsageError(
                f"column '{look.columns.label}' of '{look.uri}' and others has more than {_MOST_CLASSES:,} different "
                f"texts, which are no classes; choose another with --label-column NAME, or --label-column {NO_LABELS}"
            )
    return sorted(texts)


def _texts_of(look: Look) -> set[str]:
    found: set[str] = set()
    for column in _label_batches(look):
        found.update(filter(None, column.to_pylist()))
        if len(found) > _MOST_CLASSES:
            break
    return found


def _refuse_fractions(look: Look) -> None:
    """Refuse labels that are fractions; nothing is read where they cannot be.

    Raises:
        UsageError: one is.
    """
    if look.label_type is None or label_kind(look.label_type) != FLOAT:
        return
    read = label_reader(look.label_type, None)
    for column in _label_batches(look):
        try:
            read(column)
        except ValueError as error:
            raise UsageError(
                f"'{look.uri}': column '{look.columns.label}' ({look.label_type}): {error}; choose another column with "
                f"--label-column NAME, or --label-column {NO_LABELS}"
            ) from error


def _label_batches(look: Look) -> list[pa.Array]:
    """Read a shard's labels.

    Raises:
        UsageError: they cannot be read.
    """

    def read() -> list[pa.Array]:
        with open_file(look.uri, look.size) as source:
            file = pq.ParquetFile(source)
            return [batch.column(0) for batch in file.iter_batches(_LABELS_PER_READ, columns=[look.columns.label])]

    try:
        return read_surely(look.uri, read)
    except pa.ArrowException as error:
        if look.columns.texts:
            raise UsageError(f"'{look.uri}': column '{look.columns.label}' cannot be read: {error}") from error
        # The shard fails when it is scanned.
        return []
