"""The embedded default data set: real photographs and parametric stimuli, made offline.

Photographs are crops of those that come inside the wheels of scikit-image and
scikit-learn. The stimuli are of the kind that vision science and the Circuits work probe
early vision with: oriented gratings, curves by radius and orientation, colour contrasts,
high-low frequency boundaries, textures, dots, shapes; what a channel likes among them can
be read at a glance. Labels tell the kinds apart ("photograph: ...", "stimulus: ...").

With the same versions of numpy and Pillow the files are equal to the byte.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
from collections.abc import Callable, Iterator
from itertools import permutations, product
from pathlib import Path

import numpy as np
from PIL import Image

from exemplar_ray.data.write_shards import LabelledImage, write_images
from exemplar_ray.errors import UsageError

SHARDS = 6
CROPS_PER_PHOTOGRAPH = 28
SIZE = 256

_PHOTOGRAPHS = {
    "skimage": (
        "data",
        "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png coins.png grass.png "
        "gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg text.png",
    ),
    "sklearn": ("datasets/images", "china.jpg flower.jpg"),
}

_COLOURS = {
    "black": (0.05, 0.05, 0.05),
    "white": (0.95, 0.95, 0.95),
    "red": (0.85, 0.10, 0.12),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.95, 0.90, 0.15),
    "green": (0.10, 0.60, 0.20),
    "cyan": (0.10, 0.75, 0.80),
    "blue": (0.12, 0.20, 0.80),
    "purple": (0.50, 0.15, 0.65),
}

# Pixel coordinates from the middle of the image: x to the right, y downwards.
_Y, _X = np.mgrid[0:SIZE, 0:SIZE] - (SIZE - 1) / 2.0

Stimulus = tuple[str, np.ndarray]
"""A name, and float values of 0..1: grey [SIZE, SIZE] or RGB [SIZE, SIZE, 3]."""


def write_sample_data(folder: str) -> tuple[list[Path], int]:
    """Write the data set as parquet shards in the ImageNet schema.

    Returns:
        The shards' paths and the number of images.

    Raises:
        UsageError: the folder has files in it, or a wheel with photographs is missing.
    """
    photographs = _photograph_files()
    classes = [f"photograph: {file.stem}" for file in photographs] + [f"stimulus: {name}" for name in _STIMULI]
    images = [
        LabelledImage(data, f"photograph_{file.stem}_{i:02d}.jpeg", classes.index(f"photograph: {file.stem}"))
        for file in photographs
        for i, data in enumerate(_crops(file))
    ]
    images += [
        LabelledImage(_encode(pixels, "PNG"), f"stimulus_{kind}_{name}.png", classes.index(f"stimulus: {kind}"))
        for kind, stimuli in _STIMULI.items()
        for name, pixels in stimuli()
    ]
    # Every shard gets a bit of everything, in an order that depends on the paths alone.
    images.sort(key=lambda image: hashlib.sha256(str(image.path).encode()).digest())
    return write_images(images, folder, classes, math.ceil(len(images) / SHARDS))


def _photograph_files() -> list[Path]:
    files = []
    for package, (place, names) in _PHOTOGRAPHS.items():
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise UsageError("sample-data needs the photographs in two packages: pip install scikit-image scikit-learn")
        files += [Path(found.origin).parent / place / name for name in names.split()]
    return files


def _crops(file: Path) -> Iterator[bytes]:
    """Cut square crops of several sizes at places that the file's name decides."""
    random = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(file.name.encode()).digest()[:8])))
    with Image.open(file) as opened:
        photograph = opened.convert("RGB")
    longest = min(photograph.size)
    for i in range(CROPS_PER_PHOTOGRAPH):
        side = int(longest * (0.9, 0.7, 0.5, 0.35)[i % 4])
        left = int(random.integers(0, photograph.width - side + 1))
        top = int(random.integers(0, photograph.height - side + 1))
        crop = photograph.crop((left, top, left + side, top + side))
        if side > 400:
            crop = crop.resize((400, 400), Image.Resampling.BILINEAR)
        yield _encode_image(crop, "JPEG")


def _encode(pixels: np.ndarray, kind: str) -> bytes:
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    # Not 255 * 0.5: mid-grey must not sit on the boundary between two levels, where the last
    # bit of a sine would decide.
    levels = np.floor(np.clip(pixels, 0, 1) * 254.9 + 0.3).astype(np.uint8)
    return _encode_image(Image.fromarray(levels), kind)


