"""`fedgraft backbones` still lists what there is, and `import` is a command beside it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedgraft.backbones import load_backbone
from tests.cli.conftest import Printed


@pytest.fixture
def pickled(random_clip_folder: Path, tmp_path: Path) -> Path:
    """A CLIP folder with `pytorch_model.bin`."""
    folder = Path(shutil.copytree(random_clip_folder, tmp_path / "bin"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_import_writes_a_folder_and_says_how_to_open_it(pickled: Path, tmp_path: Path, printed: Printed) -> None:
    out, err = printed("backbones", "import", str(pickled), "--out", str(tmp_path / "out"))
    assert f"--backbone {tmp_path / 'out'}" in out
    assert err == ""
    assert load_backbone(str(tmp_path / "out")).dim > 0


def test_json_is_one_object(pickled: Path, tmp_path: Path, printed: Printed) -> None:
    made = json.loads(printed("backbones", "import", str(pickled), "--out", str(tmp_path / "out"), "--json")[0])
    assert made["family"] == "clip"
    assert made["precisions"] == ["float32"]
    assert made["bytes"] == 4 * made["parameters"]


def test_a_mistake_is_one_line(pickled: Path, printed: Printed) -> None:
    _, said = printed("backbones", "import", str(pickled), "--out", str(pickled), status=2)
    assert said == f"fedgraft: {pickled} exists and is not empty; give --out a new folder.\n"


def test_one_family_is_still_shown_by_name(printed: Printed) -> None:
    shown = printed("backbones", "clip")[0]
    assert shown.startswith("clip: ")
    assert "ticket:" not in shown
