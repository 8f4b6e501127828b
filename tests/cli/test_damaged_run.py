"""A run directory whose files hold something else is told in one sentence with file and value."""

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fedgraft.cli.main import main
from fedgraft.core.errors import UserError
from fedgraft.runs.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("no_federation")


Damage = tuple[str, Callable[[Path], Any], str]
METRIC_ROW = '{"round": 1, "fold": null, "scope": "personal", "accuracy": 50.0, "sites": {"0": 50.0}}\n'


def _json(key: str, value: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        *outer, last = key.split(".")
        inner = content
        for part in outer:
            inner = inner[part]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
        path.write_text(json.dumps(content))

    return damage


def _text(text: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text.encode() if isinstance(text, str) else text)


def _row(**changed: Any) -> Callable[[Path], object]:
    return _text(json.dumps(json.loads(METRIC_ROW) | changed) + "\n" + METRIC_ROW)


DAMAGED: list[Damage] = [
    ("summary.json", _text("[1]"), "summary.json holds"),
    ("summary.json", _text("{"), "summary.json is not JSON"),
    ("summary.json", _text("[" * 100_000), "summary.json is not JSON"),
    ("summary.json", _text(b"\xff\xfe"), "summary.json cannot be read"),
    ("summary.json", _json("sites", "two"), "for sites"),
    ("summary.json", _json("rounds", [1]), "for rounds"),
    ("summary.json", _json("metrics", 3), "for metrics"),
    ("summary.json", _json("metrics", {"accuracy": "<b>high</b>"}), "for metrics.accuracy"),
    ("summary.json", _json("metrics_last5", []), "for metrics_last5"),
    ("summary.json", _json("versions", "all"), "for versions"),
    ("summary.json", _json("privacy", {"mechanism": 1}), "for privacy.mechanism"),
    ("summary.json", _json("wall_seconds", "long"), "for wall_seconds"),
    ("summary.json", _json("method", None), "lacks method"),
    ("summary.json", _json("protocol", 7), "for protocol"),
    ("metrics.jsonl", _text("3\n"), "Line 1"),
    ("metrics.jsonl", _text("{\n"), "Line 1"),
    ("metrics.jsonl", _row(round="one"), "for round"),
    ("metrics.jsonl", _row(round=-1), "for round"),
    ("metrics.jsonl", _row(fold=3), "for fold"),
    ("metrics.jsonl", _row(scope=["a"]), "for scope"),
    ("metrics.jsonl", _row(accuracy="high"), "for accuracy"),
    ("metrics.jsonl", _row(sites=[1]), "for sites"),
    ("metrics.jsonl", _row(sites={"0": "x" * 10**6}), "for sites.0"),
    ("metrics.jsonl", _row(scope="train", loss="low", sites=[0]), "for loss"),
    ("metrics.jsonl", _row(scope="train", sites={}), "for sites"),
    ("metrics.jsonl", _row(scope="left_out", site=[], reason="x"), "for site"),
    ("metrics.jsonl", _row(scope="left_out", site=1), "lacks reason"),
    ("confusion.json", _text("{}"), "lacks scopes"),
    ("confusion.json", _json("scopes.personal.counts", [[1, 2], [3]]), "3 x 3 counts"),
    ("confusion.json", _json("scopes.personal.classes", "abc"), "for scopes.personal.classes"),
    ("confusion.json", _json("scopes.personal", 3), "for scopes.personal"),
    ("config.toml", _text(b"\xff"), "config.toml cannot be read"),
]


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """A run that an earlier version has left, complete and readable."""
    kept = Path(__file__).parents[1] / "runs" / "written_by_0_1_0"
    return Path(shutil.copytree(kept, tmp_path / "run"))


@pytest.fixture
def sentence(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs any command that must end with one line and exit code 2."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fedgraft", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capfd.readouterr().err
        assert stopped.value.code == 2, printed
        assert printed.startswith("fedgraft: ")
        assert printed.count("\n") == 1
        assert len(printed) < 1000
        assert not set("<>\x1b") & set(printed)
        return printed

    return run


@pytest.mark.parametrize(("name", "damage", "said"), DAMAGED)
def test_a_report_of_a_run_with_a_damaged_file_names_file_and_value(
    name: str, damage: Callable[[Path], Any], said: str, finished_run: Path, sentence: Callable[..., str]
) -> None:
    damage(finished_run / name)
    assert said in sentence("report", str(finished_run))
    assert not (finished_run / "report.html").exists()


@pytest.mark.parametrize("command", [["adapter", "--out"], ["export", "--out"]], ids=["adapter", "export"])
@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("config.toml", _text("sites = 'two'\n"), "'sites' has the value 'two'"),
        ("config.toml", _text("method = 3\n"), "'method' has the value 3"),
        ("config.toml", _text("method_options = 3\n"), "'method_options' has the value 3"),
        ("config.toml", _text(b"\xff"), "is not TOML"),
        ("deal.safetensors", _text("none"), "deal.safetensors cannot be read"),
        ("checkpoints/fold-000-round-000001.safetensors", _text("none"), "000001.safetensors cannot be read"),
    ],
    ids=str,
)
def test_an_export_of_a_run_with_a_damaged_file_names_file_and_value(
    command: list[str],
    name: str,
    damage: Callable[[Path], Any],
    said: str,
    finished_run: Path,
    tmp_path: Path,
    sentence: Callable[..., str],
) -> None:
    damage(finished_run / name)
    assert said in sentence(command[0], str(finished_run), command[1], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def _checkpoint(rows: str, **arrays: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            known = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(arrays or known, path, {**metadata, "rows": rows or metadata["rows"]})

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_checkpoint("", context=np.zeros((1, 1, 7), np.float32)), "but the method needs"),
        (_checkpoint("", context=np.zeros((1, 1, 128))), "but the method needs"),
        (_checkpoint("", other=np.zeros((1, 1, 128), np.float32)), "but the method needs"),
        (_checkpoint("3"), "is not a list"),
        (_checkpoint("[3]"), "A row in the metadata"),
        (_checkpoint("["), "is not JSON"),
    ],
)
def test_an_adapter_of_a_checkpoint_with_something_else_is_refused(
    damage: Callable[[Path], Any], said: str, finished_run: Path, tmp_path: Path, sentence: Callable[..., str]
) -> None:
    damage(finished_run / "checkpoints" / "fold-000-round-000001.safetensors")
    assert said in sentence("adapter", str(finished_run), "--out", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("summary.json", _json("trainable_parameters", "many"), "for trainable_parameters"),
        ("summary.json", _json("metrics_last5", None), "lacks metrics_last5"),
        ("config.toml", _text("sites = 'two'\n"), "'sites' has the value 'two'"),
    ],
)
def test_a_finished_run_with_a_damaged_file_is_not_resumed(
    name: str, damage: Callable[[Path], Any], said: str, finished_run: Path, sentence: Callable[..., str]
) -> None:
    config = tomllib.loads((finished_run / "config.toml").read_text())
    again = finished_run.parent / "again.toml"
    again.write_text((finished_run / "config.toml").read_text())
    damage(finished_run / name)
    assert config["sites"] == 2
    assert said in sentence("simulate", "--config", str(again), "--out", str(finished_run), "--resume")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("sites.json", [], "sites.json holds"),
        ("sites.json", {"north": 3}, "for north"),
        ("sites.json", {"north": {"number": "one"}}, "for north.number"),
        ("sites.json", {"north": {"number": 0}, "south": {"number": 0}}, "two sites have the same number"),
        ("sites.json", {"north": {"number": 0, "images": {"cat": "many"}}}, "for north.images.cat"),
        ("attempts.json", {"run": "../../etc", "attempts": 1}, "for run"),
        ("attempts.json", {"run": "a", "attempts": "first"}, "for attempts"),
    ],
)
def test_what_a_server_keeps_of_its_sites_is_read_as_what_it_is(
    name: str, content: Any, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(said)):
        RunDirectory(tmp_path).read_json(name)
