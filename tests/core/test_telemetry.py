"""Libraries that report to their makers by default do not do so in fedgraft's processes."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

_OPENVINO = "from fedgraft.edge_export.targets.openvino import _openvino; _openvino()"
_IMPORTS = [
    "import fedgraft.device",
    "import fedgraft.edge_export.parity",
    "import fedgraft.fleet.simulated_bundle",
    _OPENVINO,
]
_SET_BY_FEDGRAFT = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "FLWR_TELEMETRY_ENABLED", "CI")


@pytest.mark.parametrize("code", _IMPORTS)
def test_no_library_makes_up_an_identifier_of_the_user(code: str, tmp_path: Path) -> None:
    if code == _OPENVINO and find_spec("openvino") is None:
        pytest.skip("needs openvino")
    environment = {name: value for name, value in os.environ.items() if name not in _SET_BY_FEDGRAFT}
    own = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    subprocess.run([sys.executable, "-c", code], env={**environment, **own}, check=True)
    assert list(tmp_path.rglob("*")) == []


def test_the_owner_may_turn_it_on() -> None:
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    code = "import os, fedgraft.device; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    printed = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == "0"
