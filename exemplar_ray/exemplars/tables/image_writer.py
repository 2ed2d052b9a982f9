"""Writing a parquet table whose rows share images: parquet's dictionary holds an image once in a row group.

What is written reads back with the columns and types of the schema: that the bytes come from a dictionary is between
the rows here and parquet's encoding.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""The type of a column of images: the very one of `datasets`' Image feature, which takes no other for images."""

_IMAGE = pa.struct([("bytes", pa.dictionary(pa.int32(), pa.large_binary())), ("path", pa.string())])
# Parquet gives up a dictionary that is larger. Row groups are cut below it, but for a single image of such a size.
_LARGEST_DICTIONARY = (1 << 30) + (1 << 29)


def with_images_once(schema: pa.Schema) -> pa.Schema:
    """Return the schema of the tables that are written: the column `image` with its bytes in a dictionary."""
    return schema.set(schema.get_field_index("image"), pa.field("image", _IMAGE))


def image_column(
    numbers: Sequence[int | None], paths: Sequence[str | None], contents: Callable[[list[int]], pa.LargeBinaryArray]
) -> pa.StructArray:
    """Return the column `image` of some rows, with its bytes in a dictionary.

    Args:
        numbers: what each row's image is, equal for equal bytes: parquet gives up a dictionary that says something
            twice. None where a row has no image.
        paths: of each row's image; what stands where there is none does not matter.
        contents: returns the bytes of images by their numbers.
    """
    places = {number: place for place, number in enumerate(dict.fromkeys(n for n in numbers if n is not None))}
    which = pa.array([None if number is None else places[number] for number in numbers], pa.int32())
    data = pa.DictionaryArray.from_arrays(which, contents(list(places)))
    shown = [None if number is None else path for number, path in zip(numbers, paths, strict=True)]
    return pa.StructArray.from_arrays([data, pa.array(shown, pa.string())], fields=list(_IMAGE), mask=which.is_null())


@contextmanager
def image_writer(
    path: str, schema: pa.Schema, compression: Mapping[str, str], dictionaries: Sequence[str]
) -> Iterator[Callable[[pa.Table], None]]:
    """Open a file; yield a function that writes a table of `with_images_once(schema)` as a row group.

    Args:
        path: a local file.
        compression: {parquet column: codec}, of every column.
        dictionaries: which other columns have few values.
    """
    options: dict[str, Any] = {
        "compression": dict(compression),
        "use_dictionary": [*dictionaries, "image.bytes"],
        "dictionary_pagesize_limit": _LARGEST_DICTIONARY,
        # Of small images they would be two more images in each row group.
        "write_statistics": [column for column in compression if column != "image.bytes"],
        "store_schema": False,
    }
    with pq.ParquetWriter(path, with_images_once(schema), **options) as writer:
        yield writer.write_table
        # As pyarrow stores it: readers that know of Arrow's types see those of the schema.
        stored = base64.b64encode(schema.serialize().to_pybytes())
        writer.add_key_value_metadata({"ARROW:schema": stored, **(schema.metadata or {})})
