"""What a published setting would lose: its values, its figures with their sources, and a run that goes through."""

import json
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pytest

from fedgraft import RunConfig, UserError
from fedgraft.cli.main import main
from fedgraft.config.registry import METHODS, PROTOCOLS, Registry
from fedgraft.data.sources.source import open_source
from fedgraft.methods.plan import Plan
from fedgraft.recipes.mock_data import write_mock
from fedgraft.recipes.recipe import Recipe, all_recipes, names
from fedgraft.simulation.comparison import Entry
from fedgraft.simulation.engine import Engine

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _own_dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


@pytest.fixture
def command(engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command without processes: exit code, output and error."""
    monkeypatch.setattr("fedgraft.simulation.comparison.open_engine", lambda resources: nullcontext(engine))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedgraft", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run


@pytest.fixture(params=names())
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Each recipe."""
    return Recipe.load(request.param)


def test_its_settings_make_a_plan_for_each_of_its_methods(recipe: Recipe) -> None:
    for text in recipe.runnable:
        entry = Entry.parse(text)
        fields = METHODS.load(entry.method).options.model_fields
        shared = {key: value for key, value in recipe.settings.get("method_options", {}).items() if key in fields}
        options = {**shared, **entry.options}
        Plan.of(RunConfig.build({**recipe.settings, "method": entry.method, "method_options": options}))


def test_its_mock_is_read_as_its_data_are_and_can_be_dealt_to_its_sites(recipe: Recipe, tmp_path: Path) -> None:
    own = {"data": write_mock(recipe.mock, tmp_path), "method_options": {}}
    config = RunConfig.build({**recipe.smoke_settings(), **own})
    assert config.rounds == 2
    examples = open_source(config.data, 0)
    assert len(examples) <= 100
    tables = [each.examples for each in examples.data_sets] or [examples]
    assert all((table.splits is not None) == (recipe.mock.layout != "folder") for table in tables)
    for source in re.findall(r"--data (?:several:)?(\w+):", recipe.data_from):
        assert source in ("folder", "coop", "hf")
    assert f"{'folder' if recipe.mock.layout == 'lists' else recipe.mock.layout}:" in recipe.data_from
    Plan.of(config).split(examples)


def test_a_method_that_is_not_in_this_version_is_named_and_the_others_run(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A later method file makes such a recipe complete without a change to the recipe."""
    names_of = type(METHODS).names

    def fewer(registry: Registry[Any]) -> tuple[str, ...]:
        there = names_of(registry)
        return tuple(set(there) - {"fedclip", "promptfl"}) if registry is METHODS else there

    monkeypatch.setattr(type(METHODS), "names", fewer)
    said = "FedCLIP is not a method of this version"
    assert said in command("recipes", "fedclip-pacs")[1]
    code, out, error = command("compare", "--recipe", "fedclip-pacs", "--smoke", "--out", tmp_path / "out")
    assert code == 0, error
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [entry["method"] for entry in comparison["methods"]] == ["zeroshot"]
    assert said in out
    assert said in (tmp_path / "out" / "report.html").read_text()
    assert "95.2" in out


def test_a_recipe_whose_methods_are_all_there_misses_none() -> None:
    recipe = Recipe.load("promptfl-base-to-novel")
    assert (recipe.runnable, recipe.missing) == (recipe.methods, ())


def test_a_figure_says_whether_it_was_compared_with_a_public_page(command: Command) -> None:
    assert "FedDnC, README)" in command("recipes", "fedpgp-office-caltech10")[1]
    assert "as copied, not checked)" in command("recipes", "pfedmoap-cifar")[1]


def test_every_figure_is_of_something_that_is_measured_and_says_where_it_is_from(recipe: Recipe) -> None:
    protocol = PROTOCOLS.load(recipe.settings["protocol"])
    known = {metric.key for metric in protocol.metrics}
    for row in recipe.published:
        assert row.metrics.keys() <= known
        assert all(0 < value <= 100 for value in row.metrics.values())
        assert row.source
        assert row.copied_from, "say who measured it"


def test_what_it_needs_is_one_sentence_with_where_it_comes_from(recipe: Recipe) -> None:
    assert recipe.needs.count("http") >= 2
    assert str(recipe.settings["backbone"]) in recipe.needs


@pytest.mark.parametrize(
    ("data", "datasets"),
    [("coop:/data/oxford_pets", {"oxford_pets", ""}), ("coop:/data/dtd/", {"dtd", ""}), ("folder:mine", {""})],
)
def test_figures_beside_a_run_are_those_of_its_data_set(data: str, datasets: set[str]) -> None:
    assert {row.dataset for row in Recipe.load("fedpgp-base-to-novel").figures_for(data)} == datasets


def test_figures_of_a_hugging_face_dataset_are_found_whatever_its_revision_and_configuration() -> None:
    rows = Recipe.load("fedmgp-cifar").figures_for("hf:uoft-cs/cifar100@0a1b:cifar100.v2")
    assert {row.dataset for row in rows} == {"cifar100"}


def test_the_listing_has_name_paper_and_published(command: Command) -> None:
    code, out, _ = command("recipes", "--json")
    listed = json.loads(out)
    assert code == 0
    assert [entry["name"] for entry in listed] == [recipe.name for recipe in all_recipes()]
    assert all(entry["paper"] for entry in listed)
    assert all(isinstance(entry["published"], list) for entry in listed)
    by_name = {entry["name"]: entry for entry in listed}
    pets = next(row for row in by_name["fedpgp-base-to-novel"]["published"] if row["dataset"] == "oxford_pets")
    assert pets["metrics"] == {"local": 96.20, "base_all": 95.01, "novel": 96.89}
    assert "FedMGP" in pets["source"]
    assert "FedMGP" in pets["copied_from"]


def test_one_recipe_is_told_with_its_settings(command: Command) -> None:
    code, out, _ = command("recipes", "fedpgp-office-caltech10")
    assert code == 0
    assert "rounds = 25" in out
    assert "mean 95.88 (FedDnC" in out


def test_asked_for_without_its_data_it_says_what_it_needs(command: Command, tmp_path: Path) -> None:
    code, _, error = command("compare", "--recipe", "fedpgp-office-caltech10", "--out", tmp_path / "out")
    assert code == 2
    assert "needs Office-Caltech10" in error
    assert "openai/clip-vit-base-patch16" in error
    assert not (tmp_path / "out").exists()


def test_asked_for_without_its_backbone_it_says_what_it_needs(command: Command, images: Path, tmp_path: Path) -> None:
    words = ["--data", f"folder:{images}", "--backbone", tmp_path / "nothing", "--out", tmp_path / "out"]
    code, _, error = command("compare", "--recipe", "promptfl-base-to-novel", *words)
    assert code == 2
    assert "There is no backbone" in error
    assert "needs one of CoOp's data sets" in error


def test_an_unknown_recipe_and_a_smoke_run_of_none_are_refused(command: Command, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'fedmgp-cifar'"):
        Recipe.load("fedmgp-cifra")
    code, _, error = command("compare", "--smoke", "--out", tmp_path / "out")
    assert (code, "add --recipe NAME" in error) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_it_runs_end_to_end_on_a_mock_of_its_data(
    name: str, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the comparison's page, but without a page for each run, which costs more than the runs."""
    monkeypatch.setattr("fedgraft.simulation.comparison.write_report", lambda directory: directory)
    recipe = Recipe.load(name)
    code, out, error = command("compare", "--recipe", name, "--smoke", "--out", tmp_path / "out")
    assert code == 0, error
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [entry["method"] for entry in comparison["methods"]] == list(recipe.runnable)
    assert comparison["rounds"] == 2
    shown = recipe.figures_for(comparison["data"])
    assert [row["metrics"] for row in comparison["published"]] == [row.metrics for row in shown]
    for row in shown:
        assert f"{row.method}, published" in out
        assert row.source in out
        assert row.source.split(",")[0] in (tmp_path / "out" / "report.html").read_text().replace("&#x27;", "'")
