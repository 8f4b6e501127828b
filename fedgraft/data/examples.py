"""The table of examples that a data source offers: labels, domains, content keys, and how to load an image."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedgraft.core.errors import UserError

IntArray = NDArray[np.int64]
DEFAULT_TEMPLATES = ("a photo of a {}.",)
SPLIT_NAMES = ("train", "val", "test")
KEY_BYTES = 32


@dataclass(frozen=True)
class Examples:
    """Images with labels; nothing is decoded until `load` is called.

    Attributes:
        class_names: in the source's own order of labels where it has one, else sorted; a label is a position in it.
        labels: (n,) class of each example.
        domain_names: sorted; one entry where the source has no domains.
        domains: (n,) domain of each example.
        keys: (n, 32) SHA-256 of each image's content.
        load: the RGB image at a position.
        templates: hand-written prompts with one "{}" for the class name.
        class_protocol_domains: the domains that class-based protocols draw from; empty for all.
        partial: whether classes may have no images, as at a single site.
        splits: (n,) the source's own split of each example, a position in `SPLIT_NAMES`; None if it has none.
        site_names: the writers, hospitals or cameras that the images are from, where the source knows them.
        sites: (n,) position of each example's in `site_names`; None if the source knows none.
        skipped: what was left out and why, a line each.
        repeated_names: whether several classes may have one name, as two of ImageNet's are called "missile".
        data_sets: those that were joined into this table, one after another, as `fedgraft.data.joined` does it; each
            class then has the templates of its own data set.
    """

    class_names: tuple[str, ...]
    labels: IntArray
    domain_names: tuple[str, ...]
    domains: IntArray
    keys: NDArray[np.uint8]
    load: Callable[[int], Image.Image]
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    class_protocol_domains: tuple[str, ...] = ()
    partial: bool = False
    splits: NDArray[np.int8] | None = None
    site_names: tuple[str, ...] = ()
    sites: IntArray | None = None
    skipped: tuple[str, ...] = ()
    repeated_names: bool = False
    data_sets: "tuple[DataSet, ...]" = ()

    def __post_init__(self) -> None:
        """Raise UserError for fewer than two classes, two classes of one name, or a class without images."""
        if len(self.class_names) < 2:
            raise UserError(f"The data has only one class, {self.class_names}; a classifier needs at least two.")
        twice = sorted(name for name, count in Counter(self.class_names).items() if count > 1)
        if twice and not self.repeated_names:
            raise UserError(f"Several classes have the name {', '.join(map(repr, twice))}; rename all but one.")
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        if (counts == 0).any() and not self.partial:
            empty = [self.class_names[index] for index in np.flatnonzero(counts == 0)]
            raise UserError(f"No images in the class {', '.join(map(repr, empty))}.")

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """One of several data sets, under the name that results show."""

    name: str
    examples: Examples


def content_key(content: bytes | memoryview) -> NDArray[np.uint8]:
    """The key of an image: SHA-256 of its file, or of its pixels if it has no file."""
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; 16-bit gray is scaled, whereas Pillow alone would turn it white.

    Raises:
        ValueError: its pixels are floating-point numbers, whose range nobody knows.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; convert them to 8 or 16 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def pixel_examples(
    pixels: NDArray[np.uint8],
    labels: IntArray,
    class_names: tuple[str, ...],
    domains: IntArray | None = None,
    domain_names: tuple[str, ...] = ("all",),
    **more: Any,
) -> Examples:
    """Examples held in memory as RGB pixels (n, height, width, 3)."""
    return Examples(
        class_names=class_names,
        labels=labels.astype(np.int64),
        domain_names=domain_names,
        domains=np.zeros(len(labels), np.int64) if domains is None else domains.astype(np.int64),
        keys=np.stack([content_key(image.tobytes()) for image in pixels]),
        load=lambda index: Image.fromarray(pixels[index]),
        **more,
    )
