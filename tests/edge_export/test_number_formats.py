"""Each number format keeps what it promises on every processor, and the gate notices a model that is broken."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from fedgraft.backbones import Backbone
from fedgraft.core.errors import UserError
from fedgraft.data.examples import Examples
from fedgraft.edge_export.bundle_manifest import ParityRecord, SaturationRecord
from fedgraft.edge_export.measure import _saturation, failures
from fedgraft.edge_export.number_formats import NUMBER_FORMATS, NumberFormat, find_format
from fedgraft.edge_export.parity import FloatArray, Parity, compare, onnx_embeddings, torch_embeddings
from fedgraft.edge_export.saturation import saturating_embeddings, saturating_pairs
from fedgraft.edge_export.trained_run import TrainedRun, class_features
from tests.edge_export.conftest import Traced

Reduced = Callable[[str, str], bytes]
PATTERNS = ("dense", "structured", "rows")
EIGHT_BITS = ("int8", "int8-static")
SOUND = 0.95
"""The least centred cosine of a sound 8-bit model; weights of four bits have 0.71 in `rows`."""


@pytest.fixture(scope="module")
def pixels(mini: Backbone, digits: Examples) -> FloatArray:
    return mini.preprocess([digits.load(index) for index in range(0, 1700, 17)]).numpy()


@pytest.fixture(scope="module")
def bank(site_1: TrainedRun) -> FloatArray:
    return class_features(site_1.adapter()).numpy()


@pytest.fixture(scope="module")
def ranges(mini: Backbone, digits: Examples) -> FloatArray:
    """Of other images than `pixels`."""
    return mini.preprocess([digits.load(index) for index in range(5, 1700, 53)]).numpy()


@pytest.fixture(scope="module")
def reduced(traced: Traced, ranges: FloatArray) -> Callable[[str, str], bytes]:
    """The model of a pattern in a format, made once."""
    return cache(lambda pattern, name: find_format(name).reduce(traced(pattern)[1], ranges))


def _parity(pattern: str, model: bytes, traced: Traced, pixels: FloatArray, bank: FloatArray) -> Parity:
    return compare(torch_embeddings(traced(pattern)[0].vision, pixels), onnx_embeddings(model, pixels), bank)


def _refused(found: Parity, known: NumberFormat) -> list[str]:
    required = {"required_agreement": known.required_agreement, "required_cosine": known.required_cosine}
    return failures(ParityRecord(**required, **vars(found)), None)


def _all_eight_bits(model: onnx.ModelProto, pixels: FloatArray) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "full.onnx"
        quantize_dynamic(model, target, per_channel=True, weight_type=QuantType.QInt8)
        return onnx.load(target)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("name", "cosine"), [("none", 0.9999), ("fp16", 0.99)])
def test_floating_point_passes_its_gate_for_every_pattern(
    name: str, cosine: float, pattern: str, traced: Traced, pixels: FloatArray, bank: FloatArray, reduced: Reduced
) -> None:
    model = reduced(pattern, name)
    found = _parity(pattern, model, traced, pixels, bank)
    assert not _refused(found, find_format(name))
    assert found.centred_cosine >= cosine
    assert saturating_pairs(onnx.load_from_string(model)) is None


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_eight_bits_pass_their_gate_for_every_pattern_on_every_processor(
    name: str, pattern: str, traced: Traced, pixels: FloatArray, bank: FloatArray, reduced: Reduced
) -> None:
    model = reduced(pattern, name)
    assert saturating_pairs(onnx.load_from_string(model)) == 0
    found = _parity(pattern, model, traced, pixels, bank)
    assert not _refused(found, find_format(name))
    assert found.top1_agreement >= 97
    assert found.centred_cosine >= SOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_the_emulated_worst_processor_computes_what_this_one_does(
    name: str, pixels: FloatArray, reduced: Reduced
) -> None:
    """Float rounding may move single activations by one step of 255, which is all that is left between processors."""
    model = reduced("rows", name)
    here = onnx_embeddings(model, pixels[:8])
    worst = saturating_embeddings(onnx.load_from_string(model), pixels[:8])
    assert compare(here, worst, here).centred_cosine > 0.998


@pytest.mark.slow
def test_weights_of_eight_bits_saturate_and_the_record_says_how_far(
    traced: Traced, pixels: FloatArray, bank: FloatArray
) -> None:
    """What int8 was before: on a processor without VNNI another model than on one with it."""
    ticket, model = traced("rows")
    full = replace(find_format("int8"), convert=_all_eight_bits).reduce(model)
    reference = torch_embeddings(ticket.vision, pixels[:4])
    record = _saturation(full, pixels[:4], reference, bank)
    assert record is not None
    assert record.pairs > 1000
    assert record.images == 4
    assert record.centred_cosine is not None
    sound = find_format("int8").reduce(model)
    assert record.centred_cosine < compare(reference, onnx_embeddings(sound, pixels[:4]), bank).centred_cosine


def test_a_model_that_is_sound_here_and_saturates_elsewhere_is_refused() -> None:
    here = {"images": 9, "top1_agreement": 100.0, "centred_cosine": 0.99, "max_difference": 0.0}
    required = {"required_agreement": 97.0, "required_cosine": 0.95}
    for agreement, cosine, refused in ((98.0, 0.96, False), (95.0, 0.96, True), (98.0, 0.91, True)):
        worst = SaturationRecord(pairs=7, images=9, top1_agreement=agreement, centred_cosine=cosine)
        found = failures(ParityRecord(saturation=worst, **here, **required), None)
        assert bool(found) == refused
        assert all("without VNNI" in sentence and f"{cosine:.4f}" in sentence for sentence in found)


def test_a_low_centred_cosine_is_refused_even_where_the_classes_agree() -> None:
    found = ParityRecord(
        images=9, top1_agreement=100, required_agreement=97, centred_cosine=0.9, required_cosine=0.95, max_difference=1
    )
    assert failures(found, None) == [
        "The centred cosine of the model's embeddings to its torch tower's is 0.9000 on 9 images; 0.95 is required."
    ]


def test_static_quantization_without_images_is_a_mistake(traced: Traced) -> None:
    with pytest.raises(ValueError, match="needs images to measure ranges on"):
        find_format("int8-static").reduce(traced("dense")[1])


@pytest.mark.slow
def test_a_model_that_quantization_destroyed_is_refused(traced: Traced, pixels: FloatArray, bank: FloatArray) -> None:
    def two_bits(model: onnx.ModelProto, pixels: FloatArray) -> onnx.ModelProto:
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.ndim == 2:
                scale = np.abs(values).max(axis=0) + 1e-9
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.round(values / scale) * scale, tensor.name))
        return model

    broken = replace(find_format("int8"), convert=two_bits)
    found = _parity("rows", broken.reduce(traced("rows")[1]), traced, pixels, bank)
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
    with pytest.raises(UserError, match="Known: none, int8, int8-static, fp16"):
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
