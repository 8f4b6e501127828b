"""Measure an encoder and a class bank on real images, through the device's own preprocessing, and judge them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedgraft.methods.adapter import Adapter
from fedgraft.device.preprocessing import Preprocessing
from fedgraft.edge_export.calibration import Calibration, fit
from fedgraft.edge_export.trained_run import class_features
from fedgraft.edge_export.measurement_images import ExportImages, Gate, spread
from fedgraft.edge_export.bundle_manifest import CalibrationRecord, GeneralizationRecord, ParityRecord
from fedgraft.edge_export.onnx_model import Quantization
from fedgraft.edge_export.parity import FloatArray, accuracy, compare, onnx_embeddings, torch_embeddings
from fedgraft.core.errors import UserError

REQUIRED_AGREEMENT: dict[Quantization, float] = {"none": 99.0, "fp16": 99.0, "int8": 97.0}
"""Percent of images whose top class must be that of the torch ticket."""


@dataclass(frozen=True)
class Embedded:
    """The images of an export as the bundle's model sees them: pixels and embeddings, a row for each position."""

    images: ExportImages
    positions: NDArray[np.int64]
    pixels: FloatArray
    found: FloatArray

    @classmethod
    def of(cls, model: bytes, prepare: Preprocessing, images: ExportImages) -> "Embedded":
        """Pass every image of the sets once.

        Raises:
            UserError: there are none.
        """
        gate = images.gate.positions if images.gate else images.others
        positions = np.unique(np.concatenate([images.calibration, gate, images.others]))
        if not len(positions):
            raise UserError("There are no images to measure the bundle on; give --images FOLDER.")
        pixels = prepare.batch(images.load(positions))
        return cls(images, positions, pixels, onnx_embeddings(model, pixels))

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where some positions are."""
        return np.searchsorted(self.positions, positions)


def parity(seen: Embedded, vision: nn.Module, bank: FloatArray, quantization: Quantization, most: int) -> ParityRecord:
    """The model against its torch ticket on at most so many images."""
    rows = spread(np.arange(len(seen.positions)), most)
    measured = compare(torch_embeddings(vision, seen.pixels[rows]), seen.found[rows], bank)
    return ParityRecord(
        images=measured.images,
        top1_agreement=measured.top1_agreement,
        required_agreement=REQUIRED_AGREEMENT[quantization],
        centred_cosine=measured.centred_cosine,
        max_difference=measured.max_difference,
    )


def generalization(
    seen: Embedded, gate: Gate, known: Adapter, before: FloatArray, allowed_drop: float
) -> GeneralizationRecord:
    """Accuracy on a scope's test images with the bundle's model, and with the dense tower as the run left it.

    Args:
        known: the adapter of the bundle, for the run's own classes.
        before: the class bank of the gate's classes before anything was re-tuned.
    """
    rows = seen.rows(gate.positions)
    features = class_features(known, gate.class_names).numpy()
    truths = _positions_in(gate.class_names, seen.images.label_names(gate.positions))
    dense = torch_embeddings(known.vision_tower(), seen.pixels[rows])
    return GeneralizationRecord(
        scope=gate.scope,
        images=len(rows),
        dense=accuracy(dense, before, truths),
        bundle=accuracy(seen.found[rows], features, truths),
        allowed_drop=allowed_drop,
    )


def calibration(
    seen: Embedded, known: Adapter, labels: Sequence[str], bank: FloatArray, unknown_rate: float
) -> CalibrationRecord:
    """Fitted among the bundle's labels where images of them are there; else the temperature of the run's own classes.

    A threshold depends on which classes there are, so without images of them nothing is called unknown.
    """
    images, scale = seen.images, known.vocabulary.backbone.logit_scale
    truths = images.label_names(images.calibration)
    found = seen.found[seen.rows(images.calibration)]
    fitted = _fitted(found, truths, labels, scale * bank, unknown_rate)
    if fitted is None:
        features = class_features(known).numpy()
        other = _fitted(found, truths, known.vocabulary.class_names, scale * features, 0.0) or Calibration()
        fitted = Calibration(temperature=other.temperature, images=other.images)
    return CalibrationRecord(
        temperature=fitted.temperature,
        unknown_below=fitted.unknown_below,
        images=fitted.images,
        held_out=images.held_out,
        ece_before=fitted.ece_before,
        ece=fitted.ece,
        known_rejected=fitted.known_rejected,
    )


def failures(measured: ParityRecord, kept: GeneralizationRecord | None) -> list[str]:
    """A sentence for each gate that is not passed."""
    failed = []
    if measured.top1_agreement < measured.required_agreement:
        failed.append(
            f"On {measured.images} images the model gives the same class as its torch ticket for "
            f"{measured.top1_agreement:.2f} %, and {measured.required_agreement:g} % are needed "
            f"(centred cosine {measured.centred_cosine:.4f})."
        )
    if kept is not None and kept.dense - kept.bundle > kept.allowed_drop:
        failed.append(
            f"On {kept.images} test images of the scope {kept.scope!r} the accuracy falls from {kept.dense:.2f} % "
            f"(dense) to {kept.bundle:.2f} %, by more than --max-novel-drop {kept.allowed_drop:g}."
        )
    return failed


def _fitted(
    found: FloatArray, truths: Sequence[str], labels: Sequence[str], scaled: NDArray[np.floating], unknown_rate: float
) -> Calibration | None:
    chosen = [row for row, truth in enumerate(truths) if truth in labels]
    names = [truths[row] for row in chosen]
    if len(set(names)) < 2:
        return None
    return fit((found[chosen] @ scaled.T).astype(np.float64), _positions_in(labels, names), unknown_rate)


def _positions_in(names: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    order = {name: position for position, name in enumerate(names)}
    return np.asarray([order[name] for name in wanted], np.int64)
