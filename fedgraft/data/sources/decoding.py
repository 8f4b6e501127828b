"""Image files: which endings are read, and an image as upright RGB."""

import ctypes
import logging
import warnings
from pathlib import Path

from PIL import Image, ImageOps, _imaging, features

from fedgraft.core.errors import UserError
from fedgraft.data.examples import as_rgb

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *((".avif",) if features.check("avif") else ()),
)
"""Endings of image files, in lower case; those in upper case are read as well."""


def silence_damage() -> None:
    """Keep Pillow and libtiff from writing about damaged files to the terminal: what matters is raised or decodes."""
    warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    library = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        if hasattr(library, name):  # not where libtiff is linked statically or left out
            getattr(library, name)(None)


silence_damage()


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
