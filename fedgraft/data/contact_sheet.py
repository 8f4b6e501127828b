"""A contact sheet: a row of small images for each class, to see at a glance whether labels and images match."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fedgraft.core.errors import UserError
from fedgraft.data.examples import Examples, IntArray

_ROWS, _COLUMNS = 24, 8
_SIDE, _GAP, _CAPTION = 96, 4, 18
_FONT_SIZE = 13


def write_contact_sheet(examples: Examples, path: Path) -> None:
    """Write a PNG with up to eight images of up to 24 classes, both evenly spaced.

    Raises:
        UserError: it cannot be written.
    """
    classes = _evenly(np.arange(len(examples.class_names)), _ROWS)
    width = _COLUMNS * (_SIDE + _GAP) + _GAP
    row_height = _CAPTION + _SIDE + _GAP
    sheet = Image.new("RGB", (width, len(classes) * row_height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for row, label in enumerate(classes):
        members = np.flatnonzero(examples.labels == label)
        top = row * row_height + _GAP
        draw.text((_GAP, top), f"{examples.class_names[label]} ({len(members)})", "black", font)
        for column, index in enumerate(_evenly(members, _COLUMNS)):
            sheet.paste(_thumbnail(examples, int(index)), (_GAP + column * (_SIDE + _GAP), top + _CAPTION))
    try:
        sheet.save(path, "png")
    except OSError as error:
        raise UserError(f"The contact sheet {path} cannot be written: {error.strerror}.") from error


def _evenly(positions: IntArray, most: int) -> IntArray:
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).round().astype(np.int64)]


def _thumbnail(examples: Examples, index: int) -> Image.Image:
    """The middle square of an image; crossed out if it cannot be decoded."""
    try:
        return ImageOps.fit(examples.load(index), (_SIDE, _SIDE))
    except UserError:
        crossed = Image.new("RGB", (_SIDE, _SIDE), "lightgray")
        draw = ImageDraw.Draw(crossed)
        draw.line((0, 0, _SIDE, _SIDE), "red", 3)
        draw.line((0, _SIDE, _SIDE, 0), "red", 3)
        return crossed


def _font() -> ImageFont.FreeTypeFont:
    """A font with the letters of many scripts, which comes with matplotlib."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _FONT_SIZE)
