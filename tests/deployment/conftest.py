"""A folder of small images, one colour a class."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"blue_circle": (20, 40, 220), "green_square": (20, 200, 40), "red_triangle": (220, 30, 20)}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of each of three classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(12):
            pixels = np.clip(np.asarray(colour) + rng.normal(0, 30, (48, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root
