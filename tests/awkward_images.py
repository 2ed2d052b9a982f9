"""Images that data sets really contain: (name -> bytes), scored ones and broken ones."""

import struct
import zlib

import numpy as np
from conftest import encode, random_picture
from PIL import Image


def scored_images():
    """Awkward but whole images: they are scored as the reference preprocessing sees them."""
    picture = random_picture(1, 90, 70)
    jpeg = encode(picture, "JPEG")
    grey16 = (np.asarray(picture.convert("L")).astype(np.uint16) * 257).copy()
    transparent = picture.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(picture.size))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    return {
        "cmyk": encode(picture.convert("CMYK"), "JPEG"),
        "greyscale": encode(picture.convert("L"), "JPEG"),
        "grey with alpha": encode(picture.convert("LA")),
        "palette": encode(picture.convert("P", palette=Image.Palette.ADAPTIVE)),
        "palette with transparency": encode(picture.convert("P"), transparency=3),
        "1 bit": encode(picture.convert("1")),
        "rgba": encode(transparent),
        "16 bit": encode(Image.fromarray(grey16)),
        "png called jpeg": encode(picture),
        "gif": encode(picture, "GIF"),
        "webp": encode(picture, "WEBP"),
        "bmp": encode(picture, "BMP"),
        "tiff": encode(picture, "TIFF"),
        "progressive": encode(picture, "JPEG", progressive=True),
        "orientation in exif": encode(picture, "JPEG", exif=exif),
        "broken exif": encode(picture, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + b"\xee" * 40),
        "bytes after the end": jpeg + b"rubbish" * 50,
        "1 x 1": encode(random_picture(2, 1, 1)),
        "1 pixel wide": encode(random_picture(3, 1, 50)),
        "very wide": encode(random_picture(4, 3000, 12)),
        "very tall": encode(random_picture(5, 7, 900)),
        "odd sizes": encode(random_picture(6, 257, 511)),
    }


def broken_images():
    """What no decoder can make a whole image of."""
    jpeg = encode(random_picture(1, 90, 70), "JPEG")
    png = encode(random_picture(1, 90, 70))
    bomb = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + bomb + struct.pack(">I", zlib.crc32(bomb))
    return {
        "empty": b"",
        "null": None,
        "not an image": b"<html><body>404 Not Found</body></html>",
        "zeros": bytes(2000),
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "truncated png": png[: len(png) // 2],
        "jpeg header only": jpeg[:20],
        "decompression bomb": b"\x89PNG\r\n\x1a\n" + header + png[33:],
    }
