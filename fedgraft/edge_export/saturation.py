"""What an 8-bit model computes on an x86 processor without VNNI, emulated in NumPy to the last integer.

There onnxruntime multiplies unsigned activations by signed weights with `vpmaddubsw`, which adds the products of rows
2i and 2i + 1 of the weights in 16 bits and saturates; every other kernel adds in 32 bits. Weights of seven bits cannot
saturate (2 * 255 * 64 < 2^15), and a model without a pair of weights that can is the same on every processor.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

FloatArray = NDArray[np.float32]
_LEAST, _MOST, _ACTIVATION = -(2**15), 2**15 - 1, 255


def saturating_product(activations: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """The product (..., M, N) of (..., M, K) and (K, N), pairs of products saturating at 16 bits.

    The exact product is corrected for those pairs alone whose weights allow an excess.
    """
    left, first, second = _paired(activations, weights)
    product = np.asarray(activations.astype(np.float64) @ weights.astype(np.float64))
    pairs, columns = np.nonzero(_can_saturate(first, second))
    for column in np.unique(columns):
        chosen = pairs[columns == column]
        sums = left[..., 2 * chosen] * first[chosen, column] + left[..., 2 * chosen + 1] * second[chosen, column]
        product[..., column] -= (sums - np.clip(sums, _LEAST, _MOST)).sum(axis=-1)
    return product.astype(np.int32)


def saturating_pairs(model: onnx.ModelProto) -> int | None:
    """How many pairs of weights can saturate, whatever the image; None for a model without 8-bit products."""
    graph = _with_integer_products(model).graph
    constants = _constants(graph)
    weights = [constants[node.input[1]] for node in graph.node if _is_mixed_product(node, constants)]
    if not weights:
        return None
    return sum(int(_can_saturate(*_rows_in_pairs(matrix)).sum()) for matrix in weights)


def saturating_embeddings(model: onnx.ModelProto, pixels: FloatArray) -> FloatArray:
    """Embeddings (n, dim) as such a processor computes them, image by image; slow, by the evaluator of onnx."""
    session = ReferenceEvaluator(
        _with_integer_products(model), new_ops=[MatMulInteger, QuantizeLinear, DequantizeLinear]
    )
    rows: list[Any] = [session.run(["embedding"], {"pixels": image[None]}) for image in pixels]
    return np.concatenate([np.asarray(row[0], np.float32) for row in rows])


class MatMulInteger(OpRun):
    """The operator of that name, saturating; the evaluator finds it by the name of the class."""

    op_domain = ""

    def _run(self, a: Any, b: Any, a_zero_point: Any = None, b_zero_point: Any = None) -> tuple[NDArray[np.int32]]:
        if b_zero_point is not None and np.any(b_zero_point):
            raise ValueError("weights with a zero point are not emulated")
        mixed = a.dtype == np.uint8 and b.dtype == np.int8
        product = saturating_product(a, b) if mixed else a.astype(np.int32) @ b.astype(np.int32)
        if a_zero_point is not None:
            product = product - np.int32(a_zero_point) * b.astype(np.int32).sum(axis=0, dtype=np.int32)
        return (product.astype(np.int32),)


class QuantizeLinear(OpRun):
    """The operator of that name for one scale; the evaluator knows it from operator set 19 on only."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, zero_point: Any, **_: Any) -> tuple[NDArray[Any]]:
        limits = np.iinfo(zero_point.dtype)
        steps = np.rint(x / scale) + zero_point.astype(np.float32)
        return (np.clip(steps, limits.min, limits.max).astype(zero_point.dtype),)


class DequantizeLinear(OpRun):
    """The operator of that name, for one scale or one of each slice along an axis."""

    op_domain = ""

    def _run(
        self, x: Any, scale: Any, zero_point: Any = None, axis: int | None = None, **_: Any
    ) -> tuple[NDArray[np.float32]]:
        shape = [1] * x.ndim
        if scale.size > 1:
            shape[1 if axis is None else axis] = -1
        shift = 0 if zero_point is None else zero_point.astype(np.float32).reshape(shape)
        return (((x.astype(np.float32) - shift) * scale.reshape(shape)).astype(np.float32),)


def _paired(
    activations: NDArray[np.uint8], weights: NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Activations with an even number of columns, and the first and second weight of each pair."""
    left = activations.astype(np.int64)
    if left.shape[-1] % 2:
        left = np.concatenate([left, np.zeros_like(left[..., :1])], axis=-1)
    return left, *_rows_in_pairs(weights)


def _rows_in_pairs(weights: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = weights.astype(np.int64)
    if len(rows) % 2:
        rows = np.concatenate([rows, np.zeros_like(rows[:1])])
    return rows[0::2], rows[1::2]


def _can_saturate(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
    highest = _ACTIVATION * (np.maximum(first, 0) + np.maximum(second, 0))
    lowest = _ACTIVATION * (np.minimum(first, 0) + np.minimum(second, 0))
    return np.asarray((highest > _MOST) | (lowest < _LEAST))


# --- static quantization as integer products ------------------------------------------------------


def _with_integer_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each `MatMul` of two dequantized matrices as the `MatMulInteger` that onnxruntime makes of it."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    made = {output: node for node in graph.node for output in node.output}
    constants = _constants(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        sides = [made.get(name) for name in node.input[:2]]
        whole = all(side is not None and side.op_type == "DequantizeLinear" for side in sides)
        if node.op_type != "MatMul" or not whole or sides[1].input[0] not in constants:  # type: ignore[union-attr]
            nodes.append(node)
            continue
        nodes += _integer_product(node, *(side.input for side in sides if side is not None))
    del graph.node[:]
    graph.node.extend(nodes)
    return found


def _integer_product(node: onnx.NodeProto, left: Any, right: Any) -> list[onnx.NodeProto]:
    name = node.output[0]
    integers, floats, scale = (f"{name}_product_{part}" for part in ("integers", "floats", "scale"))
    return [
        helper.make_node("MatMulInteger", [left[0], right[0], *left[2:3]], [integers]),
        helper.make_node("Cast", [integers], [floats], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [left[1], right[1]], [scale]),
        helper.make_node("Mul", [floats, scale], [name]),
    ]


def _constants(graph: onnx.GraphProto) -> Mapping[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _is_mixed_product(node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> bool:
    """Whether a node multiplies by constant signed weights; activations are unsigned in every format."""
    weights = constants.get(node.input[1]) if node.op_type == "MatMulInteger" else None
    return weights is not None and weights.dtype == np.int8
