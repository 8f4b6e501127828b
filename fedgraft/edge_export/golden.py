"""The images that a bundle carries for a device's self test.

No image may leave its site, so they are none of the run's: one synthetic image, eight scanned digits and eight drawn
scenes, or the user's own. Several different ones, since a mean embedding can only be taken off several.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save

from fedgraft.core.errors import UserError
from fedgraft.data.sources.source import open_source
from fedgraft.data.worlds import shapes
from fedgraft.device.manifest import GOLDEN
from fedgraft.edge_export.bundle_manifest import GoldenRecord
from fedgraft.edge_export.bundle_writer import Contents, golden_image
from fedgraft.edge_export.measurement_images import evenly
from fedgraft.edge_export.number_formats import NumberFormat

Pixels = NDArray[np.uint8]
Embed = Callable[[list[Image.Image]], NDArray[np.float32]]
_EACH, _OWN_SIDE, _LEAST_OWN = 8, 96, 4
_MIN_AGREEMENT = 75.0


def golden(embed: Embed, number_format: NumberFormat, own: Path | None) -> tuple[Contents, GoldenRecord]:
    """golden.safetensors, and what it requires of a device.

    Args:
        embed: from images to the embeddings (n, dim) of the exported model.
        own: the user's images, class/image, instead of those that come with fedgraft.

    Raises:
        UserError: there are fewer than four of them.
    """
    images = _own_images(own) if own is not None else np.concatenate([_digits(), _scenes()])
    sample = golden_image()
    embeddings = embed([Image.fromarray(pixels) for pixels in (sample, *images)])
    tensors = {"image": sample, "embedding": embeddings[0], "images": images, "embeddings": embeddings[1:]}
    record = GoldenRecord(
        min_cosine=number_format.min_golden_cosine,
        images=len(images),
        min_centred_cosine=number_format.min_golden_centred,
        min_agreement=_MIN_AGREEMENT,
    )
    return {GOLDEN: save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})}, record


def _digits() -> Pixels:
    """Eight of scikit-learn's digits, as scanned, white on black."""
    from sklearn.datasets import load_digits

    scans = load_digits().images[:_EACH] * (255 / 16)
    enlarged = [Image.fromarray(scan.astype(np.uint8)).resize((48, 48), Image.Resampling.BICUBIC) for scan in scans]
    return np.stack([np.asarray(image.convert("RGB")) for image in enlarged])


def _scenes() -> Pixels:
    """Eight scenes of the shapes world, each of another class and most of another style and background."""
    chosen = evenly(np.arange(len(shapes.HELD_OUT)), _EACH)
    styles, backgrounds = shapes.STYLES, list(shapes.BACKGROUNDS)
    return np.stack(
        [
            shapes.draw(
                shapes.Scene(
                    shapes.HELD_OUT[position], styles[i % len(styles)], backgrounds[i % len(backgrounds)], large=True
                ),
                np.random.default_rng(i),
            )
            for i, position in enumerate(chosen)
        ]
    )


def _own_images(folder: Path) -> Pixels:
    examples = open_source(f"folder:{folder}", 0)
    if len(examples) < _LEAST_OWN:
        raise UserError(
            f"--golden-images {folder} has {len(examples)} images; a self test needs at least {_LEAST_OWN}, of "
            "different classes where possible."
        )
    chosen = evenly(np.arange(len(examples)), 2 * _EACH)
    side = (_OWN_SIDE, _OWN_SIDE)
    return np.stack([np.asarray(examples.load(int(each)).resize(side, Image.Resampling.BICUBIC)) for each in chosen])
