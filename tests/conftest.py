"""What several tests use, beside the fixtures of the contract tests: small data, and one engine for all runs."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.backbone import Precision
from fedgraft.data.examples import Examples, content_key
from fedgraft.simulation.engine import Engine
from fedgraft.testing.engine import InProcessEngine
from fedgraft.testing.fixtures import *  # noqa: F403

ExamplesOf = Callable[..., Examples]
WriteImage = Callable[..., Path]
COLOURS = {"blue_circle": (20, 40, 220), "green_square": (20, 200, 40), "red_triangle": (220, 30, 20)}


@pytest.fixture(scope="session")
def examples_of() -> ExamplesOf:
    """Makes a table of examples: `examples_of(classes, per_class, domains, contents)`."""

    def make(
        classes: int = 6, per_class: int = 20, domains: int = 1, contents: Sequence[int] | None = None
    ) -> Examples:
        """Labels, domains and writers in turn; example i shows content `contents[i]`, its own unless given."""
        count = classes * per_class
        shown = range(count) if contents is None else contents
        return Examples(
            class_names=tuple(f"class {index:02d}" for index in range(classes)),
            labels=np.arange(count) % classes,
            domain_names=tuple(f"domain {index}" for index in range(domains)),
            domains=np.arange(count) // classes % domains,
            keys=np.stack([content_key(str(content).encode()) for content in shown]),
            load=lambda index: Image.new("RGB", (4, 4), (index % 256, 0, 0)),
            site_names=tuple(f"writer {index}" for index in range(9)),
            sites=np.arange(count) // classes % 9,
        )

    return make


@pytest.fixture(scope="session")
def write_image() -> WriteImage:
    """Writes a one-colour image and the folders above it."""

    def write(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (8, 6)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path)
        return path

    return write


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


@pytest.fixture(autouse=True, scope="session")
def _one_mini(mini: Backbone) -> Iterator[None]:
    """Plans share one embedded backbone, as runs in a worker do: opening it takes longer than most tests."""

    def load(name: str, precision: Precision, device: torch.device, options: dict[str, Any]) -> Backbone:
        if (name, precision, device, options) == ("mini", "float32", mini.device, {}):
            return mini
        return load_backbone(name, precision, device, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgraft.methods.plan.load_backbone", load)
        yield


@pytest.fixture(scope="session")
def engine() -> Engine:
    """Runs without processes, for `simulate_on`; tests/simulation/test_engines.py compares it with the others."""
    return InProcessEngine()
