"""Images of any kind as upright RGB, or one sentence why not."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fedgraft.core.errors import UserError

PIXEL_LIMIT = 89_478_485
"""Pixels beyond which an image is not decoded: Pillow's own limit, a quarter of a gigabyte as RGB."""


class ImageError(UserError):
    """An image that cannot be used; the message says which and why."""


def load_image(source: Path | str | Image.Image) -> Image.Image:
    """An image file, or an image, as RGB with its EXIF orientation applied.

    16-bit gray is scaled to 8 bits; transparency is dropped, as the preprocessing of the backbones does.

    Raises:
        ImageError: there is no such file, it is no whole image, or it is too large.
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
        raise ImageError(f"{source} is no image that can be read: {error}.") from error
    with opened:
        return _upright(opened, f"The image {source}")


def _upright(image: Image.Image, what: str) -> Image.Image:
    if image.width * image.height > PIXEL_LIMIT:
        raise ImageError(
            f"{what} has {image.width} x {image.height} pixels, and the limit is {PIXEL_LIMIT}; make it smaller."
        )
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            upright = Image.fromarray((np.asarray(upright).clip(0, 65535) >> 8).astype(np.uint8))
        return upright.convert("RGB")
    except Exception as error:  # each decoder has errors of its own
        raise ImageError(f"{what} cannot be decoded: {error}.") from error
