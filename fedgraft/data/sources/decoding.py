"""Image files: which endings are read, and an image as upright RGB."""

from pathlib import Path

from PIL import Image, ImageOps, features

from fedgraft.core.errors import UserError
from fedgraft.data.examples import as_rgb

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *((".avif",) if features.check("avif") else ()),
)
"""Endings of image files, in lower case; those in upper case are read as well."""


def decode(path: Path) -> Image.Image:
    """An image as RGB, upright, the first if there are several; raises UserError if the file is damaged."""
    try:
        with Image.open(path) as image:
            return as_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # every decoder raises its own
        raise UserError(f"The image {path} cannot be decoded: {_reason(error)}. Repair or remove it.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
