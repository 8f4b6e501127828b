"""The pretraining script is seeded, continues after a kill, and writes a folder that loads as a backbone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from fedgraft.backbones import load_backbone
from tools.mini import pretrain

STEPS = 4


def _prepared(folder: Path) -> Path:
    """A work folder with an atlas of noise, so that no fonts are needed."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (2, 36, 2, 64, 64)).astype(np.uint8)
    np.save(folder / "atlas.npy", noise)
    return folder


def _pretrain(work: Path) -> dict[str, Any]:
    out = pretrain.pretrain(work, Path("no-fonts"), STEPS, batch_size=16, seed=0, peak=1e-3, checkpoint_every=2)
    return load_file(out / "model.safetensors")


@pytest.mark.slow
def test_a_killed_pretraining_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = _pretrain(_prepared(tmp_path / "straight"))
    save, work = pretrain._save, _prepared(tmp_path / "killed")

    def killed_after_saving(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "_save", killed_after_saving)
        with pytest.raises(KeyboardInterrupt):
            _pretrain(work)
    resumed = _pretrain(work)
    assert all(np.array_equal(straight[name].numpy(), resumed[name].numpy()) for name in straight)
    assert load_backbone(str(work / "weights")).dim == 128
