"""Characters as images: masks of glyphs from font files and of pen strokes, and the distortions applied to them.

A mask is ink coverage, (MASK_SIZE, MASK_SIZE) in 0..255, cropped to the glyph and centred. `distort` turns
a batch of masks into the masks that an image shows: rotated, slanted, stretched, bent, thickened or thinned.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MASK_SIZE = 64
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CHARACTER_NAMES: tuple[str, ...] = DIGIT_NAMES + tuple("abcdefghijklmnopqrstuvwxyz")
"""The 36 character classes; upper and lower case of a letter are one class."""


def renderings(name: str) -> tuple[str, ...]:
    """The characters that a class is written with: "7" for seven, "G" and "g" for g."""
    if name in DIGIT_NAMES:
        return (str(DIGIT_NAMES.index(name)),)
    return (name.upper(), name)


def font_mask(font: ImageFont.FreeTypeFont, character: str) -> NDArray[np.uint8] | None:
    """The mask of one glyph, or None where the font draws nothing for it."""
    box = font.getbbox(character)
    width, height = int(box[2] - box[0]), int(box[3] - box[1])
    if width < 2 or height < 8 or width > 400 or height > 400:
        return None
    image = Image.new("L", (width, height), 0)
    ImageDraw.Draw(image).text((-box[0], -box[1]), character, fill=255, font=font)
    return _centred(image)


def font_masks(path: Path) -> NDArray[np.uint8] | None:
    """Every rendering of every class in one font: (36, 2, MASK_SIZE, MASK_SIZE); a digit's two are equal.

    Returns None for a font that lacks a character, draws the same sign for different ones, or cannot be read.
    """
    try:
        font = ImageFont.truetype(str(path), 72)
        masks = []
        for name in CHARACTER_NAMES:
            drawn = [font_mask(font, character) for character in renderings(name)]
            kept = [mask for mask in drawn if mask is not None]
            if len(kept) != len(drawn):
                return None
            masks.append(np.stack([kept[0], kept[-1]]))
    except (OSError, ValueError, SyntaxError):
        return None
    block = np.stack(masks)
    signatures = {block[index, 0].tobytes() for index in range(len(CHARACTER_NAMES))}
    return block if len(signatures) >= len(CHARACTER_NAMES) - 2 else None


def _centred(image: Image.Image) -> NDArray[np.uint8] | None:
    box = image.getbbox()
    if box is None:
        return None
    image = image.crop(box)
    room = MASK_SIZE - 16
    scale = room / max(image.size)
    scaled = image.resize(
        (max(2, round(image.width * scale)), max(2, round(image.height * scale))), Image.Resampling.BILINEAR
    )
    canvas = Image.new("L", (MASK_SIZE, MASK_SIZE), 0)
    canvas.paste(scaled, ((MASK_SIZE - scaled.width) // 2, (MASK_SIZE - scaled.height) // 2))
    return np.asarray(canvas, np.uint8)


# --- pen strokes ----------------------------------------------------------------------------------

Stroke = Sequence[tuple[float, float]]
_PEN_DIGITS: dict[str, tuple[tuple[Stroke, ...], ...]] = {
    "zero": (
        (((0.5, 0), (0.2, 0.15), (0.1, 0.5), (0.2, 0.85), (0.5, 1), (0.8, 0.85), (0.9, 0.5), (0.8, 0.15), (0.5, 0)),),
        (((0.6, 0), (0.25, 0.2), (0.12, 0.6), (0.35, 1), (0.75, 0.85), (0.9, 0.4), (0.6, 0), (0.5, 0.05)),),
    ),
    "one": (
        (((0.5, 0), (0.5, 0.5), (0.5, 1)),),
        (((0.25, 0.3), (0.42, 0.15), (0.55, 0)), ((0.55, 0), (0.55, 0.5), (0.55, 1))),
        (((0.25, 0.25), (0.5, 0)), ((0.5, 0), (0.5, 1)), ((0.22, 1), (0.78, 1))),
        (((0.62, 0), (0.5, 0.5), (0.4, 1)),),
    ),
    "two": (
        (((0.1, 0.25), (0.3, 0.02), (0.7, 0.02), (0.88, 0.25), (0.7, 0.52), (0.35, 0.78), (0.08, 1)), ((0.08, 1), (0.92, 1))),
        (((0.12, 0.2), (0.45, 0), (0.85, 0.2), (0.7, 0.55), (0.2, 0.92), (0.15, 0.8), (0.4, 0.82), (0.95, 0.98)),),
        (((0.1, 0.12), (0.5, 0), (0.8, 0.25), (0.5, 0.65), (0.1, 0.98)), ((0.1, 0.98), (0.9, 0.95))),
    ),
    "three": (
        (((0.12, 0.12), (0.45, 0), (0.82, 0.18), (0.7, 0.42), (0.4, 0.48)), ((0.4, 0.48), (0.78, 0.58), (0.88, 0.8), (0.5, 1), (0.1, 0.88))),
        (((0.12, 0.02), (0.85, 0.02)), ((0.85, 0.02), (0.45, 0.42)), ((0.45, 0.42), (0.85, 0.6), (0.8, 0.9), (0.4, 1), (0.1, 0.88))),
        (((0.2, 0.05), (0.6, 0), (0.8, 0.22), (0.45, 0.45), (0.8, 0.65), (0.65, 0.95), (0.15, 1)),),
    ),
    "four": (
        (((0.22, 0), (0.15, 0.3), (0.08, 0.58)), ((0.08, 0.58), (0.95, 0.55)), ((0.7, 0.15), (0.68, 0.6), (0.62, 1))),
        (((0.65, 0), (0.05, 0.68)), ((0.05, 0.68), (0.95, 0.68)), ((0.65, 0), (0.65, 1))),
        (((0.15, 0), (0.12, 0.45), (0.45, 0.55), (0.85, 0.45)), ((0.85, 0), (0.82, 0.5), (0.78, 1))),
        (((0.45, 0), (0.2, 0.4), (0.05, 0.6)), ((0.05, 0.6), (0.95, 0.62)), ((0.6, 0.35), (0.58, 0.7), (0.55, 1))),
    ),
    "five": (
        (((0.85, 0), (0.22, 0)), ((0.22, 0), (0.15, 0.45)), ((0.15, 0.45), (0.5, 0.38), (0.88, 0.6), (0.75, 0.92), (0.35, 1), (0.08, 0.88))),
        (((0.9, 0.05), (0.4, 0.02), (0.25, 0.4), (0.65, 0.45), (0.8, 0.75), (0.5, 0.98), (0.1, 0.95)),),
        (((0.3, 0.02), (0.25, 0.42)), ((0.25, 0.42), (0.7, 0.45), (0.8, 0.8), (0.4, 1), (0.12, 0.9)), ((0.3, 0.02), (0.9, 0))),
    ),
    "six": (
        (((0.75, 0.02), (0.35, 0.25), (0.12, 0.65), (0.3, 0.97), (0.7, 0.97), (0.88, 0.72), (0.65, 0.5), (0.3, 0.55), (0.14, 0.75)),),
        (((0.5, 0), (0.25, 0.35), (0.15, 0.75), (0.45, 1), (0.8, 0.85), (0.7, 0.6), (0.4, 0.6), (0.2, 0.8)),),
    ),
    "seven": (
        (((0.08, 0.03), (0.9, 0.03)), ((0.9, 0.03), (0.6, 0.5), (0.4, 1))),
        (((0.08, 0.05), (0.9, 0.03)), ((0.9, 0.03), (0.55, 0.55), (0.45, 1)), ((0.25, 0.5), (0.85, 0.48))),
        (((0.08, 0.2), (0.1, 0.03)), ((0.1, 0.03), (0.9, 0.03)), ((0.9, 0.03), (0.4, 1))),
        (((0.05, 0.12), (0.4, 0.02), (0.85, 0.08)), ((0.85, 0.08), (0.6, 0.5), (0.5, 1)), ((0.3, 0.52), (0.8, 0.5))),
    ),
    "eight": (
        (((0.5, 0.48), (0.18, 0.25), (0.5, 0), (0.82, 0.25), (0.5, 0.48), (0.12, 0.75), (0.5, 1), (0.88, 0.75), (0.5, 0.48)),),
        (((0.8, 0.12), (0.45, 0), (0.2, 0.2), (0.5, 0.48), (0.8, 0.75), (0.5, 1), (0.2, 0.8), (0.5, 0.5), (0.82, 0.15)),),
    ),
    "nine": (
        (((0.85, 0.25), (0.5, 0), (0.15, 0.25), (0.45, 0.5), (0.85, 0.25)), ((0.85, 0.25), (0.8, 0.6), (0.6, 1))),
        (((0.82, 0.2), (0.45, 0.02), (0.15, 0.28), (0.5, 0.5), (0.82, 0.2)), ((0.82, 0.2), (0.85, 0.7), (0.55, 1), (0.15, 0.92))),
        (((0.8, 0.22), (0.45, 0), (0.2, 0.25), (0.5, 0.45), (0.8, 0.22)), ((0.8, 0.22), (0.8, 1))),
    ),
}  # fmt: skip


def pen_mask(digit: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A digit drawn by a wavering pen: one of several ways to write it, its points moved at random."""
    ways = _PEN_DIGITS[digit]
    strokes = ways[int(rng.integers(len(ways)))]
    side = 96
    stretch = np.asarray([rng.uniform(0.45, 1.0), 1.0])
    image = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(image)
    width = int(rng.integers(5, 15))
    waver = rng.uniform(0.01, 0.06)
    for stroke in strokes:
        points = (np.asarray(stroke) + rng.normal(0, waver, (len(stroke), 2))) * stretch
        path = [tuple(point) for point in _smooth(points) * 64 + 16]
        pen.line(path, fill=255, width=width, joint="curve")
        for x, y in (path[0], path[-1]):
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    mask = _centred(image)
    assert mask is not None
    return mask


