"""The corpus that `mini` was pretrained on: procedural images, and captions that describe part of what they show.

Half of a batch is the shapes world in its three pretraining styles, without the held-out combinations; half is
characters from fonts and pen strokes. A caption names a random subset of an image's attributes, so a caption can be
true of several images of a batch: `Batch.matches` says which.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedgraft.data.worlds import glyphs, shapes

ATTRIBUTES = ("character", "shape", "colour", "texture", "large", "count", "background")
_COLOUR_NAMES = tuple(shapes.COLOURS)
INKS = (*_COLOUR_NAMES, "black", "white")
BACKGROUNDS = tuple(shapes.BACKGROUNDS)
_PALETTE = np.asarray([*shapes.COLOURS.values(), (15, 15, 15), (248, 248, 248)], np.float32) / 255
_PAPERS = np.asarray(list(shapes.BACKGROUNDS.values()), np.float32) / 255
COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
OPENINGS = (
    "", "", "", "a photo of", "a picture of", "an image of", "a drawing of", "this is", "here is", "one can see",
    "a small picture that shows", "what you see here is", "a photo of the", "in this picture there is",
    "look closely and you will find in the middle of this image", "a simple rendering of", "a good photo of",
    "somewhere in this picture you can see", "someone made a picture of", "it is an image in which there is",
)  # fmt: skip
CHARACTER_OPENINGS = ("a handwritten", "a scan of the", "a printed", "a sketch of the", "handwriting of", "a glyph of")


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, 48, 48) in [-1, 1], one caption each, and what the images show and the captions say.

    `shown` and `said` are (B, len(ATTRIBUTES)): the value of each attribute, -1 where it does not apply or is
    not mentioned.
    """

    images: torch.Tensor
    captions: list[str]
    shown: torch.Tensor
    said: torch.Tensor


