"""Other runtimes get the tower that was measured, each in its own format; what one cannot do is said in a line."""

from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from fedgraft.core.errors import UserError
from fedgraft.device import BundleError, Predictor, open_bundle
from fedgraft.device.commands import main as device_main
from fedgraft.device.errors import DeviceError
from fedgraft.device.providers import find_provider
from fedgraft.edge_export.bundle_manifest import ParityRecord, TargetRecord
from fedgraft.edge_export.export import export_bundle
from fedgraft.edge_export.measure import failures
from fedgraft.edge_export.number_formats import find_format
from fedgraft.edge_export.onnx_model import export_onnx
from fedgraft.edge_export.options import BundleOptions
from fedgraft.edge_export.parity import compare, onnx_embeddings, torch_embeddings
from fedgraft.edge_export.targets.known import TARGETS, find_targets
from fedgraft.edge_export.targets.target import Tower

SIDE = 8


class _Small(nn.Module):
    """A patch embedding, a normalization and two products, as in a real tower."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 6)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.patches(pixels).flatten(2).transpose(1, 2))
        out = self.down(nn.functional.gelu(self.up(tokens))).mean(dim=1)
        return out / out.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def vision() -> nn.Module:
    torch.manual_seed(0)
    return _Small().eval()


@pytest.fixture(scope="module")
def small_pixels() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, 3, SIDE, SIDE)).astype(np.float32)


def _tower(vision: nn.Module, pixels: np.ndarray, name: str = "none") -> Tower:
    model = find_format(name).reduce(export_onnx(vision, (SIDE, SIDE), {}), pixels)
    return Tower(vision, model, (SIDE, SIDE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number_format", "least"),
    [
        ("openvino", "none", 0.99999),
        ("openvino", "fp16", 0.999),
        ("openvino", "int8-static", 0.95),
        ("executorch", "none", 0.99999),
    ],
)
def test_a_target_computes_what_the_torch_tower_does(
    name: str, number_format: str, least: float, vision: nn.Module, small_pixels: np.ndarray
) -> None:
    target = TARGETS[name]
    if find_spec(target.package) is None:
        pytest.skip(f"{target.package} is an optional library")
    target.require(number_format)
    files = target.convert(_tower(vision, small_pixels, number_format))
    assert all(file.startswith(f"{name}/") for file in files)
    found = target.embed(files, small_pixels)
    reference = torch_embeddings(vision, small_pixels)
    assert compare(reference, found, reference).centred_cosine >= least


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_tower_whose_convolutions_are_in_channels_last_is_converted_as_well(
    name: str, vision: nn.Module, small_pixels: np.ndarray
) -> None:
    """As `photo`'s is; what is converted must not change."""
    target, last = TARGETS[name], deepcopy(vision).to(memory_format=torch.channels_last)
    if find_spec(target.package) is None:
        pytest.skip(f"{target.package} is an optional library")
    files = target.files_of(_tower(last, small_pixels))
    assert np.allclose(target.embed(files, small_pixels), torch_embeddings(vision, small_pixels), atol=1e-4)
    assert last.patches.weight.is_contiguous(memory_format=torch.channels_last)


def test_what_a_library_cannot_convert_is_one_line() -> None:
    def convert(tower: Tower) -> dict[str, bytes]:
        try:
            raise ValueError("\nOperator bicubic is not there.\nSee elsewhere.")
        except ValueError as error:
            raise RuntimeError("a pass failed") from error

    target = replace(TARGETS["executorch"], convert=convert)
    with pytest.raises(UserError) as raised:
        target.files_of(Tower(nn.Identity(), b"", (SIDE, SIDE)))
    assert str(raised.value) == (
        "The target executorch cannot convert this image tower: Operator bicubic is not there. Leave it out of "
        "--target; model.onnx runs without it."
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("openvino") is None, reason="an optional library")
def test_a_bundle_has_the_target_beside_onnx_with_its_own_parity(run: Path, key: Path, tmp_path: Path) -> None:
    options = BundleOptions(site="1", target="onnx,openvino", key=key, most_images=24, max_novel_drop=100)
    written = export_bundle(run, tmp_path / "b", options)
    (record,) = written.manifest.targets
    assert (record.name, record.files) == ("openvino", ["openvino/model.bin", "openvino/model.xml"])
    assert record.parity.top1_agreement == 100
    opened = open_bundle(tmp_path / "b")
    files = {name: opened.read(name) for name in record.files}
    predictor = Predictor(tmp_path / "b")
    pixels = np.random.default_rng(0).normal(size=(2, 3, 48, 48)).astype(np.float32)
    assert np.allclose(TARGETS["openvino"].embed(files, pixels), predictor.embed(pixels), atol=1e-4)


