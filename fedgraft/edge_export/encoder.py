"""The encoder of a bundle, traced from a ticket or taken from an existing bundle, with its entries in the manifest."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from pydantic import ValidationError

from fedgraft.backbones import Backbone
from fedgraft.backbones.prunable import PrunableTower
from fedgraft.core.errors import UserError
from fedgraft.device.bundle import Bundle
from fedgraft.device.manifest import MODEL
from fedgraft.edge_export.bundle_manifest import BundleManifest, ModelRecord, ParityRecord, PortRecord, TicketRecord
from fedgraft.edge_export.dense_tower import ExportedTower
from fedgraft.edge_export.merged_tower import ReducedTower
from fedgraft.edge_export.number_formats import NumberFormat
from fedgraft.edge_export.onnx_model import OPSET, export_onnx
from fedgraft.edge_export.parity import FloatArray

_MINIMUM_RUNTIME = "1.22"


@dataclass(frozen=True)
class Encoder:
    """The content of model.onnx with what the manifest records of it."""

    content: bytes
    model: ModelRecord
    ticket: TicketRecord

    @property
    def digest(self) -> str:
        """SHA-256 of the model, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


def traced_encoder(
    tower: ExportedTower,
    size: tuple[int, int],
    number_format: NumberFormat,
    pixels: FloatArray | None = None,
    opset: int = OPSET,
) -> Encoder:
    """Trace an image tower.

    Args:
        size: (height, width) of its images in pixels.
        pixels: of images for a format that measures ranges; see `NumberFormat.reduce`.
        opset: the version of ONNX's operators.

    Raises:
        UserError: it does not fit into one file.
    """
    reduced = tower if isinstance(tower, ReducedTower) else None
    whole = tower.vision if reduced is None else reduced.vision.tower
    prunable = whole if isinstance(whole, PrunableTower) else None
    metadata = {
        "fedgraft.backbone": tower.spec.source_fingerprint,
        "fedgraft.ticket": tower.fingerprint,
        "fedgraft.input": "pixels, RGB, as preprocessor_config.json prepares them",
        "fedgraft.output": "embedding, of unit norm",
    }
    content = number_format.reduce(export_onnx(tower.vision, size, metadata, opset), pixels)
    record = TicketRecord(
        fingerprint=tower.fingerprint,
        parameters=tower.parameters,
        nonzero=tower.nonzero,
        spec=asdict(tower.spec),
        heads=None if prunable is None else prunable.counts("heads"),
        keep_patches="" if reduced is None else reduced.steps,
        units=None if prunable is None else prunable.counts("units"),
    )
    return Encoder(content, _model_record(onnx.load_from_string(content), number_format), record)


def bundled_encoder(bundle: Bundle, backbone: Backbone) -> tuple[Encoder, ParityRecord]:
    """The encoder of a bundle, and how closely it was measured to match its torch tower.

    Raises:
        UserError: the bundle has none, or one of another backbone.
    """
    try:
        manifest = BundleManifest.model_validate(bundle.manifest.content)
    except ValidationError as error:
        raise UserError(f"The manifest of the bundle {bundle.path} is invalid: {error.errors()[0]['msg']}.") from error
    if manifest.kind != "bundle" or manifest.backbone.fingerprint != backbone.fingerprint:
        raise UserError(
            f"A class bank of this run does not fit the bundle {bundle.path}, which has no encoder of the run's "
            f"backbone {backbone.name!r}."
        )
    return Encoder(bundle.read(MODEL), manifest.model, manifest.ticket), manifest.parity


def _model_record(model: onnx.ModelProto, number_format: NumberFormat) -> ModelRecord:
    return ModelRecord(
        quantization=number_format.name,
        opset=next(entry.version for entry in model.opset_import if not entry.domain),
        ir_version=model.ir_version,
        domains=sorted(entry.domain for entry in model.opset_import if entry.domain),
        input=_port(model.graph.input[0]),
        output=_port(model.graph.output[0]),
        minimum_onnxruntime=_MINIMUM_RUNTIME,
    )


def _port(value: onnx.ValueInfoProto) -> PortRecord:
    sides: Sequence[Any] = value.type.tensor_type.shape.dim
    return PortRecord(name=value.name, dtype="float32", shape=[side.dim_param or side.dim_value for side in sides])