def _encode_image(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {"optimize": False}))
    return buffer.getvalue()


def _turned(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel coordinates in a frame turned by some degrees."""
    angle = math.radians(degrees)
    return _X * math.cos(angle) + _Y * math.sin(angle), _Y * math.cos(angle) - _X * math.sin(angle)


def _wave(degrees: float, period: float, phase: float = 0.0) -> np.ndarray:
    """A sine grating of -1..1; `period` in pixels, `degrees` the direction across the stripes."""
    across, _ = _turned(degrees)
    return np.sin(2 * math.pi * across / period + phase)


def _inside(signed_distance: np.ndarray) -> np.ndarray:
    """Coverage 0..1 of a region from the signed distance (pixels, negative inside) to its edge."""
    return np.clip(0.5 - signed_distance, 0, 1)


def _paint(coverage: np.ndarray, front: str, back: str) -> np.ndarray:
    coverage = coverage[:, :, None]
    return coverage * np.array(_COLOURS[front]) + (1 - coverage) * np.array(_COLOURS[back])


def _gratings() -> Iterator[Stimulus]:
    for degrees, period, square in product(range(0, 180, 15), (6, 9, 14, 24, 40, 64), (False, True)):
        wave = _wave(degrees, period, 0.4)
        wave = np.clip(wave * period / 4, -1, 1) if square else wave
        yield f"{'square' if square else 'sine'}_{degrees:03d}deg_{period:02d}px", 0.5 + 0.47 * wave


def _curves() -> Iterator[Stimulus]:
    for degrees, radius, width in product(range(0, 360, 30), (24, 44, 72, 110, 180), (3, 9)):
        along, across = _turned(degrees)
        # An arc whose apex lies in the middle of the image, cut off a little over a quarter turn.
        arc = np.abs(np.hypot(along + radius, across) - radius) - width
        opening = np.abs(np.arctan2(across, along + radius)) - 0.9
        yield (
            f"{degrees:03d}deg_radius{radius:03d}_width{width}",
            0.12 + 0.8 * _inside(np.maximum(arc, opening * radius)),
        )


def _colour_contrasts() -> Iterator[Stimulus]:
    for front, back in permutations(_COLOURS, 2):
        yield f"disc_{front}_on_{back}", _paint(_inside(np.hypot(_X, _Y) - 70), front, back)
    for (front, back), degrees in product(
        (("red", "green"), ("blue", "yellow"), ("orange", "cyan")), range(0, 180, 45)
    ):
        yield f"edge_{front}_{back}_{degrees:03d}deg", _paint(_inside(_turned(degrees)[0]), front, back)


def _high_low_frequency_boundaries() -> Iterator[Stimulus]:
    for degrees, (high, low), turned in product(range(0, 360, 30), ((5, 30), (8, 48)), (0, 90)):
        side = _inside(_turned(degrees)[0])
        wave = side * _wave(degrees + turned, high) + (1 - side) * _wave(degrees + turned, low)
        yield f"{degrees:03d}deg_{high}px_{low}px_{'across' if turned else 'along'}", 0.5 + 0.45 * wave


def _textures() -> Iterator[Stimulus]:
    for size in (6, 10, 16, 26, 42, 64):
        squares = np.floor((_X + 500) / size) + np.floor((_Y + 500) / size)
        yield f"checks_{size:02d}px", np.where(squares % 2 == 0, 0.95, 0.05)
    for period, degrees in product((8, 16, 28, 44), (0, 22, 45, 67)):
        yield f"plaid_{period:02d}px_{degrees}deg", 0.5 + 0.24 * (_wave(degrees, period) + _wave(degrees + 90, period))
    for period, degrees in product((10, 18, 32), (0, 30)):
        hexagons = np.sum([_wave(degrees + turn, period, math.pi / 2) for turn in (0, 60, 120)], axis=0) / 3
        yield f"hexagons_{period:02d}px_{degrees}deg", 0.4 + 0.5 * hexagons
    for smooth, seed in product((1, 2, 4, 8), range(4)):
        random = np.random.Generator(np.random.PCG64(1000 * smooth + seed))
        noise = random.random((SIZE // smooth, SIZE // smooth, 3 if seed % 2 else 1))
        enlarged = np.kron(noise, np.ones((smooth, smooth, 1)))
        yield f"noise_{smooth}px_{seed}", enlarged if seed % 2 else enlarged[:, :, 0]


def _dots() -> Iterator[Stimulus]:
    pairs = (("black", "white"), ("white", "black"), ("red", "white"), ("yellow", "blue"))
    for (front, back), spacing, share in product(pairs, (16, 28, 44, 64), (0.22, 0.38)):
        x = (_X + 512) % spacing - spacing / 2
        y = (_Y + 512) % spacing - spacing / 2
        yield (
            f"{front}_on_{back}_{spacing}px_{int(share * 100)}",
            _paint(_inside(np.hypot(x, y) - spacing * share), front, back),
        )


def _shapes() -> Iterator[Stimulus]:
    def polygon(corners: int, size: float, degrees: float) -> np.ndarray:
        sides = [_turned(degrees + 360 * i / corners)[0] for i in range(corners)]
        return np.maximum.reduce(sides) - size * math.cos(math.pi / corners)

    def star(size: float, degrees: float) -> np.ndarray:
        triangles = (polygon(3, size, degrees), polygon(3, size, degrees + 180))
        return np.minimum(*triangles)

    def cross(size: float, degrees: float) -> np.ndarray:
        x, y = (np.abs(v) for v in _turned(degrees))
        return np.minimum(np.maximum(x - size, y - size / 3), np.maximum(y - size, x - size / 3))

    outlines: dict[str, Callable[[float, float], np.ndarray]] = {
        "triangle": lambda size, degrees: polygon(3, size, degrees),
        "square": lambda size, degrees: polygon(4, size, degrees),
        "hexagon": lambda size, degrees: polygon(6, size, degrees),
        "star": star,
        "cross": cross,
        "ring": lambda size, degrees: np.abs(np.hypot(_X, _Y) - size * (0.7 + degrees / 300)) - size / 5,
    }
    pairs = (("black", "white"), ("white", "black"), ("red", "cyan"), ("green", "orange"))
    for (name, outline), size, degrees, (front, back) in product(outlines.items(), (50, 95), (0, 20), pairs):
        yield f"{name}_{size}px_{degrees}deg_{front}_on_{back}", _paint(_inside(outline(size, degrees)), front, back)


def _lines_and_corners() -> Iterator[Stimulus]:
    for degrees, width in product(range(0, 180, 15), (2, 7)):
        yield f"line_{degrees:03d}deg_{width}px", 0.1 + 0.85 * _inside(np.abs(_turned(degrees)[0]) - width)
    for degrees, opening in product(range(0, 360, 30), (45, 90)):
        first, _ = _turned(degrees + opening / 2)
        second, _ = _turned(degrees - opening / 2 + 180)
        yield f"corner_{degrees:03d}deg_{opening}", 0.1 + 0.85 * _inside(np.maximum(first, second))


def _centred_patterns() -> Iterator[Stimulus]:
    distance, angle = np.hypot(_X, _Y), np.arctan2(_Y, _X)
    for period in (10, 16, 26, 42):
        yield f"rings_{period}px", 0.5 + 0.45 * np.sin(2 * math.pi * distance / period + 0.3)
    for arms in (6, 10, 16, 24):
        yield f"rays_{arms}", 0.5 + 0.45 * np.sin(arms * angle + 0.3)
    for period, arms in product((16, 30), (-4, -2, 2, 4)):
        yield f"spiral_{period}px_{arms}arms", 0.5 + 0.45 * np.sin(2 * math.pi * distance / period + arms * angle + 0.3)
    for pupil, iris in product((16, 30), ("blue", "green", "orange", "black")):
        eye = _paint(_inside(distance - 2.2 * pupil), iris, "white")
        dark = _inside(distance - pupil)[:, :, None]
        yield f"eye_{iris}_{pupil}px", eye * (1 - dark) + 0.03 * dark


_STIMULI: dict[str, Callable[[], Iterator[Stimulus]]] = {
    "grating": _gratings,
    "curve": _curves,
    "colour contrast": _colour_contrasts,
    "high-low frequency boundary": _high_low_frequency_boundaries,
    "texture": _textures,
    "dots": _dots,
    "shape": _shapes,
    "line or corner": _lines_and_corners,
    "centred pattern": _centred_patterns,
}
