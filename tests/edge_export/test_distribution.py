"""The distribution for devices, installed into an empty environment."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft.device import Predictor
from tests.fleet.conftest import Fleet

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).parents[2] / "distributions" / "device"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an empty environment with the distribution and what it asks for."""
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    words = [*pip, "--python", str(python), "install", f"{SOURCE}[agent]"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=_bare())
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"the registry cannot be reached, and this is not CI: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return python.parent


def _bare() -> dict[str, str]:
    """The environment without what lets other packages be found, such as the PYTHONPATH that Flower sets for Ray."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def _run(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, cwd="/", env=_bare())
    assert done.returncode == code, done.stderr
    return done


def test_a_device_has_no_torch_and_answers_as_this_machine_does(device: Path, exported: Path, tmp_path: Path) -> None:
    absent = "[n for n in ('torch', 'flwr', 'cryptography', 'safetensors') if find_spec(n)]"
    code = f"from importlib.util import find_spec; print({absent})"
    assert _run(device / "python", "-c", code).stdout == "[]\n"
    code = "from fedgraft.device import Predictor; import fedgraft; print(fedgraft.__file__)"
    assert str(device.parent) in _run(device / "python", "-c", code).stdout
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8)).save(image)
    found = json.loads(_run(device / "fedgraft-device", "predict", exported, image, "--json").stdout)[str(image)]
    expected = Predictor(exported).predict(image)
    assert found["label"] == expected.label
    assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-3)
    assert f"{image}: " in _run(device / "fedgraft-device", "predict", exported, image).stdout


def test_a_device_verifies_and_measures(device: Path, exported: Path, bundle: Path, key: Path) -> None:
    pinned = _run(device / "fedgraft-device", "verify", exported, "--key", key.with_suffix(".pub"))
    assert "Signed by the required key" in pinned.stdout
    figures = json.loads(_run(device / "fedgraft-device", "bench", exported, "--images", 3, "--json").stdout)
    assert figures["images"] == 3
    assert 0 < figures["median_ms"] <= figures["p99_ms"]
    assert figures["memory_mb"] > figures["model_mb"] > 1
    (bundle / "labels.json").write_text("{}")
    broken = _run(device / "fedgraft-device", "verify", bundle, code=2)
    assert broken.stderr.startswith("fedgraft-device: labels.json")
    assert broken.stderr.count("\n") == 1


def test_an_agent_without_torch_follows_a_registry(device: Path, tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.start()
    try:
        fleet.publish(1)
        assert fleet.registry is not None
        words = (device / "fedgraft-device", "agent", "--server", f"localhost:{fleet.registry.port}")
        folder = ("--dir", tmp_path / "camera", "--once")
        first = _run(*words, *folder, "--ca", fleet.folder.authority, "--token", fleet.token())
        assert first.stdout.startswith("Version 1 runs now;")
        Image.new("RGB", (9, 9), (0, 0, 200)).save(tmp_path / "a.png")
        assert "blue" in _run(device / "fedgraft-device", "predict", tmp_path / "camera", tmp_path / "a.png").stdout
        fleet.publish(2)
        assert _run(*words, *folder).stdout.startswith("Version 2 runs now;")
    finally:
        fleet.stop()


def test_the_same_commands_are_in_the_whole_package(exported: Path, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("fedgraft")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    answer = json.loads(_run(command, "device", "predict", exported, tmp_path / "a.png", "--json").stdout)
    assert set(answer[str(tmp_path / "a.png")]) == {"label", "probability", "probabilities", "is_unknown"}
    assert "all as signed" in _run(command, "device", "verify", exported).stdout
    assert "median_ms" in _run(command, "device", "bench", exported, "--images", "2", "--no-spinning").stdout
    missing = _run(command, "device", "predict", exported, tmp_path / "b.png", code=2)
    assert missing.stderr == f"fedgraft: There is no image {tmp_path / 'b.png'}.\n"
