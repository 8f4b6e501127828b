"""Images that stand in for a recipe's data: a colour for each class, so that there is something to learn."""

from pathlib import Path

import numpy as np
from PIL import Image

from fedgraft.recipes.recipe import Mock

_SIDE = 24


def write_mock(mock: Mock, folder: Path) -> str:
    """Write the images as class/image or domain/class/image, and return the data source that reads them."""
    if mock.data_sets == 1:
        return _write(mock, folder, 0)
    return "several:" + "+".join(_write(mock, folder / f"data{number}", number) for number in range(mock.data_sets))


def _write(mock: Mock, folder: Path, seed: int) -> str:
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (mock.classes, 3))
    for domain in mock.domains or (".",):
        for number, colour in enumerate(colours):
            below = folder / domain / f"class_{number:03d}"
            below.mkdir(parents=True, exist_ok=True)
            for index in range(mock.per_class):
                pixels = colour + rng.normal(0, 40, (_SIDE, _SIDE, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(below / f"{index}.png")
    return f"folder:{folder}"
