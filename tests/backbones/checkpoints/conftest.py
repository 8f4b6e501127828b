"""Small models with random weights, as OpenCLIP builds them, and the files that people would have of them."""

import importlib
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fedgraft.backbones.checkpoints.importing import Imported, import_checkpoint
from fedgraft.backbones.loading import mini_folder
from fedgraft.backbones.timm.importing import without_torchvision
from fedgraft.core.errors import UserError

TEXTS = ["a photo of a red circle.", "seven", "a drawing of a large blue square, in winter."]
CLIP_CFG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 790, "width": 64, "heads": 1, "layers": 2},
}
"""Heads of 64, as in all of OpenAI's; the vocabulary is that of `mini`."""
IMPORT = Callable[..., Imported]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def open_clip() -> Any:
    """OpenCLIP, the oracle."""
    if find_spec("open_clip") is None or find_spec("timm") is None:
        pytest.skip("open_clip_torch is not installed")
    with without_torchvision():
        return importlib.import_module("open_clip")


@pytest.fixture(scope="session")
def openclip_model(open_clip: Any) -> Callable[..., nn.Module]:
    """Builds OpenCLIP's model of a `model_cfg`, with no weight at a value that hides a mistake."""

    def build(config: dict[str, Any], seed: int = 0) -> nn.Module:
        settings = {key: value for key, value in config.items() if key != "custom_text"}
        kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        return randomized(kind(**settings), seed)

    return build


@pytest.fixture
def imported(tmp_path: Path) -> IMPORT:
    """Imports a source into a new folder, with the tokenizer of `mini`."""

    def run(source: Path | str, **options: Any) -> Imported:
        return import_checkpoint(str(source), tmp_path / "imported", **{"tokenizer": mini_folder(), **options})

    return run


@pytest.fixture
def openclip_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes OpenCLIP's layout."""

    def write(model: nn.Module, config: dict[str, Any], preprocess: dict[str, Any] | None = None) -> Path:
        folder = tmp_path / "openclip"
        folder.mkdir(exist_ok=True)
        content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
        (folder / "open_clip_config.json").write_text(json.dumps(content))
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
        return folder

    return write


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with all of its floating-point weights drawn anew, biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if not tensor.is_floating_point():
                continue
            drawn = torch.randn(tensor.shape, generator=generator) * 0.1
            if name.endswith(("running_var", "logit_scale")):
                drawn = drawn.abs() + 0.5
            elif tensor.dim() == 1 and name.endswith("weight"):
                drawn = drawn + 1
            tensor.copy_(drawn)
    return model.eval()


def pictures(count: int = 3) -> list[Image.Image]:
    """Noise in three sizes."""
    rng = np.random.default_rng(0)
    sizes = [(60, 80, 3), (48, 48, 3), (100, 50, 3)]
    return [Image.fromarray(rng.integers(0, 256, sizes[number % 3], dtype=np.uint8)) for number in range(count)]


def padded_ids(tokenizer: Any, length: int, padding: int = 0) -> Tensor:
    """The test's texts as OpenCLIP's models take them."""
    rows = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in TEXTS]
    return torch.tensor([row + [padding] * (length - len(row)) for row in rows])


def refusal(run: Callable[[], object]) -> str:
    """The one line that a mistake in the input gives."""
    with pytest.raises(UserError) as error:
        run()
    assert "\n" not in str(error.value)
    return str(error.value)
