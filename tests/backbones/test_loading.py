"""What a user would lose: a backbone that is the one it says it is, or a sentence about what is wrong with it."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.loading import located
from fedgraft.core.errors import UserError

MINI = "74108c31d37756f55c58ddd0d3b15d9ab319f483b88617150ab1432f13f0ab73"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(random_clip_folder: Path, tmp_path: Path) -> Path:
    """A copy of a whole CLIP folder, to be spoilt."""
    return Path(shutil.copytree(random_clip_folder, tmp_path / "clip"))


def _fingerprint(folder: Path) -> str:
    return load_backbone(str(folder)).fingerprint


def _error(name: object) -> str:
    with pytest.raises(UserError) as error:
        load_backbone(str(name))
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nothing", "./nothing", "/no/such/folder", "~/no-such-folder", "a/b/c"])
def test_a_path_that_does_not_exist_is_named_with_what_would_be_right(name: str) -> None:
    sentence = _error(name)
    assert repr(name) in sentence
    assert "Hugging Face folder" in sentence


def test_an_unknown_id_offline_is_named() -> None:
    assert "'nobody/no-such-model'" in _error("nobody/no-such-model")


def test_a_folder_without_config_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    sentence = _error(folder)
    assert str(folder) in sentence
    assert "config.json" in sentence


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe\x00", b""])
def test_a_config_that_is_none_is_named(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert str(folder / "config.json") in _error(folder)


def test_another_family_is_named_with_the_known_ones(folder: Path) -> None:
    _edit(folder / "config.json", model_type="groupvit")
    sentence = _error(folder)
    assert "'groupvit'" in sentence
    assert "clip" in sentence.split("known:")[1]


def test_another_family_under_an_id_is_named_before_its_weights_are_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would read the weights as CLIP's and draw what does not fit at random."""
    _edit(folder / "config.json", model_type="groupvit")
    cached = tmp_path / "hub" / "models--someone--groupvit"
    shutil.copytree(folder, cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    sentence = _error("someone/groupvit")
    assert "'someone/groupvit'" in sentence
    assert "is of the family 'groupvit'; known: " in sentence


def test_a_folder_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    sentence = _error(folder)
    assert str(folder) in sentence
    assert "safetensors" in sentence


@pytest.mark.parametrize(
    "file", ["pytorch_model.bin", "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin", "ViT-B-16.pt"]
)
def test_weights_of_another_kind_are_told_with_the_command_that_imports_them(folder: Path, file: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(b"weights")
    sentence = _error(folder)
    assert file in sentence
    assert f"fedgraft backbones import {folder} --out FOLDER" in sentence


def test_a_folder_of_openclips_or_a_single_file_is_told_with_the_command_that_imports_it(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"weights")
    assert f"fedgraft backbones import {tmp_path} --out FOLDER" in _error(tmp_path)
    file = tmp_path / "ViT-B-32.pt"
    file.write_bytes(b"weights")
    assert f"fedgraft backbones import {file} --out FOLDER" in _error(file)


@pytest.mark.parametrize(
    "change", [{"text_config": 3}, {"vision_config": {"patch_size": "x"}}, {"projection_dim": None}]
)
def test_sizes_of_a_malformed_configuration_are_an_error_in_one_line(folder: Path, change: dict[str, Any]) -> None:
    _edit(folder / "config.json", **change)
    with pytest.raises(UserError) as error:
        located(str(folder)).sizes()
    assert str(folder / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["tokenizer.json", "preprocessor_config.json"])
def test_a_missing_tokenizer_or_preprocessing_is_named(folder: Path, file: str) -> None:
    """transformers makes an empty tokenizer of nothing, and every class name would be the same."""
    (folder / file).unlink()
    assert str(folder) in _error(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] = weights["visual_projection.weight"][:-1].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert str(folder) in _error(folder)


def test_truncated_weights_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert str(folder) in _error(folder)


def test_incomplete_weights_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert str(folder) in _error(folder)


# --- what it is -----------------------------------------------------------------------------------


def test_the_embedded_backbone_keeps_the_fingerprint_that_runs_and_bundles_know_it_by(mini: Backbone) -> None:
    assert mini.fingerprint == MINI


def test_mini_is_there_without_a_network(mini: Backbone) -> None:
    assert mini.name == "mini"
    assert len(mini.fingerprint) == 64
    features = mini.text.encode_classes(["red circle", "seven"], ["a photo of a {}."])
    assert features.shape == (2, mini.dim)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))


def test_the_fingerprint_is_that_of_the_content_wherever_the_folder_lies(folder: Path, tmp_path: Path) -> None:
    first = _fingerprint(folder)
    assert _fingerprint(folder) == first
    assert _fingerprint(Path(shutil.copytree(folder, tmp_path / "elsewhere"))) == first


def test_the_fingerprint_does_not_depend_on_the_version_that_saved_the_folder(folder: Path) -> None:
    first = _fingerprint(folder)
    _edit(folder / "config.json", transformers_version="4.0.0", _name_or_path="someone/clip")
    assert _fingerprint(folder) == first


@pytest.mark.parametrize("tensor", ["visual_projection.weight", "text_model.final_layer_norm.bias", "logit_scale"])
def test_one_changed_weight_is_another_backbone(folder: Path, tensor: str) -> None:
    first = _fingerprint(folder)
    weights = load_file(folder / "model.safetensors")
    weights[tensor].flatten()[0] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert _fingerprint(folder) != first


def test_another_vocabulary_is_another_backbone(folder: Path) -> None:
    first = _fingerprint(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = list(vocabulary)[100:102]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    _edit(folder / "tokenizer.json", model=tokenizer["model"])
    assert _fingerprint(folder) != first


def test_other_merges_are_another_backbone(folder: Path) -> None:
    """The same vocabulary under other merges gives a class name other tokens."""
    first = _fingerprint(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    _edit(folder / "tokenizer.json", model={**model, "merges": model["merges"][:-5]})
    assert _fingerprint(folder) != first


def test_another_preprocessing_is_noticed(folder: Path) -> None:
    """Image features of another resolution or mean must not come from the same store."""
    first = load_backbone(str(folder)).preprocessing
    _edit(folder / "preprocessor_config.json", image_mean=[0.1, 0.1, 0.1])
    assert load_backbone(str(folder)).preprocessing != first


def test_loading_a_folder_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A mistake found after loading is one line on stderr, so no progress bar may stand before it."""
    load_backbone(str(folder))
    assert capfd.readouterr() == ("", "")
