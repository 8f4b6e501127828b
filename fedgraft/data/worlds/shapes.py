"""The shapes world: coloured, textured geometric shapes drawn in one of six rendering styles.

Every combination of a colour, a texture and a shape can be drawn. A fixed fifth of them, `HELD_OUT`, is withheld from
pretraining: no caption and no image of the embedded backbone's corpus contains one. Three styles are withheld as well
(`EVALUATION_STYLES`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

IMAGE_SIZE = 48
_SUPERSAMPLE = 2

SHAPES = (
    "arrow", "circle", "crescent", "cross", "diamond", "drop",
    "heart", "hexagon", "ring", "square", "star", "triangle",
)  # fmt: skip
TEXTURES = ("solid", "striped", "dotted", "checkered", "hollow")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 25),
    "yellow": (240, 220, 40),
    "green": (45, 165, 60),
    "cyan": (60, 205, 215),
    "blue": (40, 75, 215),
    "purple": (135, 50, 180),
    "pink": (250, 130, 190),
    "brown": (125, 75, 35),
    "gray": (130, 130, 130),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "black": (10, 10, 10),
    "beige": (235, 220, 190),
}
PRETRAINING_STYLES = ("flat", "scene", "shaded")
EVALUATION_STYLES = ("faded", "mosaic", "noisy")
STYLES = PRETRAINING_STYLES + EVALUATION_STYLES

Pixels = NDArray[np.floating]


class Combination(NamedTuple):
    """One class of the shapes world."""

    colour: str
    texture: str
    shape: str

    @property
    def name(self) -> str:
        """The class name as captions and prompts use it."""
        return f"{self.colour} {self.texture} {self.shape}"


def _held_out() -> tuple[Combination, ...]:
    """One texture for each pair of colour and shape, balanced over all three like a Latin square."""
    held = [
        Combination(colour, texture, shape)
        for c, colour in enumerate(COLOURS)
        for t, texture in enumerate(TEXTURES)
        for s, shape in enumerate(SHAPES)
        if (c + 2 * t + 3 * s) % len(TEXTURES) == 0
    ]
    return tuple(sorted(held, key=lambda combination: combination.name))


HELD_OUT: tuple[Combination, ...] = _held_out()
"""The 120 combinations that pretraining never sees, sorted by name."""


@dataclass(frozen=True)
class Scene:
    """What one image shows."""

    combination: Combination
    style: str
    background: str = "white"
    large: bool = True
    count: int = 1


def draw(scene: Scene, rng: np.random.Generator, size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """The RGB pixels of a scene, (size, size, 3)."""
    colour = _jitter(COLOURS[scene.combination.colour], rng, 16)
    canvas = _background(scene, rng, size)
    for x, y, radius in _places(scene, rng):
        mask = _shape_mask(scene.combination.shape, x, y, radius, float(rng.uniform(-0.35, 0.35)), size)
        paint = _textured(scene.combination.texture, mask, canvas, colour, radius * size, rng)
        if scene.style == "shaded":
            paint, canvas = _lit(paint, canvas, mask, rng)
        alpha = _covered(scene.combination.texture, mask, radius * size)[..., None]
        canvas = canvas * (1 - alpha) + paint * alpha
    canvas = _FINISH.get(scene.style, _finish_clean)(canvas, rng)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _jitter(colour: tuple[int, int, int], rng: np.random.Generator, amount: float) -> Pixels:
    return np.clip(np.asarray(colour, np.float32) + rng.uniform(-amount, amount, 3), 0, 255).astype(np.float32)


def _places(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Centre and radius of each copy, as fractions of the image's side."""
    if scene.count == 1:
        radius = rng.uniform(0.30, 0.40) if scene.large else rng.uniform(0.16, 0.22)
        slack = 0.5 - radius - 0.03
        return [(0.5 + rng.uniform(-slack, slack), 0.5 + rng.uniform(-slack, slack), radius)]
    radius = rng.uniform(0.19, 0.22)
    cells = [(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)]
    chosen = rng.permutation(len(cells))[: scene.count]
    return [(cells[i][0] + rng.uniform(-0.03, 0.03), cells[i][1] + rng.uniform(-0.03, 0.03), radius) for i in chosen]


# --- outlines -------------------------------------------------------------------------------------


def _regular(corners: int, phase: float = -math.pi / 2) -> list[tuple[float, float]]:
    return [
        (math.cos(phase + 2 * math.pi * k / corners), math.sin(phase + 2 * math.pi * k / corners))
        for k in range(corners)
    ]


def _star() -> list[tuple[float, float]]:
    points = []
    for k in range(10):
        radius = 1.05 if k % 2 == 0 else 0.45
        angle = -math.pi / 2 + math.pi * k / 5
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _heart() -> list[tuple[float, float]]:
    points = []
    for k in range(40):
        t = 2 * math.pi * k / 40
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16.5, -(y + 2) / 16.5))
    return points


def _drop() -> list[tuple[float, float]]:
    points = [(0.0, -1.1)]
    for k in range(25):
        angle = -0.25 * math.pi + 1.5 * math.pi * k / 24
        points.append((0.68 * math.cos(angle), 0.3 + 0.68 * math.sin(angle)))
    return points


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "arrow": [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1.05, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)],
    "circle": _regular(48),
    "crescent": _regular(48),
    "cross": [(-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
              (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33)],
    "diamond": [(0, -1.1), (0.72, 0), (0, 1.1), (-0.72, 0)],
    "drop": _drop(),
    "heart": _heart(),
    "hexagon": _regular(6, 0.0),
    "ring": _regular(48),
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "star": _star(),
    "triangle": [(0, -1), (0.98, 0.78), (-0.98, 0.78)],
}  # fmt: skip
_CUTOUTS: dict[str, tuple[float, float, float]] = {"ring": (0.0, 0.0, 0.5), "crescent": (0.45, -0.1, 0.85)}


