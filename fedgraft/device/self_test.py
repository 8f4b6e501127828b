"""The self test after a download: whether this machine computes from the golden images what the exporter did.

One golden sample has a plain cosine. The other images have a centred one, which a plain cosine hides, since embeddings
share most of their direction, and the share of them that get the exporter's class.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedgraft.device.bundle import Bundle
from fedgraft.device.class_bank import ClassBank
from fedgraft.device.errors import BundleError, ImageError
from fedgraft.device.manifest import GOLDEN, GoldenLimits
from fedgraft.device.tensors import read_tensors

FloatArray = NDArray[np.float32]
Embed = Callable[[Image.Image], FloatArray]
_NORM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class SelfTest:
    """What a self test found; it was passed.

    Attributes:
        cosine: of the golden sample.
        images: how many other golden images there are, 0 in bundles of before 0.2.
        centred_cosine: their mean, the exporter's mean embedding subtracted; None without such images.
        agreement: percent of them with the exporter's class; None without.
        warning: what is not as the exporter had it, although the bundle allows it; None if all is.
    """

    cosine: float
    images: int
    centred_cosine: float | None
    agreement: float | None
    warning: str | None


def self_test(bundle: Bundle, embed: Embed) -> SelfTest:
    """Embed the golden images of a bundle.

    Args:
        embed: from an image to its embedding (dim,).

    Raises:
        BundleError: they cannot be used, or less than the bundle allows is as the exporter had it.
    """
    limits = bundle.manifest.golden
    assert limits is not None  # a bundle with an encoder has them, as its manifest was checked
    try:
        image, expected, images, embeddings = _golden(bundle, limits)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"The golden sample of the bundle {bundle.path} cannot be used: {error}.") from error
    try:
        cosine = float(embed(image) @ expected)
        found = np.stack([embed(each) for each in images]) if images else embeddings
    except ImageError:
        raise
    except Exception as error:  # onnxruntime has no common error class
        raise BundleError(f"The bundle {bundle.path} cannot embed its own golden sample: {error}") from error
    if not cosine >= limits.min_cosine:
        raise _differs(f"the cosine of the golden sample is {cosine:.4f}, and at least {limits.min_cosine}")
    if not images:
        return SelfTest(cosine, 0, None, None, None)
    centred, agreement = _compared(embeddings, found, ClassBank.read(bundle).features)
    if not centred >= limits.min_centred_cosine:
        least = limits.min_centred_cosine
        raise _differs(f"the centred cosine of {len(images)} golden images is {centred:.4f}, and at least {least}")
    if not agreement >= limits.min_agreement:
        least = limits.min_agreement
        raise _differs(f"{agreement:.1f} % of {len(images)} golden images have its class, and at least {least:g} %")
    warning = None
    if agreement < 100:
        warning = (
            f"{agreement:.1f} % of {len(images)} golden images have the exporter's class on this machine (centred "
            f"cosine {centred:.4f}): its predictions can differ from those that were measured."
        )
    return SelfTest(cosine, len(images), centred, agreement, warning)


def _compared(expected: FloatArray, found: FloatArray, class_features: FloatArray) -> tuple[float, float]:
    """The mean centred cosine of embeddings (n, dim), and the percent of them with the same class."""
    mean = expected.mean(axis=0)
    one, other = expected - mean, found - mean
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (one * other).sum(axis=1)[norms > 0] / norms[norms > 0]
    same = (expected @ class_features.T).argmax(axis=1) == (found @ class_features.T).argmax(axis=1)
    return float(cosines.mean()) if len(cosines) else 1.0, float(100 * same.mean())


def _differs(what: str) -> BundleError:
    return BundleError(
        f"This machine does not reproduce the exporter's embedding: {what} is required. If the bundle is int8, export "
        "it without --quantize."
    )


def _golden(bundle: Bundle, limits: GoldenLimits) -> tuple[Image.Image, FloatArray, list[Image.Image], FloatArray]:
    """The golden sample and the other images with their embeddings.

    Raises:
        ValueError, KeyError, TypeError: they cannot be used.
    """
    tensors, dim = read_tensors(bundle.read(GOLDEN)), bundle.manifest.dim
    image, expected = tensors["image"], tensors["embedding"]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not min(image.shape):
        raise ValueError(f"its image is {image.dtype} with shape {image.shape}, not uint8 with (height, width, 3)")
    _check_embeddings(expected, (dim,), "its embedding is")
    if not limits.images:
        return Image.fromarray(image), expected, [], np.empty((0, dim), np.float32)
    images, embeddings = tensors["images"], tensors["embeddings"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not min(images.shape):
        raise ValueError(f"its images are {images.dtype} with shape {images.shape}, not uint8 with (n, h, w, 3)")
    if len(images) != limits.images:
        raise ValueError(f"it has {len(images)} images; the manifest says {limits.images}")
    _check_embeddings(embeddings, (len(images), dim), "its embeddings are")
    return Image.fromarray(image), expected, [Image.fromarray(each) for each in images], embeddings


def _check_embeddings(found: NDArray[np.generic], shape: tuple[int, ...], what: str) -> None:
    if found.dtype != np.float32 or found.shape != shape:
        raise ValueError(f"{what} {found.dtype} with shape {found.shape}, not float32 with {shape}")
    if not (np.abs(np.linalg.norm(found.astype(np.float32), axis=-1) - 1) <= _NORM_TOLERANCE).all():
        raise ValueError("its embedding does not have unit norm")