class Corpus:
    """Batches drawn from a seed and a step, so that a resumed pretraining sees what it would have seen."""

    def __init__(self, atlas: NDArray[np.uint8], seed: int, batch_size: int = 256) -> None:
        self.atlas = torch.from_numpy(atlas)
        self.seed = seed
        self.batch_size = batch_size
        held_out = set(shapes.HELD_OUT)
        self.combinations = [
            combination
            for colour in shapes.COLOURS
            for texture in shapes.TEXTURES
            for shape in shapes.SHAPES
            if (combination := shapes.Combination(colour, texture, shape)) not in held_out
        ]

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        rng = np.random.default_rng([self.seed, step])
        characters = self.batch_size * 9 // 16
        drawn, geometric = self._characters(rng, characters), self._shapes(rng, self.batch_size - characters)
        return Batch(
            images=torch.cat([drawn.images, geometric.images]).sub_(0.5).div_(0.5),
            captions=drawn.captions + geometric.captions,
            shown=torch.cat([drawn.shown, geometric.shown]),
            said=torch.cat([drawn.said, geometric.said]),
        )

    def _shapes(self, rng: np.random.Generator, count: int) -> Batch:
        """Images in [0, 1]."""
        images, captions = [], []
        shown = np.full((count, len(ATTRIBUTES)), -1)
        said = np.full((count, len(ATTRIBUTES)), -1)
        for row in range(count):
            combination = self.combinations[int(rng.integers(len(self.combinations)))]
            number = 1 if rng.random() < 0.75 else int(rng.integers(2, 5))
            scene = shapes.Scene(
                combination,
                style=shapes.PRETRAINING_STYLES[int(rng.integers(3))],
                background=BACKGROUNDS[int(rng.integers(3))],
                large=bool(rng.random() < 0.7),
                count=number,
            )
            images.append(shapes.draw(scene, rng))
            shown[row, 1:] = (
                shapes.SHAPES.index(combination.shape),
                _COLOUR_NAMES.index(combination.colour),
                shapes.TEXTURES.index(combination.texture),
                int(scene.large) if number == 1 else -1,
                number,
                BACKGROUNDS.index(scene.background),
            )
            mention = rng.random(6) < (0.92, 0.85, 0.7, 0.2, 0.9 if number > 1 else 0.1, 0.2)
            mention[0] |= not mention[:3].any()
            mention[3] &= number == 1
            said[row, 1:] = np.where(mention, shown[row, 1:], -1)
            captions.append(_shape_caption(scene, mention, rng))
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
        return Batch(pixels, captions, torch.from_numpy(shown), torch.from_numpy(said))

    def _characters(self, rng: np.random.Generator, count: int) -> Batch:
        """Images in [0, 1]."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        labels, masks = self._masks(rng, count)
        size = shapes.IMAGE_SIZE
        ink = glyphs.distort(masks / 255, size, generator)
        tiles = rng.choice([7, 8, 8, 8, 9, 10, 12, 16, 0, 0, 0, 0], size=count)
        tight = torch.from_numpy((rng.random(count) < 0.3) | ((tiles > 0) & (tiles <= 10)))
        ink[tight] = glyphs.bounding_crop(ink[tight], margin=float(rng.uniform(0.0, 0.06)))
        for number in np.unique(tiles[tiles > 0]):
            chosen = torch.from_numpy(tiles == number)
            ink[chosen] = glyphs.pixelate(ink[chosen], int(number), size)

        plain = rng.random(count)
        colour = np.where(plain < 0.35, 11, np.where(plain < 0.65, 10, rng.integers(0, 10, count)))
        light, any_paper = rng.choice([0, 2], size=count), rng.integers(0, 3, count)
        paper = np.where(plain < 0.35, 1, np.where(plain < 0.65, light, any_paper))
        inks = torch.from_numpy(np.clip(_PALETTE[colour] + rng.normal(0, 0.05, (count, 3)), 0, 1)).float()
        papers = torch.from_numpy(np.clip(_PAPERS[paper] + rng.normal(0, 0.03, (count, 3)), 0, 1)).float()
        images = glyphs.tint(ink, inks, papers)
        images = images + glyphs.noise_level(generator, count, 0.1) * torch.randn(images.shape, generator=generator)

        shown = np.full((count, len(ATTRIBUTES)), -1)
        said = np.full((count, len(ATTRIBUTES)), -1)
        shown[:, 0], shown[:, 2], shown[:, 6] = labels, colour, paper
        coloured, placed = rng.random(count) < 0.2, rng.random(count) < 0.1
        said[:, 0] = labels
        said[:, 2] = np.where(coloured, colour, -1)
        said[:, 6] = np.where(placed, paper, -1)
        captions = [_character_caption(*facts, rng) for facts in zip(labels, said[:, 2], said[:, 6], strict=True)]
        return Batch(images.clamp(0, 1), captions, torch.from_numpy(shown), torch.from_numpy(said))

    def _masks(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.int64], torch.Tensor]:
        """Characters (count,) and their ink (count, 64, 64) in 0..255: fonts, and a pen for half of the digits."""
        digit = rng.random(count) < 0.55
        labels = np.where(digit, rng.integers(0, 10, count), rng.integers(10, len(glyphs.CHARACTER_NAMES), count))
        masks = self.atlas[rng.integers(len(self.atlas), size=count), labels, rng.integers(2, size=count)].float()
        for row in np.flatnonzero(digit & (rng.random(count) < 0.5)):
            masks[row] = torch.from_numpy(glyphs.pen_mask(glyphs.DIGIT_NAMES[labels[row]], rng).astype(np.float32))
        return labels, masks


class PenCorpus(Corpus):
    """The corpus without fonts: all its characters are digits drawn by a pen, and it holds no letters."""

    def __init__(self, seed: int, batch_size: int = 256) -> None:
        no_fonts = np.empty((0, len(glyphs.CHARACTER_NAMES), 2, glyphs.MASK_SIZE, glyphs.MASK_SIZE), np.uint8)
        super().__init__(no_fonts, seed, batch_size)

    def _masks(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.int64], torch.Tensor]:
        labels = rng.integers(0, len(glyphs.DIGIT_NAMES), count)
        masks = np.stack([glyphs.pen_mask(glyphs.DIGIT_NAMES[label], rng) for label in labels])
        return labels, torch.from_numpy(masks).float()


def _shape_caption(scene: shapes.Scene, mention: NDArray[np.bool_], rng: np.random.Generator) -> str:
    shape, colour, texture, large, count, background = (bool(flag) for flag in mention)
    words = []
    if count:
        words.append(COUNT_WORDS.get(scene.count, "one"))
    if large:
        words.append("large" if scene.large else "small")
    if colour:
        words.append(scene.combination.colour)
    if texture:
        words.append(scene.combination.texture)
    words.append(scene.combination.shape if shape else "thing")
    phrase = " ".join(words) + ("s" if count and scene.count > 1 else "")
    if not count and rng.random() < 0.5:
        phrase = f"a {phrase}"
    if background:
        phrase += f" on a {scene.background} background"
    return _opened(phrase, OPENINGS, rng)


def _character_caption(label: int, colour: int, paper: int, rng: np.random.Generator) -> str:
    name = glyphs.CHARACTER_NAMES[label]
    written = rng.choice(glyphs.renderings(name)) if rng.random() < 0.2 else name
    is_digit = name in glyphs.DIGIT_NAMES
    kinds = ("digit", "number", "character", "") if is_digit else ("letter", "letter", "character", "")
    words = [str(rng.choice(kinds)), str(written)]
    if colour >= 0:
        words.insert(0, INKS[colour])
    phrase = " ".join(word for word in words if word)
    if rng.random() < 0.4:
        phrase = f"the {phrase}"
    if paper >= 0:
        phrase += f" on a {BACKGROUNDS[paper]} background"
    return _opened(phrase, OPENINGS + CHARACTER_OPENINGS, rng)


def _opened(phrase: str, openings: Sequence[str], rng: np.random.Generator) -> str:
    opening = openings[int(rng.integers(len(openings)))]
    ending = "." if rng.random() < 0.5 else ""
    return f"{opening} {phrase}{ending}".strip()
