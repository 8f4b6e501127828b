"""What a user would lose: a mistake told in one sentence, with exit code 2, before anything is written."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedgraft.cli.main import main
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder
from tests.cli.conftest import Printed, Refused

pytestmark = pytest.mark.usefixtures("no_federation")


def _photos(folder: Path, broken: bool = False) -> Path:
    for label in range(4):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(6):
            image = Image.new("RGB", (40, 40), (index, label, 0))
            image.save(folder / f"class{label}" / f"{index}.jpg")
    if broken:
        for path in (folder / "class2").iterdir():
            path.write_bytes(path.read_bytes()[:300])
    return folder


@pytest.mark.parametrize("command", ["simulate", "compare"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "digit"], "Did you mean 'digits'?"),
        (["--data", "folder:/no/such/folder"], "/no/such/folder"),
        (["--protocol", "leave-one-domain"], "Did you mean 'leave-one-domain-out'?"),
        (["--protocol", "leave-one-domain-out"], "at least two domains"),
        (["--sites", "11"], "more sites (11) than classes (10)"),
        (["--sites", "0"], "'sites' has the value 0"),
        (["--participation", "1.5"], "'participation' has the value 1.5"),
        (["--set", "sites=ten"], "'sites' has the value 'ten'"),
        (["--set", "sites"], "key=value"),
        (["--set", "rnak=4"], "'rnak'"),
        (["--protocol", "dirichlet", "--set", "alhpa=1"], "Did you mean 'alpha'?"),
        (["--set", "data.domains=true"], "'data.domains'"),
        (["--backbone", "/no/such/backbone"], "/no/such/backbone"),
        (["--set", "n_ctx=200"], "n_ctx"),
        (["--config", "/no/such/file.toml"], "/no/such/file.toml"),
    ],
    ids=str,
)
def test_a_mistake_in_an_option(command: str, arguments: list[str], said: str, refused: Refused) -> None:
    methods = {"simulate": ["--method", "fedpgp"], "compare": ["--methods", "promptfl,fedpgp"]}
    assert said in refused(*methods[command], *arguments, command=command)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("simulate", ["--method", "fedpggp"]), ("compare", ["--methods", "local,fedpggp"])],
)
def test_an_unknown_method(command: str, arguments: list[str], refused: Refused) -> None:
    assert "Did you mean 'fedpgp'?" in refused(*arguments, command=command)


def test_a_method_option_of_a_wrong_type(refused: Refused) -> None:
    assert "'rank'" in refused("--method", "fedpgp", "--set", "rank=four")


@pytest.mark.parametrize("content", ["siets = 3", "sites = 'ten'", "sites = "])
def test_a_mistake_in_a_configuration_file(content: str, tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "run.toml"
    file.write_text(content)
    assert any(part in refused("--config", str(file)) for part in ("'sites'", str(file)))


def test_an_empty_folder_of_images(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "photos").mkdir()
    assert str(tmp_path / "photos") in refused("--data", f"folder:{tmp_path / 'photos'}")


def test_images_that_are_truncated(tmp_path: Path, refused: Refused) -> None:
    """The file is found only when it is decoded, and still nothing is written but the features before it."""
    photos = _photos(tmp_path / "photos", broken=True)
    sentence = refused("--data", f"folder:{photos}", "--sites", "2", "--rounds", "1", "--json")
    assert str(photos / "class2") in sentence


def test_a_backbone_folder_without_a_model(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused("--backbone", str(tmp_path / "empty"))


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_an_out_directory_that_holds_something_else(command: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("three years of work")
    assert str(tmp_path / "out") in refused(command=command)


@pytest.mark.parametrize(
    "command",
    ["simulate", "compare"],
)
def test_an_out_that_is_a_file(command: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "out").write_text("a file")
    assert "directory" in refused(command=command)


def test_nothing_to_resume(refused: Refused) -> None:
    assert "no run to resume" in refused("--resume")


def test_a_report_of_what_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["fedgraft", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert str(tmp_path) in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_whole_process_prints_one_line_and_no_library_adds_to_it(tmp_path: Path) -> None:
    """Imports, warnings and progress bars of a fresh process would stand before the sentence."""
    command = [Path(sys.executable).with_name("fedgraft"), "simulate", "--out", tmp_path / "out"]
    command += ["--protocol", "dirichlet", "--set", "alpha=0.0001", "--sites", "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("fedgraft: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- before anything is written -------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_a_mistaken_number_of_workers_writes_nothing(workers: str, refused: Refused) -> None:
    assert "orkers" in refused("--method", "zeroshot", "--sites", "2", "--workers", workers)


def test_compare_checks_every_methods_options_before_the_first_runs(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedgraft.simulation.comparison

    def simulate(*_: Any, **__: Any) -> None:
        raise AssertionError("a run began")

    monkeypatch.setattr(fedgraft.simulation.comparison, "simulate_on", simulate)
    assert "'rank'" in refused("--methods", "promptfl,fedpgp", "--set", "rank=four", command="compare")


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ("/nowhere/clip", "There is no backbone '/nowhere/clip'; give mini, photo, a Hugging Face folder"),
        ("{tmp}", "has no config.json; expected a Hugging Face model folder"),
    ],
)
def test_a_backbone_that_does_not_exist_is_told_before_a_run_is_submitted(
    backbone: str, said: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServerFolder.create(tmp_path / "server", ["127.0.0.1"], 1)
    monkeypatch.setattr("fedgraft.deployment.running_server.is_running", lambda folder: True)
    monkeypatch.setattr("fedgraft.deployment.submitted.SubmittedRun", None)
    words = ["--method", "promptfl", "--set", 'class_names=["cat", "dog"]', "--backbone", backbone.format(tmp=tmp_path)]
    assert said in refused(str(server.path), *words, command="run")
    assert server.queue.runs() == []


@pytest.mark.parametrize(
    "name", ["a/b", "a\nb", "\x1b[31mred", "x" * 1_000_000], ids=["slash", "newline", "escape", "long"]
)
@pytest.mark.parametrize(
    "words",
    [
        ["server", "revoke", "srv"], ["server", "renew", "srv"], ["server", "pause", "srv"], ["server", "stop", "srv"],
        ["site", "approve", "north"], ["site", "refuse", "north"], ["site", "init", "new", "--name"],
        ["server", "init", "other", "--host"], ["report"], ["methods"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_name_with_a_slash_a_newline_or_a_megabyte_is_one_short_line(
    words: list[str], name: str, printed: Printed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ServerFolder.create(tmp_path / "srv", ["127.0.0.1"], 1)
    SiteFolder.create(tmp_path / "north", "north")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    _, said = printed(*words, name, status=2)
    assert said.startswith("fedgraft: ")
    assert said.count("\n") == 1
    assert said[:-1].isprintable()
    assert len(said) < 2100
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_whose_name_is_too_long_is_one_short_line(printed: Printed) -> None:
    _, said = printed("simulate", "--out", "x" * 10**6, status=2)
    assert said.endswith("xxx has a name that is too long for a file.\n")
    assert len(said) < 2100
