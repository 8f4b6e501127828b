"""What a user would lose: a mistake told in one sentence, with exit code 2, before anything is written."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from fedgraft.cli.main import main
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.simulation.engine import Engine

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def _no_federation(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """A mistake that is not found fails its test here, and not after a run; no process is started."""

    def run(*_: object) -> None:
        raise AssertionError("a federation began")

    monkeypatch.setattr("fedgraft.server.coordinator.Coordinator.run", run)
    for module in ("simulate", "comparison"):
        monkeypatch.setattr(f"fedgraft.simulation.{module}.open_engine", lambda resources: nullcontext(engine))


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail as bad input does, and returns its sentence."""

    def run(*arguments: str, command: str = "simulate") -> str:
        out = tmp_path / "out"
        before = _listing(out)
        monkeypatch.setattr(sys, "argv", ["fedgraft", command, "--out", str(out), *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capfd.readouterr()
        assert stopped.value.code == 2
        assert printed.err.startswith("fedgraft: ")
        assert printed.err.count("\n") == 1
        assert "Traceback" not in printed.err
        assert _listing(out) == before
        return printed.err

    return run


def _listing(folder: Path) -> list[tuple[str, bytes]] | None:
    if not folder.exists():
        return None
    return [(str(path), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]


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
    [("simulate", ["--method", "fedpg"]), ("compare", ["--methods", "local,fedpg"])],
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


# --- which setting wins ---------------------------------------------------------------------------


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """The configuration that `simulate` would run."""
    import fedgraft.simulation.simulate

    def run(file: str, *arguments: str) -> RunConfig:
        seen: list[RunConfig] = []

        def simulate(config: RunConfig, *_: Any, **__: Any) -> None:
            seen.append(config)
            raise UserError("That is all.")

        (tmp_path / "run.toml").write_text(file)
        words = ["fedgraft", "simulate", "--out", str(tmp_path / "out"), "--config", str(tmp_path / "run.toml")]
        monkeypatch.setattr(fedgraft.simulation.simulate, "simulate", simulate)
        monkeypatch.setattr(sys, "argv", [*words, *arguments])
        with pytest.raises(SystemExit):
            main()
        return seen[0]

    return run


FILE = """
sites = 3
rounds = 4
lr = 0.25
data = "folder:photos"
domains = true
[method_options]
rank = 2
mu = 0.125
"""


def test_options_win_over_set_and_set_over_the_file(configured: Callable[..., RunConfig]) -> None:
    config = configured(FILE, "--sites", "7", "--set", "sites=6", "--set", "rounds=5", "--set", "mu=0.75")
    assert (config.sites, config.rounds, config.lr) == (7, 5, 0.25)
    assert config.method_options == {"rank": 2, "mu": 0.75}
    assert config.data_options == {"domains": True}


def test_what_is_given_nowhere_keeps_its_default(configured: Callable[..., RunConfig]) -> None:
    config = configured("sites = 3")
    assert config == RunConfig(sites=3)


def test_every_option_of_simulate_reaches_the_configuration(configured: Callable[..., RunConfig]) -> None:
    """Trap T6: a flag that is never passed on."""
    given = {
        "method": "promptfl", "strategy": "median", "data": "shapes", "protocol": "dirichlet", "backbone": "x/y",
        "precision": "bfloat16", "sites": 7, "rounds": 3, "seed": 9, "participation": 0.5, "quorum": 0.25,
        "answer_seconds": 7.0, "resend_seconds": 8.0, "max_site_images": 9,
        "max_site_share": 0.5, "norm_bound": 3.0, "eval_every": 2, "shots": 5, "views": 3, "test_fraction": 0.125,
        "evaluate_on": "val", "loss": "sigmoid",
        "local_epochs": 4, "batch_size": 6, "optimizer": "sgd", "lr": 0.5, "momentum": 0.75, "weight_decay": 0.0625,
        "schedule": "step", "step_epochs": 3, "step_factor": 0.5, "warmup_epochs": 2, "warmup_lr": 0.01,
        "drop_last": True, "augment": "flip",
    }  # fmt: skip
    assert set(given) == {key for key in RunConfig.model_fields if not key.endswith("_options")}
    assert not [key for key, value in given.items() if value == RunConfig.model_fields[key].default]
    flags = {key: f"--{key.replace('_', '-')}" for key in given}
    words = [word for key, value in given.items() for word in ([flags[key]] if value is True else [flags[key], value])]
    assert configured("", *map(str, words)) == RunConfig.build(given)


def test_set_reaches_the_options_of_method_protocol_and_data_source(configured: Callable[..., RunConfig]) -> None:
    words = ["--method", "fedit", "--protocol", "dirichlet", "--data", "folder:photos"]
    words += ["--set", "method.alpha=2.0", "--set", "protocol.alpha=0.1", "--set", "domains=true", "--set", "rank=2"]
    config = configured("", *words)
    assert config.method_options == {"alpha": 2.0, "rank": 2}
    assert config.protocol_options == {"alpha": 0.1}
    assert config.data_options == {"domains": True}


# --- before anything is written -------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_a_mistaken_number_of_workers_writes_nothing(workers: str, refused: Refused) -> None:
    assert "orkers" in refused("--method", "zeroshot", "--sites", "2", "--workers", workers)


def test_compare_takes_its_seed_from_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedgraft.simulation.comparison

    seen: list[Any] = []

    def compare(settings: Any, methods: Any, seeds: Any, *_: Any, **__: Any) -> None:
        seen.append(seeds)
        raise UserError("That is all.")

    monkeypatch.setattr(fedgraft.simulation.comparison, "compare", compare)
    monkeypatch.setattr(sys, "argv", ["fedgraft", "compare", "--out", str(tmp_path / "out"), "--set", "seed=7"])
    with pytest.raises(SystemExit):
        main()
    assert seen == [[7]]


def test_compare_checks_every_methods_options_before_the_first_runs(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedgraft.simulation.comparison

    def simulate(*_: Any, **__: Any) -> None:
        raise AssertionError("a run began")

    monkeypatch.setattr(fedgraft.simulation.comparison, "simulate_on", simulate)
    assert "'rank'" in refused("--methods", "promptfl,fedpgp", "--set", "rank=four", command="compare")


# --- quick help -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["--help"], ["simulate", "--help"], ["up", "--help"], ["methods", "--help"], ["--version"]]
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from fedgraft.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv[0].split())), file=sys.stderr)"
    )
    heavy = "torch transformers flwr flwr_datasets datasets ray sklearn matplotlib"
    code = f"import sys\nsys.argv = [{heavy!r}, *sys.argv[1:]]\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "[]\n"
    assert done.stdout


# --- a run directory whose files hold something else ----------------------------------------------

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