def test_a_target_that_differs_is_refused_by_its_name() -> None:
    sound = ParityRecord(
        images=9, top1_agreement=100, required_agreement=97, centred_cosine=1, required_cosine=0.95, max_difference=0
    )
    broken = TargetRecord(
        name="openvino",
        version="1",
        files=["openvino/model.xml"],
        parity=sound.model_copy(update={"top1_agreement": 50}),
    )
    (sentence,) = failures(sound, None, [broken])
    assert sentence.startswith(
        "For openvino: The model agrees with its torch tower on the class of 50.00 % of 9 images"
    )


@pytest.mark.parametrize(
    ("names", "number_format", "said"),
    [
        ("tflite", "none", "Known: onnx, openvino, executorch"),
        ("", "none", "Known: onnx, openvino, executorch"),
        ("openvino", "int8", "The target openvino cannot take --quantize int8: .* int8-static stays int8"),
        ("executorch", "fp16", "The target executorch cannot take --quantize fp16"),
        ("onnx, executorch", "int8-static", "The target executorch cannot take --quantize int8-static"),
    ],
)
def test_what_a_target_cannot_do_is_one_line_before_anything_is_read(
    names: str, number_format: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        export_bundle(tmp_path / "no run", tmp_path / "b", BundleOptions(target=names, quantize=number_format))
    assert "\n" not in str(raised.value)


def test_a_target_that_is_not_installed_says_what_to_install() -> None:
    missing = replace(TARGETS["openvino"], package="a_library_that_is_not_here")
    with pytest.raises(UserError, match=r'pip install "fedgraft\[openvino\]"'):
        missing.require("none")
    assert find_targets("onnx", "int8") == ()


# --- old runtimes ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "int8", "int8-static", "fp16"])
def test_a_model_for_an_old_runtime_has_its_opset_and_ir_version_and_runs(
    name: str, vision: nn.Module, small_pixels: np.ndarray
) -> None:
    content = find_format(name).reduce(export_onnx(vision, (SIDE, SIDE), {}, opset=17), small_pixels)
    model = onnx.load_from_string(content)
    assert {entry.version for entry in model.opset_import if not entry.domain} == {17}
    assert model.ir_version <= 8
    reference = torch_embeddings(vision, small_pixels)
    assert compare(reference, onnx_embeddings(content, small_pixels), reference).centred_cosine > 0.95


@pytest.mark.parametrize("opset", [16, 24, "x"])
def test_an_opset_that_cannot_be_traced_is_one_line(opset: object) -> None:
    with pytest.raises(UserError, match="opset") as raised:
        BundleOptions.build({"opset": opset})
    assert "\n" not in str(raised.value)


# --- execution providers --------------------------------------------------------------------------


def test_the_cpu_is_a_provider_by_any_of_its_names() -> None:
    for name in ("cpu", "CPU", "CPUExecutionProvider"):
        assert find_provider(name) == "CPUExecutionProvider"


def test_a_provider_that_is_not_here_is_one_line_with_those_that_are(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("abacus", "", "x" * 500):
        with pytest.raises(DeviceError, match=r"There is no provider .* which has: .*cpu") as raised:
            Predictor(bundle, provider=name)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 400
    monkeypatch.setattr("sys.argv", ["fedgraft-device", "verify", str(bundle), "--provider", "abacus"])
    with pytest.raises(SystemExit) as left:
        device_main()
    assert left.value.code == 2
    assert "no provider 'abacus'" in capsys.readouterr().err


def test_a_provider_that_does_not_start_is_not_replaced_in_silence(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda model, options, providers: real(model, options, providers[-1:])
    )
    with pytest.raises(BundleError, match=r"could not start CUDAExecutionProvider .* started CPUExecutionProvider"):
        Predictor(bundle, provider="cuda")
