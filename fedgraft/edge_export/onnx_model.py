"""An image tower as one ONNX file: pixels (batch, 3, side, side) to `embedding` (batch, dim), and its reduced forms.

Attention is written out, which gives the smaller graph; dynamic int8 is signed, for each channel, and of the matrix
products with weights only: quantizing every operation destroys the embedding although its plain cosine hides it.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import nn

from fedgraft.core.errors import UserError, unknown

Quantization = Literal["none", "int8", "fp16"]
QUANTIZATIONS: tuple[Quantization, ...] = ("none", "int8", "fp16")
OPSET = 18
_LARGEST_BATCH = 4096
_PROTOBUF_LIMIT = 2**31
_RAW_OUTPUT = "unit_norm"


def checked_quantization(name: str) -> Quantization:
    """The number format of a name.

    Raises:
        UserError: there is no such one.
    """
    for known in QUANTIZATIONS:
        if known == name:
            return known
    raise unknown("quantization", name, QUANTIZATIONS)


def export_onnx(vision: nn.Module, side: int, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Trace a tower in evaluation mode into a checked model without paths of this machine in it.

    Args:
        side: of the images in pixels.
        metadata: is kept in the model's own properties.

    Raises:
        UserError: the weights do not fit into one file.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in vision.parameters())
    if size >= _PROTOBUF_LIMIT:
        raise UserError(
            f"The image tower has {size / 1e9:.1f} GB of weights, and one ONNX file holds less than 2.1 GB."
        )
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    with _silence():
        program = torch.onnx.export(
            vision,
            (torch.zeros(2, 3, side, side),),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={"pixels": {0: batch}},
            input_names=["pixels"],
            output_names=[_RAW_OUTPUT],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model.graph)
    _name_output(model.graph)
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model, full_check=True)
    return model


def reduced(model: onnx.ModelProto, quantization: Quantization) -> bytes:
    """The file of a model in one of the number formats; inputs and outputs stay float32."""
    if quantization == "int8":
        model = _dynamic_int8(model)
    elif quantization == "fp16":
        model = _half(model)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _dynamic_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _silence():
        target = Path(folder) / "int8.onnx"
        quantize_dynamic(
            _copied(model),
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
        return onnx.load(target)


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with _silence():
        converted = OnnxModel(convert_float_to_float16(_copied(model), keep_io_types=True))
        converted.topological_sort(is_deterministic=True)
    half: onnx.ModelProto = converted.model
    return half


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _strip(graph: onnx.GraphProto) -> None:
    """Remove what tells where and how the model was traced."""
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _name_output(graph: onnx.GraphProto) -> None:
    """Call the output `embedding`, a name that the exporter gives to a value inside."""
    names = {"embedding": "embedded_positions", _RAW_OUTPUT: "embedding"}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.value_info, *graph.output):
        value.name = names.get(value.name, value.name)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Exporter and quantizer print, warn and log what is of no use to a user."""
    logged = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logged)
