"""scikit-learn's 1,797 real handwritten digits, 8 x 8 pixels each (Alpaydin and Kaynak, 1998)."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from fedgraft.config.options import Options
from fedgraft.data.examples import Examples, pixel_examples
from fedgraft.data.sources.source import Source
from fedgraft.data.worlds.glyphs import DIGIT_NAMES

TEMPLATES = ("the digit {}.", "a handwritten {}.", "a scan of the number {}.", "an image of the digit {}.", "{}")
_SIDE = 48


def open_examples(options: Options, seed: int) -> Examples:
    """The digits as white ink on black, enlarged to 48 x 48 pixels."""
    bunch = load_digits()
    images = [
        Image.fromarray((image * (255 / 16)).astype(np.uint8)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        for image in bunch.images
    ]
    pixels = np.repeat(np.stack([np.asarray(image) for image in images])[..., None], 3, axis=-1)
    names = tuple(sorted(DIGIT_NAMES))
    position = np.asarray([names.index(DIGIT_NAMES[digit]) for digit in range(10)])
    return pixel_examples(pixels, position[bunch.target], names, templates=TEMPLATES)


SOURCE = Source("digits", "1,797 real handwritten digits (scikit-learn)", open_examples)
