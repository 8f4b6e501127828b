"""What a model still knows of classes that nobody holds: figures by hand, which classes count, and where it is told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft import RunConfig, compare
from fedgraft.backbones import Backbone
from fedgraft.data.results import Row
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.reports import write_report
from fedgraft.server.retention import AT_MOST, Retention, name_retention, unheld_classes

DIGITS = {"data": "digits", "sites": 2, "rounds": 1, "shots": 2, "protocol": "base-to-novel"}
Figures = dict[str, dict[str, dict[str, float]]]


def _unit(rows: list[list[float]]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


def _retention(backbone: Backbone, method: str, size: float, rows: tuple[Row, ...] = (), **more: object) -> Figures:
    """Of a model whose shared parameters were moved so far at random."""
    plan = Plan.of(RunConfig.build({**DIGITS, "method": method, **more}))
    split = plan.split(plan.open_examples())
    state = plan.adapter(Vocabulary.of(backbone, split)).server_state()
    rng = np.random.default_rng(0)
    arrays = {name: value.numpy() + size * rng.normal(size=value.shape) for name, value in sorted(state.items())}
    trained = [{name: array.astype(np.float32) for name, array in arrays.items()}] * len(split.folds)
    return Retention(plan, backbone, split).measured(trained, rows, {"novel": 60.0, "base": 70.0})


def test_the_figures_are_those_of_their_formulas() -> None:
    frozen = _unit([[1.0, 0.0, 3.0], [0.0, 1.0, 3.0], [-1.0, -1.0, 3.0]])
    assert name_retention(frozen, frozen) == pytest.approx({"names": 3, "cosine": 1, "centred": 1, "nearest": 100})
    swapped = frozen[[1, 0, 2]]
    found = name_retention(swapped, frozen)
    middle = frozen.mean(0)
    between = torch.cosine_similarity(frozen[0] - middle, frozen[1] - middle, dim=0)
    assert found["nearest"] == pytest.approx(100 / 3)
    assert found["centred"] == pytest.approx(float(1 + 2 * between) / 3, abs=1e-6)
    assert found["cosine"] == pytest.approx(float(1 + 2 * frozen[0] @ frozen[1]) / 3, abs=1e-6)


def test_all_is_retained_at_the_written_words_and_less_the_farther_one_goes(mini: Backbone) -> None:
    start, near, far = (_retention(mini, "fedit", size)["names"] for size in (0.0, 0.1, 1.0))
    for probe in ("vocabulary", "unheld"):
        assert start[probe]["nearest"] == 100
        assert start[probe]["centred"] == pytest.approx(1, abs=1e-3)
        assert start[probe]["centred"] > near[probe]["centred"] > far[probe]["centred"]
    assert start["unheld"]["names"] == 5
    assert start["vocabulary"]["names"] == AT_MOST


def test_a_personal_model_is_probed_as_the_model_of_all_sites(mini: Backbone) -> None:
    """FedPGP's offset is zero there, whatever its initial value."""
    words = {"method_options": {"ctx_init": "a photo of a"}}
    assert _retention(mini, "fedpgp", 0.0, **words)["names"]["vocabulary"]["nearest"] > 95


@pytest.mark.parametrize(
    ("method", "options", "probes"),
    [
        ("local", {}, set()),
        ("linear-probe", {}, {"unheld"}),
        ("fedpha", {"own_n_ctx": 3}, set()),
        ("zeroshot", {}, set()),
        ("promptfl", {"n_ctx": 60}, {"unheld"}),
    ],
)
def test_only_what_the_server_can_see_is_told(
    method: str, options: dict[str, object], probes: set[str], mini: Backbone
) -> None:
    assert set(_retention(mini, method, 0.0, method_options=options)["names"]) == probes


def test_images_are_those_of_classes_that_no_site_trains_on_after_the_last_round(mini: Backbone) -> None:
    rows: tuple[Row, ...] = tuple(
        {"round": at, "fold": None, "scope": scope, "accuracy": 40.0 + at, "sites": {}}
        for at in (0, 1)
        for scope in ("local", "base", "novel")
    )
    assert _retention(mini, "fedit", 0.0, rows)["images"] == {"novel": {"zero_shot": 60.0, "adapted": 41.0}}


def test_where_sites_hold_all_classes_only_other_names_are_probed() -> None:
    plan = Plan.of(RunConfig.build({**DIGITS, "method": "fedit", "protocol": "dirichlet"}))
    assert unheld_classes(plan.split(plan.open_examples()).folds[0]) == ()


def test_a_comparison_tells_it_in_every_summary_table_and_page(tmp_path: Path) -> None:
    compare(dict(DIGITS), ["zeroshot", "fedit"], [0], tmp_path / "c")
    run = json.loads((tmp_path / "c" / "fedit-seed0" / "summary.json").read_text())
    assert set(run["retention"]["names"]) == {"vocabulary", "unheld"}
    assert run["retention"]["images"]["novel"]["adapted"] == run["metrics"]["novel"]
    page = (tmp_path / "c" / "fedit-seed0" / "report.html").read_text()
    assert "<h2>Retention</h2>" in page
    assert f"{run['retention']['names']['unheld']['centred']:.3f}" in page
    whole = write_report(tmp_path / "c").read_text()
    assert "<h2>Retention</h2>" in whole
    assert f"{run['retention']['names']['unheld']['nearest']:.2f}" in whole
    assert "Names whose own frozen feature" in whole
