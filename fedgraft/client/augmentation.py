"""Training images that are drawn anew in every step: a random resized crop and a flip, as CoOp trains.

Each step then decodes its images and runs them through the frozen part of the image tower, in place of a look-up in the
feature store. What it costs is said before a run starts.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageOps

from fedgraft.backbones import Backbone
from fedgraft.backbones.kept_images import keep_images
from fedgraft.backbones.representation import Representation
from fedgraft.config.run_config import Augment
from fedgraft.data.examples import Examples, IntArray

_AREA, _ASPECT, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10


class AugmentedImages:
    """A site's training images, drawn and encoded when a step asks for them.

    Args:
        examples: the images.
        positions: of the site's training images, (n,).
        form: what the method trains on.
        rng: the source of crops and flips.
    """

    def __init__(
        self,
        backbone: Backbone,
        examples: Examples,
        positions: IntArray,
        form: Representation,
        augment: Augment,
        rng: np.random.Generator,
    ) -> None:
        self._backbone, self._examples, self._positions = backbone, examples, positions
        self._form, self._augment, self._rng = form, augment, rng

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """What the image tower gives for some of the images, (B, ...), each drawn anew."""
        images = [self._examples.load(int(self._positions[row])) for row in rows]
        side = int(self._backbone.preprocess(images[:1]).shape[-1])
        drawn = [augmented(image, self._augment, side, self._rng) for image in images]
        return keep_images(self._backbone, self._backbone.preprocess(drawn), self._form)


def augmented(image: Image.Image, augment: Augment, side: int, rng: np.random.Generator) -> Image.Image:
    """An image, mirrored with probability one half, after a random crop of `side` pixels if that is asked for."""
    if augment == "crop-flip":
        image = image.resize((side, side), Image.Resampling.BICUBIC, _box(image.width, image.height, rng))
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def _box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A crop of 8 to 100 % of the area with an aspect between 3:4 and 4:3, or the largest central one that fits."""
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*_AREA)
        aspect = math.exp(rng.uniform(*np.log(_ASPECT)))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
            return left, top, left + wide, top + high
    aspect = min(max(width / height, _ASPECT[0]), _ASPECT[1])
    wide, high = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high
