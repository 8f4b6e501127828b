"""What several tests use, beside the fixtures of the contract tests: images in a folder, and one engine for all runs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft.simulation.engine import Engine, Resources, open_engine
from fedgraft.testing.fixtures import _few_threads, _own_cache, mini, random_clip, random_clip_folder

__all__ = ["_few_threads", "_own_cache", "mini", "random_clip", "random_clip_folder"]

COLOURS = {"blue_circle": (20, 40, 220), "green_square": (20, 200, 40), "red_triangle": (220, 30, 20)}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of each of three classes, one colour a class."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(12):
            pixels = np.clip(np.asarray(colour) + rng.normal(0, 30, (48, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def engine(_own_cache: None, _few_threads: None) -> Iterator[Engine]:
    """Two worker processes of this machine for all runs, for `simulate_on`: the import of torch happens once."""
    with open_engine(Resources(workers=2)) as opened:
        yield opened
