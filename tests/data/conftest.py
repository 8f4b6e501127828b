"""Small synthetic data: a table of examples without files, and image folders as a user has them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft.data.examples import Examples, content_key
from fedgraft.data.sources.source import SourceRequest

ExamplesOf = Callable[..., Examples]
WriteImage = Callable[..., Path]


@pytest.fixture(scope="session")
def examples_of() -> ExamplesOf:
    """Makes a table of examples: `examples_of(classes, per_class, domains, contents)`."""

    def make(
        classes: int = 6, per_class: int = 20, domains: int = 1, contents: Sequence[int] | None = None
    ) -> Examples:
        """Labels and domains in turn; example i shows content `contents[i]`, its own unless given."""
        count = classes * per_class
        shown = range(count) if contents is None else contents
        return Examples(
            class_names=tuple(f"class {index:02d}" for index in range(classes)),
            labels=np.arange(count) % classes,
            domain_names=tuple(f"domain {index}" for index in range(domains)),
            domains=np.arange(count) // classes % domains,
            keys=np.stack([content_key(str(content).encode()) for content in shown]),
            load=lambda index: Image.new("RGB", (4, 4), (index % 256, 0, 0)),
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
def digits() -> Examples:
    """The digits, read once."""
    from fedgraft.data.sources.digits import open_examples

    return open_examples(SourceRequest("", seed=0))
