"""Each number format keeps what it promises, or its gate refuses it; and the gate notices a model that is broken.

Figures of int8 depend on the processor: without VNNI, products of onnxruntime saturate, and the worst pattern has a
centred cosine of 0.91 to its ticket instead of 0.99. What is asserted holds on both kinds of processor.
"""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from fedgraft.backbones import Backbone
from fedgraft.core.errors import UserError
from fedgraft.data.examples import Examples
from fedgraft.edge_export.bundle_manifest import ParityRecord
from fedgraft.edge_export.measure import failures
from fedgraft.edge_export.number_formats import NUMBER_FORMATS, NumberFormat, find_format
from fedgraft.edge_export.parity import FloatArray, Parity, compare, onnx_embeddings, torch_embeddings
from fedgraft.edge_export.trained_run import TrainedRun, class_features
from tests.edge_export.conftest import Traced

PATTERNS = ("dense", "structured", "rows")
SOUND = 0.85
"""The least centred cosine of a sound int8 model on any processor; weights of four bits have 0.71 in `rows`."""


@pytest.fixture(scope="module")
def pixels(mini: Backbone, digits: Examples) -> FloatArray:
    return mini.preprocess([digits.load(index) for index in range(0, 1700, 17)]).numpy()


@pytest.fixture(scope="module")
def bank(site_1: TrainedRun) -> FloatArray:
    return class_features(site_1.adapter()).numpy()


def _parity(pattern: str, known: NumberFormat, traced: Traced, pixels: FloatArray, bank: FloatArray) -> Parity:
    ticket, model = traced(pattern)
    return compare(torch_embeddings(ticket.vision, pixels), onnx_embeddings(known.reduce(model), pixels), bank)


def _refused(found: Parity, known: NumberFormat) -> list[str]:
    return failures(ParityRecord(required_agreement=known.required_agreement, **vars(found)), None)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("name", "cosine"), [("none", 0.9999), ("fp16", 0.99)])
def test_floating_point_passes_its_gate_for_every_pattern(
    name: str, cosine: float, pattern: str, traced: Traced, pixels: FloatArray, bank: FloatArray
) -> None:
    found = _parity(pattern, find_format(name), traced, pixels, bank)
    assert not _refused(found, find_format(name))
    assert found.centred_cosine >= cosine


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_int8_is_sound_and_passes_its_gate_or_is_refused_with_the_figures(
    pattern: str, traced: Traced, pixels: FloatArray, bank: FloatArray
) -> None:
    int8 = find_format("int8")
    found = _parity(pattern, int8, traced, pixels, bank)
    assert found.centred_cosine >= SOUND
    refused = _refused(found, int8)
    assert bool(refused) == (found.top1_agreement < int8.required_agreement)
    assert all(f"{found.top1_agreement:.2f} %" in sentence for sentence in refused)


@pytest.mark.slow
def test_a_model_that_quantization_destroyed_is_refused(traced: Traced, pixels: FloatArray, bank: FloatArray) -> None:
    def two_bits(model: onnx.ModelProto) -> onnx.ModelProto:
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.ndim == 2:
                scale = np.abs(values).max(axis=0) + 1e-9
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.round(values / scale) * scale, tensor.name))
        return model

    broken = replace(find_format("int8"), convert=two_bits)
    found = _parity("rows", broken, traced, pixels, bank)
    assert found.centred_cosine < SOUND
    assert _refused(found, broken)


@pytest.mark.slow
def test_a_model_is_smaller_where_its_matrices_or_its_numbers_are(traced: Traced) -> None:
    dense, half, zeros = (traced(pattern)[1] for pattern in ("dense", "structured", "rows"))
    plain = NUMBER_FORMATS["none"]
    size = len(plain.reduce(dense))
    assert len(plain.reduce(half)) < 0.56 * size
    assert len(plain.reduce(zeros)) == pytest.approx(size, rel=0.001)
    assert len(find_format("int8").reduce(dense)) < 0.35 * size
    assert len(find_format("fp16").reduce(dense)) < 0.56 * size


def test_a_format_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(UserError, match="Known: none, int8, fp16"):
        find_format("int4")


def test_a_model_that_onnxruntime_cannot_run_is_one_line() -> None:
    node = onnx.helper.make_node("ConvInteger", ["pixels", "pixels"], ["embedding"])
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("pixels", "embedding")]
    graph = onnx.helper.make_graph([node], "wrong", ports[:1], ports[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    with pytest.raises(
        UserError, match=r"cannot run the model.onnx of this export: .* Export in another number format"
    ) as error:
        onnx_embeddings(model.SerializeToString(), np.zeros((1, 3, 8, 8), np.float32))
    assert "\n" not in str(error.value)
