"""A map in the form that embedding-atlas opens: one parquet file, with small pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exemplar_ray.errors import UsageError
from exemplar_ray.explore.job_names import MAP, PICTURES_PART
from exemplar_ray.results.export import new_folder
from exemplar_ray.runs.manifest import job_of
from exemplar_ray.runs.run_folder import RunFolder

DATASET = "dataset.parquet"
_JOB = "explore"
# What embedding-atlas calls them where it makes them itself.
_PLACES = {"x": "projection_x", "y": "projection_y"}
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def export_map(uri: str, folder: str) -> tuple[int, str]:
    """Write a map into a new local folder, for embedding-atlas.

    Returns:
        How many images these are, and the command that opens them.

    Raises:
        UsageError: there is no finished map, or the folder is not new.
    """
    run = RunFolder(uri)
    values = run.read_run()
    if job_of(values) != _JOB or not run.exists(MAP):
        raise UsageError(f"'{uri}' is no finished map, which this format is of; exemplar-ray explore makes one")
    target = new_folder(folder)
    target.mkdir(parents=True, exist_ok=True)
    with run.open(MAP) as file:
        table = pq.read_table(file)
    table = table.rename_columns([_PLACES.get(name, name) for name in table.column_names])
    path, images = target / DATASET, bool(values["identity"]["thumbnails"])
    if not images:
        pq.write_table(table, path, compression="zstd")
    else:
        schema = table.schema.append(pa.field("image", _PICTURE))
        with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=_texts(table)) as writer:
            for rows in _with_pictures(run, values, table):
                writer.write_table(rows.cast(schema))
    words = f"embedding-atlas {path} --x {_PLACES['x']} --y {_PLACES['y']} --text class_name"
    return len(table), words + (" --image image" if images else "")


def _texts(table: pa.Table) -> list[str]:
    return [field.name for field in table.schema if pa.types.is_string(field.type)]


def _with_pictures(run: RunFolder, values: dict[str, Any], table: pa.Table) -> Iterator[pa.Table]:
    """Yield the rows of one shard after another, with their pictures; null for an image that has none."""
    sets = [values["identity"]["of"]["name"], *(of["name"] for of in values["identity"]["project"])]
    pieces = {place: piece for place, piece in enumerate(values["pieces"]) if piece["shard"] is not None}
    for place, files in run.read_parts(list(pieces), values["fingerprint"], {PICTURES_PART}):
        of, shard = sets[pieces[place]["of"]], pieces[place]["shard"]
        rows = table.filter(pc.and_(pc.equal(table["set"], of), pc.equal(table["shard"], shard)))
        part = pq.read_table(pa.BufferReader(files[PICTURES_PART]))
        found = pc.index_in(rows["row"], value_set=part["row"])
        pictures = part["picture"].take(found).combine_chunks()
        structs = pa.StructArray.from_arrays(
            [pictures, pa.nulls(len(rows), pa.string())], fields=list(_PICTURE), mask=pictures.is_null()
        )
        yield rows.append_column("image", structs)
