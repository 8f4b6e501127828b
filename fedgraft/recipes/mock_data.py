"""Images that stand in for a recipe's data in the layout of the real ones: a colour for each class, to be learnt."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedgraft.recipes.recipe import Mock

_SIDE = 24
_SPLITS = ("train", "val", "test")
_COOP = {
    "caltech-101": ("Caltech101", "101_ObjectCategories"), "oxford_pets": ("OxfordPets", "images"),
    "oxford_flowers": ("OxfordFlowers", "jpg"),
}  # fmt: skip
"""What the split files of some of CoOp's folders are called, and where the images lie."""


def write_mock(mock: Mock, folder: Path) -> str:
    """Write the images of all data sets below a folder, and return the data source that reads them."""
    specs = []
    for number, name in enumerate(mock.names):
        root = folder / name
        root.mkdir(parents=True, exist_ok=True)
        specs.append(_WRITERS[mock.layout](mock, root, _Images(mock.classes, np.random.default_rng(number))))
    return specs[0] if len(specs) == 1 else f"several:{'+'.join(specs)}"


@dataclass(frozen=True)
class _Images:
    """Draws images of each class."""

    classes: int
    rng: np.random.Generator

    def draw(self, each: int) -> Iterator[tuple[int, int, Image.Image]]:
        """The label, a number within the class, and the image."""
        colours: NDArray[np.int64] = np.random.default_rng(self.classes).integers(0, 256, (self.classes, 3))
        for label, colour in enumerate(colours):
            for number in range(each):
                pixels = colour + self.rng.normal(0, 40, (_SIDE, _SIDE, 3))
                yield label, number, Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _name(label: int) -> str:
    return f"class_{label:03d}"


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _folder(mock: Mock, root: Path, images: _Images) -> str:
    """class/image or domain/class/image."""
    for domain in mock.domains or (".",):
        for label, number, image in images.draw(mock.per_class):
            _save(image, root / domain / _name(label) / f"{number}.png")
    return f"folder:{root}"


def _lists(mock: Mock, root: Path, images: _Images) -> str:
    """domain/class/image beside DomainNet's lists of a domain's images for training and for testing."""
    (root / "splits").mkdir(exist_ok=True)
    for domain in mock.domains:
        for split in ("train", "test"):
            lines = []
            for label, number, image in images.draw(mock.per_class):
                written = f"{domain}/{_name(label)}/{split}_{number}.png"
                _save(image, root / written)
                lines.append(f"{written} {label}\n")
            (root / "splits" / f"{domain}_{split}.txt").write_text("".join(lines), encoding="utf-8")
    return f"folder:{root}"


def _coop(mock: Mock, root: Path, images: _Images) -> str:
    """A split file with the path, label and class name of each image."""
    written, below = _COOP[root.name]
    split: dict[str, list[tuple[str, int, str]]] = {}
    for name in _SPLITS:
        split[name] = []
        for label, number, image in images.draw(mock.per_class):
            path = f"{_name(label)}/{name}_{number}.jpg"
            _save(image, root / below / path)
            split[name].append((path, label, _name(label)))
    (root / f"split_zhou_{written}.json").write_text(json.dumps(split), encoding="utf-8")
    return f"coop:{root}"


def _hf(mock: Mock, root: Path, images: _Images) -> str:
    """Parquet files of the splits train and test."""
    import datasets

    image_column, label_column = mock.columns
    names = [_name(label) for label in range(mock.classes)]
    features = datasets.Features({image_column: datasets.Image(), label_column: datasets.ClassLabel(names=names)})
    datasets.disable_progress_bars()
    for split in ("train", "test"):
        drawn = [(image, label) for label, _, image in images.draw(mock.per_class)]
        rows: dict[str, list[Any]] = dict(zip(mock.columns, map(list, zip(*drawn, strict=True)), strict=True))
        path = root / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return f"hf:{root}"


_WRITERS: dict[str, Callable[[Mock, Path, _Images], str]] = {
    "folder": _folder, "lists": _lists, "coop": _coop, "hf": _hf
}  # fmt: skip
