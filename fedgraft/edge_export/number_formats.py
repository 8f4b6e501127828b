"""The number formats of an exported model, each with its conversion and its gates.

Inputs and outputs stay float32. Dynamic int8 is signed, per channel, and applied only to matrix products with weights:
quantizing every operation can destroy the embedding, which its plain cosine does not show.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from fedgraft.core.errors import unknown
from fedgraft.edge_export.onnx_model import silence


@dataclass(frozen=True)
class NumberFormat:
    """A number format of the weights.

    Attributes:
        convert: from a float32 model, which it may change, to the reduced one.
        required_agreement: least percent of images whose top class must be that of the torch tower.
        min_golden_cosine: least cosine between the golden embedding as exported and as a device computes it.
    """

    name: str
    convert: Callable[[onnx.ModelProto], onnx.ModelProto]
    required_agreement: float
    min_golden_cosine: float

    def reduce(self, model: onnx.ModelProto) -> bytes:
        """The file of a float32 model in this format."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        with silence():
            reduced = self.convert(copy)
        onnx.checker.check_model(reduced)
        return bytes(reduced.SerializeToString(deterministic=True))


def _dynamic_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        products = ["MatMul", "Gemm"]
        quantize_dynamic(model, target, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=products)
        return onnx.load(target)


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = OnnxModel(convert_float_to_float16(model, keep_io_types=True))
    converted.topological_sort(is_deterministic=True)
    half: onnx.ModelProto = converted.model
    return half


NUMBER_FORMATS = {
    known.name: known
    for known in (
        NumberFormat("none", lambda model: model, required_agreement=99.0, min_golden_cosine=0.999),
        NumberFormat("int8", _dynamic_int8, required_agreement=97.0, min_golden_cosine=0.97),
        NumberFormat("fp16", _half, required_agreement=99.0, min_golden_cosine=0.99),
    )
}
"""By name; "none" is float32."""


def find_format(name: str) -> NumberFormat:
    """The number format of a name; raises UserError if there is no such format."""
    if name not in NUMBER_FORMATS:
        raise unknown("number format", name, NUMBER_FORMATS)
    return NUMBER_FORMATS[name]
