"""From a picture of any format and mode to pixels, the same for whatever is done with it."""

from __future__ import annotations

import io
import os
import stat
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..exceptions import PictureError

# raster formats that Pillow decodes itself (EPS would start ghostscript); TGA, without a signature, last
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP", "TGA",
)  # fmt: skip
_GREY = ("1", "L", "LA", "La")
_KEYED = ("1", "L", "P", "RGB")  # modes that may name one of their colours, or of a palette, transparent
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(item: Any) -> tuple[np.ndarray, bool]:
    """Return the pixels of a picture, and whether it has further frames, which are not read.

    `item` is a path, a file in memory (BytesIO), a PIL image, or an array of shape (H, W), (H, W, 3) or
    (H, W, 4), uint8 or floats in [0, 1]. The pixels are such an array of shape (H, W) or (H, W, 3).
    """
    if isinstance(item, np.ndarray):
        return _on_white(item), False
    in_memory = isinstance(item, (Image.Image, io.BytesIO))
    name = "" if in_memory else f"{os.fsdecode(item)}: "
    try:
        if isinstance(item, Image.Image):
            values, has_more = _values(item)
        elif isinstance(item, io.BytesIO):
            with Image.open(item, formats=FORMATS) as image:
                values, has_more = _values(image)
        else:
            if not stat.S_ISREG(os.stat(item).st_mode):  # to open a pipe would wait for a writer
                raise OSError("it is no regular file")
            # not by name: Pillow would map an uncompressed TIFF with the sides of the turned picture
            with open(item, "rb") as file, Image.open(file, formats=FORMATS) as image:
                values, has_more = _values(image)
    except UnidentifiedImageError as error:
        raise PictureError(f"{name}it is no picture of the formats {', '.join(FORMATS)}.") from error
    except Exception as error:  # Pillow raises what its decoders meet, SyntaxError and KeyError among it
        raise PictureError(f"{name}{type(error).__name__}: {error}") from error
    if not values.size:
        raise PictureError(f"{name}it has no pixels.")
    if values.dtype == np.uint8:
        return _on_white(values), has_more
    scale = 1 if values.dtype.kind == "f" else 65535
    if not (values.min() >= 0 and values.max() <= scale):  # nor NaN
        raise PictureError(
            f"{name}expected values from 0 to {scale} in a picture of {values.dtype}, got "
            f"{values.min():g} to {values.max():g}. Scale them, and pass an array."
        )
    return values.astype(np.float32) / np.float32(scale), has_more


def _values(image: Image.Image) -> tuple[np.ndarray, bool]:
    """Return the values of an upright picture, grey or RGB, perhaps with alpha, as Pillow has them."""
    has_more = getattr(image, "is_animated", False) and image.format != "MPO"  # previews and depth
    image.load()
    image = _upright(image)
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        values = np.asarray(image)
        if isinstance(key := image.info.get("transparency"), int) and mode.startswith("I;16"):
            values = np.where(values == key, np.uint16(65535), values)
        return values, has_more
    transparent = mode[-1] in "Aa" or (mode in _KEYED and image.has_transparency_data)
    wanted = "L" if mode in _GREY else "RGB"
    return np.asarray(image.convert(wanted + "A" * transparent)), has_more


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; EXIF that cannot be read says nothing.

    ImageOps.exif_transpose would also write the EXIF anew, which fails where other tags are damaged.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Warning:  # that a filter made an error
        raise
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _on_white(picture: np.ndarray) -> np.ndarray:
    """Composite a picture with alpha on white, in integers for 8 bits; return others as they are."""
    if picture.ndim == 2 or picture.shape[-1] == 3:
        return picture
    eight_bits = picture.dtype == np.uint8
    wide: Any = picture.astype(np.uint16 if eight_bits else np.float32)
    colours, alpha = wide[..., :-1], wide[..., -1:]
    if eight_bits:
        mixed = ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    else:
        mixed = colours * alpha + (1 - alpha)
    return mixed[..., 0] if mixed.shape[-1] == 1 else mixed
