"""The server's unlabelled images, for making a backbone robust and for distilling a ticket."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedgraft.backbones.backbone import Backbone
from fedgraft.backbones.feature_store import FeatureStore, Progress, require_rows
from fedgraft.backbones.mini.corpus import PenCorpus
from fedgraft.config.registry import SOURCES
from fedgraft.core.errors import UserError, unknown
from fedgraft.core.files import cache_root
from fedgraft.core.randomness import derived_seed, generator
from fedgraft.data.examples import DEFAULT_TEMPLATES, content_key
from fedgraft.data.sources.source import open_source
from fedgraft.data.worlds import glyphs
from fedgraft.edge_export.tickets.attack import PixelRange
from fedgraft.edge_export.tickets.ticket_config import PROCEDURAL

_HELD_BYTES = 1 << 30


@dataclass(frozen=True)
class ServerImages:
    """Images without labels, and class names whose logits a tower should preserve.

    Attributes:
        name: of the source.
        keys: (n, 32) SHA-256 of each image's content.
        load: the RGB image at a position.
        class_names: of the class bank in the objective; they need not match the images.
        templates: prompts for the class names.
    """

    name: str
    keys: NDArray[np.uint8]
    load: Callable[[int], Image.Image]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]


def open_images(name: str, seed: int, count: int) -> ServerImages:
    """The images of a data source, or "procedural" ones: those of the pretraining of `mini` that need no fonts.

    Args:
        name: "procedural" or any data source, such as "folder:photos".
        seed: of procedural images, and of the sample from a larger source.
        count: the most images.

    Raises:
        UserError: there is no such source, or the count is less than two.
    """
    if count < 2:
        raise UserError(f"At least two unlabelled images are needed, not {count}.")
    if name == PROCEDURAL:
        return _procedural(seed, count)
    if name.partition(":")[0] not in SOURCES.names():
        raise unknown("source of unlabelled images", name, [PROCEDURAL, *SOURCES.names()])
    examples = open_source(name, seed)
    chosen = np.sort(generator(seed, "unlabelled").permutation(len(examples))[:count])
    return ServerImages(
        name,
        examples.keys[chosen],
        lambda position: examples.load(int(chosen[position])),
        examples.class_names,
        examples.templates,
    )


def _procedural(seed: int, count: int) -> ServerImages:
    """Shapes in the styles of pretraining, never in a held-out combination, and pen-drawn digits."""
    corpus = PenCorpus(derived_seed(seed, "procedural") % 2**32)
    parts = []
    for step in range(-(-count // corpus.batch_size)):
        images = corpus.batch(step).images.mul(0.5).add(0.5).mul(255).round().to(torch.uint8)
        parts.append(images.permute(0, 2, 3, 1).numpy())
    pixels = np.concatenate(parts)[:count]
    names = (*(combination.name for combination in corpus.combinations), *glyphs.DIGIT_NAMES)
    return ServerImages(
        PROCEDURAL,
        np.stack([content_key(image.tobytes()) for image in pixels]),
        lambda position: Image.fromarray(pixels[position]),
        names,
        DEFAULT_TEMPLATES,
    )


class ImagePool:
    """Unlabelled images as pixels, with the dense backbone's features of each, computed once.

    Args:
        backbone: the dense one.
        images: the images.
        progress: called as images pass the dense tower.
    """

    def __init__(self, backbone: Backbone, images: ServerImages, progress: Progress | None = None) -> None:
        self.name = images.name
        self._backbone, self._images = backbone, images
        store = FeatureStore(cache_root(), backbone)
        store.fill(images.keys, images.load, progress)
        self._targets = torch.from_numpy(store.vectors()[require_rows(store, images.keys)])
        self.class_bank = backbone.text.encode_classes(images.class_names, images.templates).cpu()
        self.logit_scale = backbone.logit_scale
        self._pixels = Pixels(backbone, images.load, len(self))
        self.pixel_range = PixelRange.of(backbone)

    def __len__(self) -> int:
        """The number of images."""
        return len(self._images.keys)

    def digest(self) -> str:
        """SHA-256 over the images, the dense backbone and the class bank."""
        digest = hashlib.sha256(self._images.keys.tobytes())
        digest.update(self._backbone.fingerprint.encode())
        digest.update("\n".join((*self._images.class_names, *self._images.templates)).encode())
        return digest.hexdigest()

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Random pixels (B, 3, side, side), and the dense backbone's features of them (B, dim)."""
        positions = rng.choice(len(self), min(size, len(self)), replace=False)
        return self._pixels[positions], self._targets[positions]


class Pixels:
    """Preprocessed images, kept in memory if they fit into a gigabyte, otherwise read again each time."""

    def __init__(self, backbone: Backbone, load: Callable[[int], Image.Image], count: int) -> None:
        self._backbone, self._load = backbone, load
        self._held: Tensor | None = None
        whole = backbone.preprocess([load(0)])
        if count * whole.numel() * whole.element_size() <= _HELD_BYTES:
            self._held = self._read(np.arange(count))

    def __getitem__(self, positions: NDArray[np.int64]) -> Tensor:
        """(n, 3, side, side)."""
        return self._read(positions) if self._held is None else self._held[torch.from_numpy(positions)]

    def _read(self, positions: NDArray[np.int64]) -> Tensor:
        parts = np.array_split(positions, -(-len(positions) // 256))
        return torch.cat([self._backbone.preprocess([self._load(int(p)) for p in part]) for part in parts])
