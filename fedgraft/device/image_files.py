"""Images of any kind as upright RGB."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fedgraft.device.errors import ImageError

PIXEL_LIMIT = 89_478_485
"""The most pixels that are decoded: Pillow's own limit, a quarter of a gigabyte as RGB."""


def load_image(source: Path | str | Image.Image) -> Image.Image:
    """An image, or the image in a file, as RGB with its EXIF orientation applied.

    16-bit gray is scaled to 8 bits; transparency is dropped, as in the preprocessing of the backbones.

    Raises:
        ImageError: the file does not exist, or the image is incomplete or too large.
    """
    if isinstance(source, Image.Image):
        return _upright(source, "The image")
    try:
        opened = Image.open(source)
    except FileNotFoundError as error:
        raise ImageError(f"There is no image {source}.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"The image {source} is too large: {error}") from error
    except Exception as error:
        raise ImageError(f"{source} is not a readable image: {error}.") from error
    with opened:
        return _upright(opened, f"The image {source}")


def _upright(image: Image.Image, what: str) -> Image.Image:
    if image.width * image.height > PIXEL_LIMIT:
        raise ImageError(
            f"{what} has {image.width} x {image.height} pixels; the limit is {PIXEL_LIMIT:,} pixels in all."
        )
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            upright = Image.fromarray((np.asarray(upright).clip(0, 65535) >> 8).astype(np.uint8))
        return upright.convert("RGB")
    except Exception as error:  # every decoder raises its own
        raise ImageError(f"{what} cannot be decoded: {error}.") from error