def _smooth(points: NDArray[np.float64], steps: int = 8) -> NDArray[np.float64]:
    """A Catmull-Rom curve through the points."""
    if len(points) == 2:
        return points
    padded = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.vstack([*pieces, points[-1:]])


# --- distortions ----------------------------------------------------------------------------------


def distort(masks: torch.Tensor, size: int, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Rotate, slant, stretch, move, bend and re-weight masks.

    Args:
        masks: ink coverage, (B, MASK_SIZE, MASK_SIZE) in [0, 1].
        size: side of the result in pixels.
        generator: the source of every random draw.
        strength: 0 only rescales; 1 is what pretraining uses.

    Returns:
        Ink coverage, (B, size, size) in [0, 1].
    """
    batch = masks.shape[0]

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    angle = uniform(-0.3, 0.3) * strength
    slant = uniform(-0.4, 0.4) * strength
    zoom = 1 + (uniform(-0.12, 0.55)) * strength
    aspect = torch.exp(uniform(-0.3, 0.3) * strength)
    cos, sin = torch.cos(angle), torch.sin(angle)
    linear = torch.stack(
        [
            torch.stack([cos * zoom * aspect, -sin * zoom + slant], -1),
            torch.stack([sin * zoom, cos * zoom / aspect], -1),
        ],
        1,
    )
    slack = (zoom - 0.75).clamp(min=0)[:, None]
    shift = uniform(-1, 1, 2) * slack * 0.6 * min(1.0, strength)
    grid = F.affine_grid(torch.cat([linear, shift[..., None]], -1), [batch, 1, size, size], align_corners=False)
    bend = F.interpolate(
        (torch.rand(batch, 2, 5, 5, generator=generator) - 0.5), size=(size, size), mode="bicubic", align_corners=True
    )
    grid = grid + bend.permute(0, 2, 3, 1) * uniform(0.0, 0.32, 1, 1, 1) * strength
    warped = F.grid_sample(masks[:, None], grid, align_corners=False)
    soft = F.avg_pool2d(F.avg_pool2d(warped, 3, 1, 1), 3, 1, 1)
    weight = uniform(0.22, 0.62, 1, 1, 1)
    reweighted = torch.sigmoid((soft - weight) * 14)
    keep = (uniform(0, 1, 1, 1, 1) < 0.5).float() if strength > 0 else torch.ones(batch, 1, 1, 1)
    mixed: torch.Tensor = (warped * keep + reweighted * (1 - keep))[:, 0]
    return mixed.clamp(0, 1)


def pixelate(masks: torch.Tensor, tiles: int, size: int) -> torch.Tensor:
    """Masks (B, H, W) at a resolution of `tiles` x `tiles`, enlarged again to (B, size, size); full contrast."""
    small = F.interpolate(masks[:, None], size=(tiles, tiles), mode="area")
    small = small / small.amax((2, 3), keepdim=True).clamp(min=0.2)
    return F.interpolate(small, size=(size, size), mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)


def bounding_crop(masks: torch.Tensor, margin: float = 0.04) -> torch.Tensor:
    """Enlarge each mask's ink to fill the frame, as scanners of single characters do. Shape unchanged."""
    batch, height, width = masks.shape
    ink = masks > 0.25
    rows, columns = ink.any(2), ink.any(1)
    top, bottom = _extent(rows)
    left, right = _extent(columns)
    side = torch.maximum((bottom - top) / height, (right - left) / width).clamp(min=0.2) * (1 + 2 * margin)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, 0, 2] = (left + right) / width - 1
    theta[:, 1, 2] = (top + bottom) / height - 1
    grid = F.affine_grid(theta, [batch, 1, height, width], align_corners=False)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def _extent(any_ink: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    length = any_ink.shape[1]
    index = torch.arange(length)
    first = torch.where(any_ink, index, length).amin(1)
    last = torch.where(any_ink, index, -1).amax(1) + 1
    empty = ~any_ink.any(1)
    return torch.where(empty, 0, first).float(), torch.where(empty, length, last).float()


def tint(ink: torch.Tensor, colours: torch.Tensor, papers: torch.Tensor) -> torch.Tensor:
    """Masks (B, H, W) painted in `colours` on `papers`, both (B, 3) in [0, 1]: (B, 3, H, W)."""
    alpha = ink[:, None]
    return colours[:, :, None, None] * alpha + papers[:, :, None, None] * (1 - alpha)


def noise_level(generator: torch.Generator, batch: int, high: float) -> torch.Tensor:
    """A noise scale for each image, (B, 1, 1, 1), most of them near zero."""
    return high * torch.rand(batch, 1, 1, 1, generator=generator) ** 2 * math.sqrt(2) / 2
