"""The emulation of 8-bit products without VNNI equals its definition and onnxruntime's own kernels."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fedgraft.device.kernels import integer_kernels, kernels_of
from fedgraft.edge_export.saturation import saturating_embeddings, saturating_pairs, saturating_product

QEMU = shutil.which("qemu-x86_64")


def _by_definition(activations: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """Products of rows 2i and 2i + 1 added in 16 bits with saturation, the sums in 32 bits."""
    left, right = activations.astype(np.int32), weights.astype(np.int32)
    total = np.zeros((len(left), right.shape[1]), np.int32)
    for row in range(0, len(right), 2):
        total += np.clip(left[:, row : row + 2] @ right[row : row + 2], -(2**15), 2**15 - 1)
    return total


def _random(seed: int, rows: int, inner: int, columns: int, most: int) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    rng = np.random.default_rng(seed)
    activations = rng.integers(0, 256, (rows, inner)).astype(np.uint8)
    return activations, rng.integers(-most, most + 1, (inner, columns)).astype(np.int8)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 21), st.integers(1, 9), st.sampled_from([60, 100, 127]))
@settings(max_examples=100, deadline=None)
def test_the_product_saturates_as_the_instruction_does(
    seed: int, rows: int, inner: int, columns: int, most: int
) -> None:
    activations, weights = _random(seed, rows, inner, columns, most)
    assert np.array_equal(saturating_product(activations, weights), _by_definition(activations, weights))
    stacked = np.stack([activations, activations[::-1]])
    assert np.array_equal(saturating_product(stacked, weights)[1], _by_definition(activations[::-1], weights))


def test_seven_bits_cannot_saturate_and_the_eighth_can() -> None:
    brightest = np.full((1, 2), 255, np.uint8)
    for weight, exact in ((64, True), (-64, True), (65, False), (-65, False), (127, False), (-128, False)):
        weights = np.full((2, 1), weight, np.int8)
        product = int(saturating_product(brightest, weights)[0, 0])
        assert (product == 2 * 255 * weight) == exact
        assert (saturating_pairs(_model(weights)) == 0) == exact


def test_weights_of_different_sign_in_a_pair_do_not_saturate() -> None:
    assert saturating_pairs(_model(np.asarray([[127], [-127]], np.int8))) == 0
    assert saturating_pairs(_model(np.asarray([[0], [127], [127], [0]], np.int8))) == 0
    assert saturating_pairs(_model(np.asarray([[127, 1], [127, 1]], np.int8))) == 1


@pytest.mark.parametrize("static", [False, True])
def test_a_graph_is_emulated_in_both_forms_that_quantizers_write(static: bool) -> None:
    _, weights = _random(1, 4, 8, 5, 127)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 8)).astype(np.float32)
    found = saturating_embeddings(_model(weights, static), pixels)
    expected = np.concatenate([_by_definition(image.astype(np.uint8), weights)[None] for image in pixels])
    assert np.array_equal(found.astype(np.int32), expected)
    assert saturating_pairs(_model(weights, static)) == saturating_pairs(_model(weights))


def test_a_model_without_eight_bit_products_has_nothing_to_saturate() -> None:
    node = helper.make_node("Identity", ["pixels"], ["embedding"])
    assert saturating_pairs(_of_nodes([node], {})) is None


def test_a_processor_says_whether_it_has_vnni() -> None:
    assert kernels_of("x86_64", "processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n") == "x86_64 with VNNI"
    assert kernels_of("x86_64", "flags\t\t: fpu avx_vnni\n") == "x86_64 with VNNI"
    assert kernels_of("x86_64", "flags\t\t: fpu avx2\n") == "x86_64 without VNNI"
    assert 0 < len(integer_kernels()) <= 80


KERNEL = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
options.add_session_config_entry("session.x64quantprecision", sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1] + "/m.onnx", options, providers=["CPUExecutionProvider"])
numpy.save(sys.argv[1] + "/found.npy", session.run(None, {"pixels": numpy.load(sys.argv[1] + "/a.npy")})[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="qemu-user emulates a processor without VNNI, and is not installed")
@pytest.mark.parametrize(("precise", "saturates"), [("0", True), ("1", False)])
def test_onnxruntime_itself_saturates_so_on_such_a_processor(precise: str, saturates: bool, tmp_path: Path) -> None:
    """Its kernels for AVX2 under qemu; with the option that a device sets for such a model they are exact."""
    activations, weights = _random(0, 5, 70, 40, 127)
    pixels = activations.astype(np.float32)
    onnx.save(_model(weights), tmp_path / "m.onnx")
    np.save(tmp_path / "a.npy", pixels)
    (tmp_path / "kernel.py").write_text(KERNEL)
    paths = f"PYTHONPATH={':'.join(path for path in sys.path if path)}"
    python = sys._base_executable  # type: ignore[attr-defined]
    command = [str(QEMU), "-cpu", "Haswell", "-E", paths, python, str(tmp_path / "kernel.py"), str(tmp_path), precise]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    exact = activations.astype(np.int32) @ weights.astype(np.int32)
    expected = _by_definition(activations, weights) if saturates else exact
    assert np.array_equal(np.load(tmp_path / "found.npy").astype(np.int32), expected)


def _model(weights: NDArray[np.int8], static: bool = False) -> onnx.ModelProto:
    """Pixels that are whole numbers from 0 to 255, times 8-bit weights; products in float as quantizers write them."""
    zero = {"zero": np.asarray(0, np.uint8), "weights": weights}
    if static:
        columns = weights.shape[1]
        scales = {"one": np.float32(1), "ones": np.ones(columns, np.float32), "zeros": np.zeros(columns, np.int8)}
        nodes = [
            helper.make_node("QuantizeLinear", ["pixels", "one", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["left"]),
            helper.make_node("DequantizeLinear", ["weights", "ones", "zeros"], ["right"], axis=1),
            helper.make_node("MatMul", ["left", "right"], ["embedding"]),
        ]
        return _of_nodes(nodes, {**zero, **scales})
    nodes = [
        helper.make_node("Cast", ["pixels"], ["q"], to=TensorProto.UINT8),
        helper.make_node("MatMulInteger", ["q", "weights", "zero"], ["product"]),
        helper.make_node("Cast", ["product"], ["embedding"], to=TensorProto.FLOAT),
    ]
    return _of_nodes(nodes, zero)


def _of_nodes(nodes: list[onnx.NodeProto], constants: dict[str, NDArray[np.generic] | np.generic]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
