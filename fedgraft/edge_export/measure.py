"""Measuring an encoder and a class bank on real images, through the device's own preprocessing, and judging them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from fedgraft.backbones import Backbone
from fedgraft.core.errors import UserError
from fedgraft.device.kernels import integer_kernels
from fedgraft.device.preprocessing import Preprocessing
from fedgraft.edge_export.bundle_manifest import (
    CalibrationRecord,
    GeneralizationRecord,
    ParityRecord,
    SaturationRecord,
    TargetRecord,
)
from fedgraft.edge_export.calibration import Calibration, fit
from fedgraft.edge_export.measurement_images import Gate, MeasurementImages, evenly
from fedgraft.edge_export.number_formats import NumberFormat
from fedgraft.edge_export.parity import FloatArray, accuracy, compare, onnx_embeddings, torch_embeddings
from fedgraft.edge_export.saturation import saturating_embeddings, saturating_pairs
from fedgraft.edge_export.targets.target import Contents, Target, Tower
from fedgraft.edge_export.trained_run import class_features, features_of
from fedgraft.methods.adapter import Adapter

_EMULATED = 32
"""Images at most: an emulated product takes a hundred times as long as a real one."""


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
    embedded: EmbeddedImages,
    vision: nn.Module,
    model: bytes,
    bank: FloatArray,
    number_format: NumberFormat,
    most: int,
) -> ParityRecord:
    """The model against its torch tower, on at most `most` images: held-out ones, unless there are none.

    What its 8-bit products may lose on a processor without VNNI is emulated on some of them.
    """
    rows, held_out = _rows_to_compare(embedded, most)
    reference = torch_embeddings(vision, embedded.pixels[rows])
    return ParityRecord(
        required_agreement=number_format.required_agreement,
        required_cosine=number_format.required_cosine,
        held_out=held_out,
        kernels=integer_kernels(),
        saturation=_saturation(model, embedded.pixels[rows], reference, bank),
        **asdict(compare(reference, embedded.embeddings[rows], bank)),
    )


def target_parity(
    embedded: EmbeddedImages,
    tower: Tower,
    target: Target,
    bank: FloatArray,
    number_format: NumberFormat,
    most: int,
) -> tuple[Contents, TargetRecord]:
    """The files of a target, and their parity to the torch tower on the same images in the target's own runtime."""
    rows, held_out = _rows_to_compare(embedded, most)
    pixels, files = embedded.pixels[rows], target.files_of(tower)
    found = compare(torch_embeddings(tower.vision, pixels), target.embed(files, pixels), bank)
    measured = ParityRecord(
        required_agreement=number_format.required_agreement,
        required_cosine=number_format.required_cosine,
        held_out=held_out,
        kernels=integer_kernels(),
        **asdict(found),
    )
    return files, TargetRecord(name=target.name, version=version(target.package), files=sorted(files), parity=measured)


def _rows_to_compare(embedded: EmbeddedImages, most: int) -> tuple[NDArray[np.int64], bool]:
    """Rows of images that had no part in training or quantization and True, or of any and False if there are none."""
    everything, images = np.arange(len(embedded.positions)), embedded.images
    fresh = everything[~np.isin(embedded.positions, np.concatenate([images.training, images.quantization]))]
    return evenly(fresh if len(fresh) else everything, most), bool(len(fresh))


def _saturation(model: bytes, pixels: FloatArray, reference: FloatArray, bank: FloatArray) -> SaturationRecord | None:
    loaded = onnx.load_from_string(model)
    pairs = saturating_pairs(loaded)
    if not pairs:
        return None if pairs is None else SaturationRecord(pairs=0, images=0, top1_agreement=None)
    rows = evenly(np.arange(len(pixels)), _EMULATED)
    found = compare(reference[rows], saturating_embeddings(loaded, pixels[rows]), bank)
    return SaturationRecord(
        pairs=pairs, images=found.images, top1_agreement=found.top1_agreement, centred_cosine=found.centred_cosine
    )


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


def failures(
    parity: ParityRecord, generalization: GeneralizationRecord | None, targets: Sequence[TargetRecord] = ()
) -> list[str]:
    """A sentence for each gate that was not passed."""
    failed = [f"For {target.name}: {sentence}" for target in targets for sentence in failures(target.parity, None)]
    if parity.top1_agreement < parity.required_agreement:
        failed.append(
            f"The model agrees with its torch tower on the class of {parity.top1_agreement:.2f} % of {parity.images} "
            f"images; {parity.required_agreement:g} % are required (centred cosine {parity.centred_cosine:.4f})."
        )
    elif parity.required_cosine is not None and parity.centred_cosine < parity.required_cosine:
        failed.append(
            f"The centred cosine of the model's embeddings to its torch tower's is {parity.centred_cosine:.4f} on "
            f"{parity.images} images; {parity.required_cosine:g} is required."
        )
    failed += _failures_by_saturation(parity)
    if generalization is not None and generalization.dense - generalization.bundle > generalization.allowed_drop:
        failed.append(
            f"On {generalization.images} test images of the scope {generalization.scope!r} the accuracy falls from "
            f"{generalization.dense:.2f} % (dense) to {generalization.bundle:.2f} %, by more than --max-novel-drop "
            f"{generalization.allowed_drop:g}."
        )
    return failed


def _failures_by_saturation(parity: ParityRecord) -> list[str]:
    worst = parity.saturation
    if worst is None or worst.top1_agreement is None or worst.centred_cosine is None:
        return []
    least = -1.0 if parity.required_cosine is None else parity.required_cosine
    if worst.top1_agreement >= parity.required_agreement and worst.centred_cosine >= least:
        return []
    return [
        f"On a processor without VNNI the model's 8-bit products saturate: emulated on {worst.images} images, it "
        f"agrees with its torch tower on {worst.top1_agreement:.2f} % with a centred cosine of "
        f"{worst.centred_cosine:.4f}; {parity.required_agreement:g} % and {least:g} are required."
    ]


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
