"""Still images, through Pillow: what is in them and their pixels."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .footage import Crop, Footage, FootageError

IMAGE_ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"))

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""What may be in such a file. Pillow knows more, and runs a program of the system's for some (EPS)."""


def is_still(path: Path) -> bool:
    """Whether Pillow is to read it: an image by its ending, or a GIF of one picture."""
    if path.suffix.lower() != ".gif":
        return path.suffix.lower() in IMAGE_ENDINGS
    try:
        with Image.open(path, formats=("GIF",)) as image:
            return not image.is_animated
    except (OSError, SyntaxError, ValueError):
        return False  # FFmpeg has the say


def probe_image(path: Path) -> Footage:
    """What is in the image, which is decoded to prove that it can be. FootageError where it cannot."""
    with _open(path) as image:
        moving = getattr(image, "is_animated", False) and image.format in ("WEBP", "PNG", "GIF")
        transparent = image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255
        width, height = _upright_rgb(image).size
    notes = ("animated: only its first picture is used",) if moving else ()
    notes += ("transparent parts become white",) if transparent else ()
    return Footage(path=path, kind="image", width=width, height=height, times=(0.0,), fps=0.0, notes=notes)


def read_image(path: Path, width: int, height: int, crop: Crop | None = None) -> np.ndarray:
    """The image upright, `crop` of it, covering the size and cut to its middle: uint8 RGB (height, width, 3)."""
    with _open(path) as image:
        upright = _upright_rgb(image)
    if crop:
        upright = upright.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
    return np.array(ImageOps.fit(upright, (width, height), method=Image.Resampling.LANCZOS))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """The image, decoded whole. FootageError where it cannot be."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            yield image
    except UnidentifiedImageError as error:
        raise FootageError(path, "not an image") from error
    except Image.DecompressionBombError as error:
        raise FootageError(path, "the image is too large") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise FootageError(path, "the image is cut off or broken") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says, 8 bits a channel, transparent parts white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
