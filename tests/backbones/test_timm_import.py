"""timm opens with, without and beside a broken torchvision, and its absence is told in one line."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fedgraft.backbones.timm.importing import import_timm, without_torchvision
from fedgraft.core.errors import UserError

pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="the extra timm is not installed")


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_a_missing_timm_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match=r"pip install 'fedgraft\[timm\]'"):
        import_timm()


def test_stand_ins_are_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else looks for torchvision, transformers for instance, must not find them."""
    before = list(sys.meta_path)
    with without_torchvision():
        pass
    assert sys.meta_path == before
    import_timm()
    assert not getattr(sys.modules.get("torchvision"), "FrozenBatchNorm2d", None)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise ImportError('gone')", "raise RuntimeError('operator does not exist')"])
def test_a_torchvision_that_cannot_be_imported_does_not_stop_a_model(fault: str, tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(fault)
    code = (
        "import sys, torch\n"
        "from fedgraft.backbones.timm.importing import import_timm\n"
        "model = import_timm().create_model('test_vit', num_classes=3).eval()\n"
        "print(model(torch.zeros(1, 3, 160, 160)).shape[1], 'torchvision' in sys.modules)\n"
    )
    ran = _run(code, PYTHONPATH=str(tmp_path))
    assert ran.stdout == "3 False\n", ran.stderr
