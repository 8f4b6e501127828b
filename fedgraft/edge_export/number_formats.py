"""The number formats of an exported model, each with its conversion and its gates.

Inputs and outputs stay float32. 8-bit weights are signed, per channel, and only those of matrix products: quantizing
every operation can destroy the embedding, which its plain cosine does not show. They use seven of their bits, so that
no processor's products saturate; see `saturation`.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fedgraft.core.errors import unknown
from fedgraft.edge_export.onnx_model import silence

FloatArray = NDArray[np.float32]
_PRODUCTS = ["MatMul", "Gemm"]


@dataclass(frozen=True)
class NumberFormat:
    """A number format of the weights.

    Attributes:
        convert: from a float32 model, which it may change, and the pixels of some images to the reduced one.
        required_agreement: least percent of images whose top class must be that of the torch tower.
        required_cosine: least mean centred cosine to the torch tower's embeddings.
        min_golden_cosine: least cosine between the golden embedding as exported and as a device computes it.
        min_golden_centred: least mean centred cosine of the other golden images, likewise.
        calibration_images: how many images the ranges of its activations are measured on; none of them is measured on.
    """

    name: str
    convert: Callable[[onnx.ModelProto, FloatArray], onnx.ModelProto]
    required_agreement: float
    required_cosine: float
    min_golden_cosine: float
    min_golden_centred: float
    calibration_images: int = 0

    def reduce(self, model: onnx.ModelProto, pixels: FloatArray | None = None) -> bytes:
        """The file of a float32 model in this format.

        Args:
            pixels: (n, 3, height, width) of `calibration_images` or fewer; a format with none ignores them.
        """
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        if self.calibration_images and (pixels is None or not len(pixels)):
            raise ValueError(f"the number format {self.name} needs images to measure ranges on")
        with silence():
            reduced = self.convert(copy, np.empty((0, 3, 1, 1), np.float32) if pixels is None else pixels)
        onnx.checker.check_model(reduced)
        return bytes(reduced.SerializeToString(deterministic=True))


def _dynamic_int8(model: onnx.ModelProto, pixels: FloatArray) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            target,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=_PRODUCTS,
        )
        return onnx.load(target)


def _static_int8(model: onnx.ModelProto, pixels: FloatArray) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.onnx_model import ONNXModel

    plain = ONNXModel(model)
    plain.replace_gemm_with_matmul()
    plain.clean_initializers()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_static(
            plain.model,
            target,
            _Images(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_PRODUCTS,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": _PRODUCTS},
        )
        return onnx.load(target)


class _Images:
    """Pixels image by image, as onnxruntime's calibration reads them."""

    def __init__(self, pixels: FloatArray) -> None:
        self._left: Iterator[FloatArray] = iter(pixels)

    def get_next(self) -> dict[str, Any] | None:
        """The input of the next image, or None after the last."""
        image = next(self._left, None)
        return None if image is None else {"pixels": image[None]}


def _half(model: onnx.ModelProto, pixels: FloatArray) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = OnnxModel(convert_float_to_float16(model, keep_io_types=True))
    converted.topological_sort(is_deterministic=True)
    half: onnx.ModelProto = converted.model
    return half


NUMBER_FORMATS = {
    known.name: known
    for known in (
        NumberFormat("none", lambda model, pixels: model, 99.0, 0.99, 0.999, 0.99),
        NumberFormat("int8", _dynamic_int8, 97.0, 0.95, 0.97, 0.95),
        NumberFormat("int8-static", _static_int8, 97.0, 0.95, 0.97, 0.95, calibration_images=64),
        NumberFormat("fp16", _half, 99.0, 0.99, 0.99, 0.98),
    )
}
"""By name; "none" is float32."""


def find_format(name: str) -> NumberFormat:
    """The number format of a name; raises UserError if there is no such format."""
    if name not in NUMBER_FORMATS:
        raise unknown("number format", name, NUMBER_FORMATS)
    return NUMBER_FORMATS[name]