def _shape_mask(shape: str, x: float, y: float, radius: float, angle: float, size: int) -> Pixels:
    """Coverage of each pixel by the shape, (size, size) in [0, 1]."""
    side = size * _SUPERSAMPLE
    image = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(image)
    cos, sin = math.cos(angle), math.sin(angle)

    def place(px: float, py: float) -> tuple[float, float]:
        return side * (x + radius * (cos * px - sin * py)), side * (y + radius * (sin * px + cos * py))

    pen.polygon([place(px, py) for px, py in _OUTLINES[shape]], fill=255)
    if shape in _CUTOUTS:
        cx, cy, fraction = _CUTOUTS[shape]
        pen.polygon([place(cx + fraction * px, cy + fraction * py) for px, py in _regular(48)], fill=0)
    return np.asarray(image.reduce(_SUPERSAMPLE), np.float32) / 255


# --- textures -------------------------------------------------------------------------------------


def _textured(
    texture: str, mask: Pixels, canvas: Pixels, colour: Pixels, radius: float, rng: np.random.Generator
) -> Pixels:
    """The paint inside the shape: the colour, crossed by a pattern in white or black."""
    size = mask.shape[0]
    paint = np.broadcast_to(colour, (size, size, 3)).astype(np.float32)
    if texture in ("solid", "hollow"):
        return paint
    second = np.full(3, 245.0 if rng.random() < 0.5 else 15.0, np.float32)
    angle = rng.uniform(0, math.pi)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    u = columns * math.cos(angle) + rows * math.sin(angle)
    v = -columns * math.sin(angle) + rows * math.cos(angle)
    period = max(5.0, radius * rng.uniform(0.45, 0.6))
    if texture == "striped":
        pattern = np.sin(2 * math.pi * u / period) > 0.25
    elif texture == "dotted":
        pattern = np.cos(2 * math.pi * u / period) + np.cos(2 * math.pi * v / period) > 0.7
    else:
        pattern = np.sin(2 * math.pi * u / (1.5 * period)) * np.sin(2 * math.pi * v / (1.5 * period)) > 0
    return np.where(pattern[..., None], second, paint).astype(np.float32)


def _covered(texture: str, mask: Pixels, radius: float) -> Pixels:
    """A hollow shape is its rim; any other covers its whole outline."""
    if texture != "hollow":
        return mask
    rim = max(3, int(radius * 0.28) // 2 * 2 + 1)
    inside = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.MinFilter(rim))
    return mask - np.asarray(inside, np.float32) / 255 * (mask > 0)


# --- styles ---------------------------------------------------------------------------------------


def _background(scene: Scene, rng: np.random.Generator, size: int) -> Pixels:
    base = _jitter(BACKGROUNDS[scene.background], rng, 8)
    canvas: Pixels = np.broadcast_to(base, (size, size, 3)).astype(np.float32).copy()
    if scene.style == "scene":
        other = np.clip(base + rng.uniform(-70, 70, 3), 0, 255)
        ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None]
        weight = (ramp if rng.random() < 0.5 else ramp.T)[..., None]
        canvas = canvas * (1 - weight) + other * weight
        image = Image.fromarray(canvas.astype(np.uint8))
        pen = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(2, 6))):
            x, y, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(1, 4)
            tint = tuple(int(v) for v in np.clip(base + rng.uniform(-60, 60, 3), 0, 255))
            pen.ellipse((x - r, y - r, x + r, y + r), fill=tint)
        canvas = np.asarray(image, np.float32)
    return canvas


def _lit(paint: Pixels, canvas: Pixels, mask: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Light from one side on the shape, and its shadow on the background."""
    size = mask.shape[0]
    angle = rng.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    light = 1 + 0.7 * (columns * math.cos(angle) + rows * math.sin(angle))
    shadow = np.roll(mask, (2, 2), axis=(0, 1))[..., None]
    return (paint * light[..., None]).astype(np.float32), canvas * (1 - 0.45 * shadow)


def _finish_clean(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    return canvas + rng.normal(0, rng.uniform(0, 6), canvas.shape).astype(np.float32)


def _finish_noisy(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    canvas = canvas + rng.normal(0, 55, canvas.shape).astype(np.float32)
    grains = rng.random(canvas.shape[:2]) < 0.06
    canvas[grains] = rng.choice(np.asarray([0.0, 255.0], np.float32), size=int(grains.sum()))[:, None]
    return canvas


def _finish_mosaic(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    size = canvas.shape[0]
    tiles = int(rng.integers(15, 19))
    small = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).resize((tiles, tiles), Image.Resampling.BOX)
    levels = np.round(np.asarray(small, np.float32) / 64) * 64
    return np.asarray(
        Image.fromarray(levels.clip(0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST), np.float32
    )


def _finish_faded(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    fog = _jitter((190, 185, 175), rng, 15)
    strength = rng.uniform(0.5, 0.65)
    return canvas * (1 - strength) + fog * strength + rng.normal(0, 5, canvas.shape).astype(np.float32)


_FINISH: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "faded": _finish_faded,
    "mosaic": _finish_mosaic,
    "noisy": _finish_noisy,
}
