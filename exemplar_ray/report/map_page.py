"""The page of a map: a folder that opens from disk and from any web server, without a network.

    index.html                 the page, written last
    assets/                    style, scripts, the libraries that draw
    data/index.js              what there is: names of categories, ranges of values
    data/xy-PART.js            where the points lie
    data/cNUMBER-PART.js       a colouring
    data/top-PART.js           each point's strongest channels
    data/rows-SHEET.js         what the points are of: shard, row, path, class
    thumbnails/SHEET.jpg       1,024 small pictures, 32 side by side

Browsers fetch nothing from disk but scripts, styles and pictures. Arrays are therefore base64 in scripts, in
little-endian order, of a fixed number of points each; a page loads what it needs. A point takes 4 bytes for its place,
which is rounded to 1/65,535 of the map's extent, and 2 for what it is coloured by; base64 adds a third.

Points stand in the arrays in the order in which they are drawn: the K-th is that of row K * STRIDE modulo their number.
Rows that are far apart follow one another so (STRIDE is near the golden section of the number, and has no factor in
common with it), and what is drawn first is a fair sample of all.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from exemplar_ray._version import __version__
from exemplar_ray.report.map_points import Categories, MapPoints, StrongestChannels, Values
from exemplar_ray.report.provenance import Provenance
from exemplar_ray.report.templating import environment, text
from exemplar_ray.report.thumbnail_sheets import IN_SHEET, write_sheets
from exemplar_ray.report.writer import ReportWriter
from exemplar_ray.storage.folder import Folder
from exemplar_ray.storage.hub_uri import refuse_writing

INDEX = "index.html"
IN_PART = 262_144
"""Points of one script: about a megabyte."""
NONE = 65_535
"""The code of no category, and of a value that is not known."""
_ASSETS = ("report.css", "map.css", "state.js", "map_data.js", "map_view.js", "map_list.js", "map.js")
_VENDOR = ("map_libraries.js", "LICENSES.txt")
# The colours' ends: what lies beyond has the colour of the end.
_LOWEST_SHARE, _HIGHEST_SHARE = 0.005, 0.995


def write_map_page(folder: str, points: MapPoints) -> str:
    """Write the page of a map.

    Args:
        folder: the page's, on any file system. Files that it has are written over.

    Returns:
        The URI of `index.html`, which is written last.

    Raises:
        UsageError: the page would be written to the Hub.
    """
    target = folder.rstrip("/")
    refuse_writing(target)
    with ReportWriter(Folder(target)) as writer:
        for name in _ASSETS:
            writer.write(f"assets/{name}", resources.files(__package__).joinpath("static", name).read_bytes())
        for name in _VENDOR:
            writer.write(f"assets/{name}", resources.files(__package__).joinpath("static/vendor", name).read_bytes())
        index = _write_points(writer, points)
        _write(writer, "index", index)
        writer.finish()
        writer.write(INDEX, _page(points, index).encode(errors="replace"))
    return f"{target}/{INDEX}"


def stride_of(points: int) -> int:
    """Return how many rows lie between points that are drawn one after the other.

    >>> stride_of(1_281_167), stride_of(8), stride_of(1)
    (791805, 5, 1)
    """
    stride = max(1, round(points * (math.sqrt(5) - 1) / 2))
    while math.gcd(stride, points) != 1:
        stride += 1
    return stride


def _write_points(writer: ReportWriter, points: MapPoints) -> dict[str, Any]:
    """Write everything but the page; return what `data/index.js` says of it."""
    count = len(points.x)
    stride = stride_of(count)
    drawn = np.arange(count, dtype=np.int64) * stride % count
    _write_parts(writer, "xy", _places(points)[drawn])
    colourings = []
    for number, (name, colouring) in enumerate(points.colourings.items()):
        codes, said = _coded(colouring)
        if len(codes) != count:
            raise ValueError(f"{count} points, {len(codes)} of the colouring '{name}'")
        _write_parts(writer, f"c{number}", codes[drawn])
        colourings.append({"name": text(name), **said})
    if points.channels is not None:
        _write_parts(writer, "top", points.channels.channels.astype("<u2")[drawn])
    for sheet, rows in enumerate(_rows(points)):
        _write(writer, f"rows-{sheet}", rows)
    return {
        "points": count,
        "stride": stride,
        "inverse": pow(stride, -1, count),
        "inPart": IN_PART,
        "inSheet": IN_SHEET,
        "thumbnails": write_sheets(writer, points.thumbnails, count),
        "colourings": colourings,
        "channels": _said_of_channels(points.channels),
    }


def _places(points: MapPoints) -> npt.NDArray[np.uint16]:
    """[points, 2]: where they lie in a square that has the map in its middle; both axes have one scale."""
    both = np.stack([points.x, points.y], axis=1).astype(np.float64)
    low, high = both.min(axis=0), both.max(axis=0)
    extent = (high - low).max() or 1.0
    return np.rint(((both - (low + high) / 2) / extent + 0.5) * 65_535).astype("<u2")


def _coded(colouring: Categories | Values) -> tuple[npt.NDArray[np.uint16], dict[str, Any]]:
    """Return the 16 bits of each point, and what they mean."""
    if isinstance(colouring, Categories):
        none = colouring.codes < 0
        counts = np.bincount(colouring.codes[~none], minlength=len(colouring.names))
        said = {
            "kind": "categories",
            "names": list(map(text, colouring.names)),
            "also": list(map(text, colouring.also_called)),
            "counts": counts.tolist(),
            "none": text(colouring.none),
            "ofNone": int(none.sum()),
        }
        return np.where(none, NONE, colouring.codes).astype("<u2"), said
    values = colouring.values.astype(np.float64)
    known = np.isfinite(values)
    low, high = (values[known].min(), values[known].max()) if known.any() else (0.0, 0.0)
    ends = np.quantile(values[known], [_LOWEST_SHARE, _HIGHEST_SHARE]) if known.any() else np.zeros(2)
    if not ends[0] < ends[1]:
        ends = np.array([low, high])
    scaled = (np.where(known, values, low) - low) / ((high - low) or 1.0)
    said = {
        "kind": "values",
        "low": float(low),
        "high": float(high),
        "ends": ends.tolist(),
        "unknown": int((~known).sum()),
        "group": text(colouring.group),
        "page": colouring.page,
    }
    return np.where(known, np.rint(scaled * (NONE - 1)), NONE).astype("<u2"), said


def _said_of_channels(channels: StrongestChannels | None) -> dict[str, Any] | None:
    if channels is None:
        return None
    return {
        "count": channels.channels.shape[1],
        "names": list(map(text, channels.names)),
        "pages": list(channels.pages),
        "words": text(channels.words),
        # How many points each is among the strongest of.
        "among": np.bincount(channels.channels.reshape(-1), minlength=len(channels.names)).tolist(),
    }


def _rows(points: MapPoints) -> Iterator[dict[str, Any]]:
    """Yield what the points of each sheet are of. Texts that repeat stand there once, and by number."""
    for start in range(0, len(points.x), IN_SHEET):
        part = points.ids.slice(start, IN_SHEET).to_pydict()
        texts: dict[str, int] = {}

        def numbered(values: list[Any], texts: dict[str, int] = texts) -> list[int]:
            return [texts.setdefault(text("" if value is None else value), len(texts)) for value in values]

        yield {
            "shard": numbered(part["shard"]),
            "row": part["row"],
            "path": [text(path or "") for path in part["image_path"]],
            "label": part["label"],
            "synset": numbered(part["synset_id"]),
            "class": numbered(part["class_name"]),
            "texts": list(texts),
        }


def _write_parts(writer: ReportWriter, name: str, array: npt.NDArray[np.uint16]) -> None:
    for part, start in enumerate(range(0, len(array), IN_PART)):
        chosen = np.ascontiguousarray(array[start : start + IN_PART])
        _write(writer, f"{name}-{part}", base64.b64encode(chosen.tobytes()).decode())


def _write(writer: ReportWriter, name: str, value: Any) -> None:
    """Write a script that hands a value over, to `mapData` of `static/map_data.js`."""
    # Plain ASCII: nothing in it ends a line or a script, however the file is read.
    said = json.dumps(value, separators=(",", ":"), allow_nan=False)
    writer.write(f"data/{name}.js", f'mapData("{name}",{said});\n'.encode("ascii"))


def _page(points: MapPoints, index: dict[str, Any]) -> str:
    colourings = list(enumerate(points.colourings.items()))
    groups: dict[str, list[tuple[int, str]]] = {}
    for number, (name, colouring) in colourings:
        if isinstance(colouring, Values) and colouring.group:
            groups.setdefault(colouring.group, []).append((number, name))
    return (
        environment()
        .get_template("map.html")
        .render(
            root="",
            version=__version__,
            provenance=Provenance(list(points.warnings), list(points.essentials), list(points.facts), points.command),
            points=points,
            count=len(points.x),
            thumbnails=index["thumbnails"],
            buttons=[
                (number, name)
                for number, (name, colouring) in colourings
                if not (isinstance(colouring, Values) and colouring.group)
            ],
            groups=groups,
            classes=points.colourings.get("class"),
        )
    )
