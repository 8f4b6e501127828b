"""Measuring an encoder and a class bank on real images, through the device's own preprocessing, and judging them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedgraft.backbones import Backbone
from fedgraft.core.errors import UserError
from fedgraft.device.preprocessing import Preprocessing
from fedgraft.edge_export.bundle_manifest import CalibrationRecord, GeneralizationRecord, ParityRecord
from fedgraft.edge_export.calibration import Calibration, fit
from fedgraft.edge_export.measurement_images import Gate, MeasurementImages, evenly
from fedgraft.edge_export.number_formats import NumberFormat
from fedgraft.edge_export.parity import FloatArray, accuracy, compare, onnx_embeddings, torch_embeddings
from fedgraft.edge_export.trained_run import class_features, features_of
from fedgraft.methods.adapter import Adapter


def device_preprocessing(backbone: Backbone) -> Preprocessing:
    """The backbone's preprocessing as a device does it; raises UserError if a device cannot do it."""
    try:
        return Preprocessing.from_config(backbone.preprocessor_config())
    except ValueError as error:
        raise UserError(f"The preprocessing of the backbone {backbone.name!r} cannot be exported: {error}.") from error


@dataclass(frozen=True)
class EmbeddedImages:
    """The images of an export with the exported model's embeddings: one row of pixels and embedding per position."""

    images: MeasurementImages
    positions: NDArray[np.int64]
    pixels: FloatArray
    embeddings: FloatArray

    @classmethod
    def of(cls, model: bytes, preprocessing: Preprocessing, images: MeasurementImages) -> "EmbeddedImages":
        """Embed every image once; raises UserError if there are none."""
        gate = images.gate.positions if images.gate else images.others
        positions = np.unique(np.concatenate([images.calibration, gate, images.others]))
        if not len(positions):
            raise UserError("There are no images to measure the bundle on; give --images FOLDER.")
        pixels = preprocessing.batch(images.load(positions))
        return cls(images, positions, pixels, onnx_embeddings(model, pixels))

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of some positions."""
        return np.searchsorted(self.positions, positions)


def parity(
    embedded: EmbeddedImages, vision: nn.Module, bank: FloatArray, number_format: NumberFormat, most: int
) -> ParityRecord:
    """The model against its torch ticket, on at most `most` images."""
    rows = evenly(np.arange(len(embedded.positions)), most)
    measured = compare(torch_embeddings(vision, embedded.pixels[rows]), embedded.embeddings[rows], bank)
    return ParityRecord(required_agreement=number_format.required_agreement, **asdict(measured))


def generalization(
    embedded: EmbeddedImages, gate: Gate, dense_bank: FloatArray, run_adapter: Adapter, allowed_drop: float
) -> GeneralizationRecord:
    """Accuracy on the gate's test images, of the exported model and of the dense tower as the run left it.

    Args:
        dense_bank: the class bank of the gate's classes before any re-tuning.
        run_adapter: the exported adapter for the run's own classes.
    """
    rows = embedded.rows(gate.positions)
    features = features_of(run_adapter, gate.classes).numpy()
    truths = np.searchsorted(gate.classes, embedded.images.examples.labels[gate.positions])
    dense = torch_embeddings(run_adapter.image_encoder(), embedded.pixels[rows])
    return GeneralizationRecord(
        scope=gate.scope,
        images=len(rows),
        dense=accuracy(dense, dense_bank, truths),
        bundle=accuracy(embedded.embeddings[rows], features, truths),
        allowed_drop=allowed_drop,
    )


def calibration(
    embedded: EmbeddedImages, run_adapter: Adapter, labels: Sequence[str], bank: FloatArray, unknown_rate: float
) -> CalibrationRecord:
    """Fitted for the bundle's labels if there are images of them, otherwise the temperature of the run's own classes.

    A threshold depends on the classes: without images of them, nothing is called unknown.
    """
    images, scale = embedded.images, run_adapter.vocabulary.backbone.logit_scale
    truths = images.label_names(images.calibration)
    embeddings = embedded.embeddings[embedded.rows(images.calibration)]
    fitted = _fitted(embeddings, truths, labels, scale * bank, unknown_rate)
    if fitted is None:
        features = class_features(run_adapter).numpy()
        other = _fitted(embeddings, truths, run_adapter.vocabulary.class_names, scale * features, 0.0) or Calibration()
        fitted = Calibration(temperature=other.temperature, images=other.images)
    return CalibrationRecord(held_out=images.held_out, **asdict(fitted))


def failures(parity: ParityRecord, generalization: GeneralizationRecord | None) -> list[str]:
    """A sentence for each gate that was not passed."""
    failed = []
    if parity.top1_agreement < parity.required_agreement:
        failed.append(
            f"The model agrees with its torch ticket on the class of {parity.top1_agreement:.2f} % of {parity.images} "
            f"images; {parity.required_agreement:g} % are required (centred cosine {parity.centred_cosine:.4f})."
        )
    if generalization is not None and generalization.dense - generalization.bundle > generalization.allowed_drop:
        failed.append(
            f"On {generalization.images} test images of the scope {generalization.scope!r} the accuracy falls from "
            f"{generalization.dense:.2f} % (dense) to {generalization.bundle:.2f} %, by more than --max-novel-drop "
            f"{generalization.allowed_drop:g}."
        )
    return failed


def _fitted(
    embeddings: FloatArray,
    truths: Sequence[str],
    labels: Sequence[str],
    scaled: NDArray[np.floating],
    unknown_rate: float,
) -> Calibration | None:
    chosen = [row for row, truth in enumerate(truths) if truth in labels]
    names = [truths[row] for row in chosen]
    if len(set(names)) < 2:
        return None
    return fit((embeddings[chosen] @ scaled.T).astype(np.float64), _positions_in(labels, names), unknown_rate)


def _positions_in(names: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    order = {name: position for position, name in enumerate(names)}
    return np.asarray([order[name] for name in wanted], np.int64)
