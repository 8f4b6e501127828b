"""The encoder of a bundle: traced now from a ticket, or taken from a bundle that is there, with what is said of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from fedgraft.backbones import Backbone
from fedgraft.device.bundle import Bundle
from fedgraft.device.manifest import MODEL
from fedgraft.edge_export.bundle_manifest import BundleManifest, ModelRecord, ParityRecord, PortRecord, TicketRecord
from fedgraft.edge_export.onnx_model import Quantization, export_onnx, reduced
from fedgraft.edge_export.tickets.ticket import Ticket
from fedgraft.core.errors import UserError

_MINIMUM_RUNTIME = "1.22"


@dataclass(frozen=True)
class Encoder:
    """A model with what the manifest says of it.

    Attributes:
        ticket: what it was traced from, or else
        parity: what was measured when it was.
    """

    model: bytes
    model_record: ModelRecord
    ticket_record: TicketRecord
    ticket: Ticket | None = None
    parity: ParityRecord | None = None


def traced_encoder(ticket: Ticket, quantization: Quantization) -> Encoder:
    """Trace a ticket.

    Raises:
        UserError: it does not fit into one file.
    """
    shape = ticket.vision.shape
    metadata = {
        "fedgraft.backbone": ticket.spec.source_fingerprint,
        "fedgraft.ticket": ticket.fingerprint,
        "fedgraft.input": "pixels, RGB, as preprocessor_config.json prepares them",
        "fedgraft.output": "embedding, of unit norm",
    }
    model = reduced(export_onnx(ticket.vision, shape.image_size, metadata), quantization)
    record = TicketRecord(
        fingerprint=ticket.fingerprint,
        parameters=ticket.parameters,
        nonzero=ticket.nonzero,
        spec=asdict(ticket.spec),
        heads=list(shape.heads),
        units=list(shape.units),
    )
    return Encoder(model, _model_record(onnx.load_from_string(model), quantization), record, ticket=ticket)


def encoder_of(bundle: Bundle, backbone: Backbone) -> Encoder:
    """The encoder of a bundle, for another class bank.

    Raises:
        UserError: it has none, or one of another backbone.
    """
    content = bundle.manifest.content
    if bundle.manifest.kind != "bundle" or content.get("backbone", {}).get("fingerprint") != backbone.fingerprint:
        raise UserError(
            f"The bundle {bundle.path} has no encoder of the run's backbone {backbone.name!r}, so a class bank of this "
            "run does not fit it."
        )
    manifest = BundleManifest.model_validate(content)
    return Encoder(bundle.read(MODEL), manifest.model, manifest.ticket, parity=manifest.parity)


def _model_record(model: onnx.ModelProto, quantization: Quantization) -> ModelRecord:
    ports = [_port(value) for value in (model.graph.input[0], model.graph.output[0])]
    return ModelRecord(
        quantization=quantization,
        opset=next(entry.version for entry in model.opset_import if not entry.domain),
        ir_version=model.ir_version,
        domains=sorted(entry.domain for entry in model.opset_import if entry.domain),
        input=ports[0],
        output=ports[1],
        minimum_onnxruntime=_MINIMUM_RUNTIME,
    )


def _port(value: onnx.ValueInfoProto) -> PortRecord:
    sides: Sequence[Any] = value.type.tensor_type.shape.dim
    return PortRecord(name=value.name, dtype="float32", shape=[side.dim_param or side.dim_value for side in sides])
