"""Comparing an exported model with its torch tower and with the dense backbone."""

from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from fedgraft.core.errors import UserError
from fedgraft.device.manifest import MODEL

FloatArray = NDArray[np.float32]
_BATCH = 32


@dataclass(frozen=True)
class Parity:
    """A comparison of two sets of embeddings of the same images; agreement in percent."""

    images: int
    top1_agreement: float
    centred_cosine: float
    max_difference: float


def compare(reference: FloatArray, found: FloatArray, class_features: FloatArray) -> Parity:
    """Compare embeddings (n, dim) under a class bank (C, dim).

    Cosines are centred: the reference's mean is subtracted from both. Embeddings share most of their direction, so the
    plain cosine of a model destroyed by quantization is still 0.97.
    """
    same = (reference @ class_features.T).argmax(axis=1) == (found @ class_features.T).argmax(axis=1)
    mean = reference.mean(axis=0)
    one, other = reference - mean, found - mean
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (one * other).sum(axis=1)[norms > 0] / norms[norms > 0]
    return Parity(
        images=len(reference),
        top1_agreement=float(100 * same.mean()),
        centred_cosine=float(cosines.mean()) if len(cosines) else 1.0,
        max_difference=float(np.abs(reference - found).max()),
    )


def accuracy(embeddings: FloatArray, class_features: FloatArray, labels: NDArray[np.int64]) -> float:
    """Percent of images whose nearest class is the true one."""
    return float(100 * ((embeddings @ class_features.T).argmax(axis=1) == labels).mean())


@torch.no_grad()
def torch_embeddings(vision: nn.Module, pixels: FloatArray) -> FloatArray:
    """Embeddings (n, dim) of a tower in evaluation mode."""
    batches = torch.split(torch.from_numpy(pixels), _BATCH)
    return np.concatenate([vision(batch).float().numpy() for batch in batches])


def onnx_embeddings(model: bytes, pixels: FloatArray) -> FloatArray:
    """Embeddings (n, dim) of an ONNX model, image by image as on a device: int8 scales a whole batch at once.

    Raises:
        UserError: onnxruntime cannot run the model on this machine.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(["embedding"], {"pixels": image[None]})[0] for image in pixels])
    except Exception as error:  # onnxruntime has no common error class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} cannot run the {MODEL} of this export: {reason} Export in "
            "another number format (--quantize), or with another onnxruntime."
        ) from error
