"""What a device believed and no longer does: files beside the model, golden samples of any shape, older versions."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image
from safetensors.numpy import save

from fedgraft.device import BundleError, Predictor, open_bundle
from fedgraft.device.class_bank import check_labels
from fedgraft.device.manifest import canonical
from fedgraft.device.onnx_file import check_self_contained
from fedgraft.fleet.simulated_bundle import (
    bank_contents,
    bundle_contents,
    encoder,
    signed,
    write_files,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
CONTENTS = bundle_contents()


def _write(folder: Path, version: int = 1, changes: Mapping[str, Any] | None = None, **replaced: bytes) -> Path:
    contents = CONTENTS | {name.replace("__", "."): content for name, content in replaced.items()}
    return write_files(folder, signed(contents, version, KEY, changes=changes))


def _digest_of_encoder() -> str:
    import hashlib

    return hashlib.sha256(CONTENTS["model.onnx"]).hexdigest()


# --- files beside the model -----------------------------------------------------------------------


def _outside(name: str = "turn") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3, 3], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    return tensor


def _in_initializer(model: onnx.ModelProto) -> None:
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "turn"]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, _outside()])


def _in_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=_outside()))


def _in_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "inner", [], [], [_outside()])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))


def _in_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=_outside())
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("mine", "F", [], ["c"], [node], opsets))


def _in_sparse(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(_outside("values"))


def _only_the_entry(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="weights.bin")


PLACES = [_in_initializer, _in_constant, _in_branch, _in_function, _in_sparse, _only_the_entry]


@pytest.mark.parametrize("place", PLACES)
def test_a_signed_model_cannot_read_an_unsigned_file(
    place: Callable[[onnx.ModelProto], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_from_string(encoder())
    place(model)
    content = model.SerializeToString()
    with pytest.raises(ValueError, match="in another file"):
        check_self_contained(content)
    folder = _write(tmp_path / "b", model__onnx=content)
    np.eye(3, dtype=np.float32).tofile(tmp_path / "weights.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"model\.onnx in the bundle .* is refused: a tensor has its values"):
        Predictor(folder)


def test_an_export_of_such_a_model_writes_nothing(tmp_path: Path) -> None:
    from fedgraft.core.errors import UserError
    from fedgraft.edge_export.bundle_writer import write_bundle

    model = onnx.load_from_string(encoder())
    _in_initializer(model)
    with pytest.raises(UserError, match="No bundle was written"):
        write_bundle(tmp_path / "b", None, {"model.onnx": model.SerializeToString()}, KEY)  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()


def test_another_location_than_the_two_that_exist_is_refused_as_well() -> None:
    """A parser cuts a number of ten bytes to 32 bits: 2^32 + 1 would be read as 1."""
    tensor = b"\x70" + b"\x81\x80\x80\x80\x10"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    model = b"\x08\x09" + b"\x3a" + bytes([len(graph)]) + graph
    parsed = onnx.ModelProto.FromString(model)
    assert parsed.graph.initializer[0].data_location == TensorProto.EXTERNAL
    with pytest.raises(ValueError, match="in another file"):
        check_self_contained(model)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"abcdORTM" + bytes(64), b"{}", b"\x08"])
def test_what_is_not_an_onnx_model(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"not an ONNX model|incomplete|format of onnxruntime"):
        check_self_contained(content)


def test_messages_nested_without_end_are_refused() -> None:
    inner = b""
    for _ in range(150):
        attribute = b"\x32" + _length(inner) + inner
        node = b"\x2a" + _length(attribute) + attribute
        inner = b"\x0a" + _length(node) + node
    with pytest.raises(ValueError, match="nested"):
        check_self_contained(b"\x08\x09\x3a" + _length(inner) + inner)


def _length(content: bytes) -> bytes:
    number, out = len(content), b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_judged_and_nothing_else_happens(content: bytes) -> None:
    for each in (content, encoder()[: len(content)] + content):
        try:
            check_self_contained(each)
        except ValueError:
            continue


def test_a_model_of_an_exporter_is_accepted() -> None:
    check_self_contained(encoder())


# --- the golden sample and other numbers ----------------------------------------------------------


@pytest.mark.parametrize(
    "golden",
    [
        {"image": np.zeros((4, 4), np.uint8), "embedding": np.asarray([1, 0, 0], np.float32)},
        {"image": np.zeros((0, 4, 3), np.uint8), "embedding": np.asarray([1, 0, 0], np.float32)},
        {"image": np.zeros((4, 4, 3), np.float32), "embedding": np.asarray([1, 0, 0], np.float32)},
        {"image": np.zeros((4, 4, 3), np.uint8), "embedding": np.asarray([1, 0], np.float32)},
        {"image": np.zeros((4, 4, 3), np.uint8), "embedding": np.asarray([[1, 0, 0]], np.float32)},
        {"image": np.zeros((4, 4, 3), np.uint8), "embedding": np.asarray([900, 900, 900], np.float32)},
        {"image": np.zeros((4, 4, 3), np.uint8), "embedding": np.asarray([np.nan, 0, 0], np.float32)},
        {"image": np.zeros((4, 4, 3), np.uint8)},
    ],
)
def test_a_golden_sample_of_a_bad_shape_or_norm_is_one_line(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = _write(tmp_path / "b", golden__safetensors=save(golden))
    with pytest.raises(BundleError, match=r"golden sample of the bundle .* cannot be used") as raised:
        Predictor(folder).self_test()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("threshold", [0, 0.5, -1, 1.5, True, None, "0.99", float("inf")])
def test_a_bundle_cannot_make_the_self_test_void(threshold: object, tmp_path: Path) -> None:
    changes = {"golden": {"min_cosine": threshold}}
    if threshold == float("inf"):
        with pytest.raises(ValueError, match="JSON"):
            canonical(changes)
        return
    with pytest.raises(BundleError, match=r"min_cosine is .*, not a number between 0\.9 and 1"):
        open_bundle(_write(tmp_path / "b", changes=changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2**80}, "version is"),
        ({"version": True}, "version is"),
        ({"dim": 0}, "dim is"),
        ({"dim": 10**9}, "dim is"),
        ({"calibration": {"temperature": 1e-9, "unknown_below": 0.4}}, "temperature is"),
        ({"calibration": {"temperature": 1, "unknown_below": 2}}, "unknown_below is"),
        ({"kind": ["bundle"]}, "kind is"),
        ({"kind": "x" * 10_000}, "kind is"),
    ],
)
def test_every_number_that_a_device_uses_has_bounds(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=said) as raised:
        open_bundle(_write(tmp_path / "b", changes=changes))
    assert len(str(raised.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("scale", [0.0, -5.0, np.inf, np.nan, 1e9])
def test_a_logit_scale_that_decides_nothing_is_refused(scale: float, tmp_path: Path) -> None:
    features = {"class_features": np.eye(3, dtype=np.float32), "logit_scale": np.float32(scale)}
    content = save({name: np.asarray(value) for name, value in features.items()})
    with pytest.raises(BundleError, match="logit_scale"):
        Predictor(_write(tmp_path / "b", classes__safetensors=content))


def test_a_label_of_two_megabytes_is_refused_in_a_short_sentence(tmp_path: Path) -> None:
    labels = ["red", "green", "b" * 2_000_000]
    with pytest.raises(ValueError, match="2,000,000 characters; the limit is 256") as raised:
        check_labels(labels)
    assert len(str(raised.value)) < 200
    with pytest.raises(BundleError, match="cannot be used: the label"):
        Predictor(_write(tmp_path / "b", labels__json=canonical({"labels": labels})))
    check_labels(["red", "g" * 256])


# --- versions -------------------------------------------------------------------------------------


def _bank(folder: Path, version: int, labels: tuple[str, ...]) -> Path:
    return write_files(folder, signed(bank_contents(labels), version, KEY, _digest_of_encoder()))


def test_a_fresh_start_takes_no_older_bundle(tmp_path: Path) -> None:
    new = _write(tmp_path / "b", 3)
    assert Predictor(new).predict(Image.new("RGB", (8, 8), (200, 0, 0))).label == "red"
    for path in new.iterdir():
        path.unlink()
    _write(new, 2)
    with pytest.raises(BundleError, match="version 2, older than version 3"):
        Predictor(new)
    _write(new, 4)
    Predictor(new)


def test_another_bundle_of_the_same_version_is_refused_and_the_same_one_is_not(tmp_path: Path) -> None:
    folder = _write(tmp_path / "b", 3)
    Predictor(folder)
    Predictor(folder)
    _write(folder, 3, changes={"licence": "other"})
    with pytest.raises(BundleError, match="version 3 as the one in use, but differs"):
        Predictor(folder)


def test_a_class_bank_of_equal_version_replaces_none(tmp_path: Path) -> None:
    predictor = Predictor(_write(tmp_path / "b", 1))
    with pytest.raises(BundleError, match="but differs"):
        predictor.swap_classes(_bank(tmp_path / "same", 1, ("a", "b", "c")))
    predictor.swap_classes(_bank(tmp_path / "u2", 2, ("a", "b", "c")))
    predictor.swap_classes(tmp_path / "u2")
    with pytest.raises(BundleError, match="but differs"):
        predictor.swap_classes(_bank(tmp_path / "other2", 2, ("d", "e", "f")))
    assert predictor.labels == ("a", "b", "c")


def test_a_class_bank_that_has_run_is_remembered_over_a_restart(tmp_path: Path) -> None:
    folder = _write(tmp_path / "b", 1)
    Predictor(folder).swap_classes(_bank(tmp_path / "u5", 5, ("a", "b", "c")))
    again = Predictor(folder)
    with pytest.raises(BundleError, match="version 4, older than version 5"):
        again.swap_classes(_bank(tmp_path / "u4", 4, ("d", "e", "f")))
    again.swap_classes(tmp_path / "u5")


@pytest.mark.parametrize("left", ["", "[]", '{"bundle": 3}', '{"bundle": {"version": "x"}}', "\0"])
def test_a_damaged_memory_does_not_stop_a_device(left: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / "b", 1)
    (tmp_path / ".b.versions.json").write_text(left)
    Predictor(folder)
    assert "version" in (tmp_path / ".b.versions.json").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_bundle_in_a_read_only_folder_still_runs(tmp_path: Path) -> None:
    folder = _write(tmp_path / "shared" / "b", 1)
    (tmp_path / "shared").chmod(0o500)
    try:
        Predictor(folder)
    finally:
        (tmp_path / "shared").chmod(0o700)


def test_to_verify_or_measure_a_bundle_is_not_to_run_it(tmp_path: Path) -> None:
    from fedgraft.device.bench import bench
    from fedgraft.device.commands import verify

    folder = _write(tmp_path / "b", 3)
    verify(folder)
    bench(folder, images=1)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
