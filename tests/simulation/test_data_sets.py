"""Runs over several data sets and over domains, from the folders to the figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedgraft import RunConfig
from fedgraft.core.observer import Observer
from fedgraft.reports import write_report
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on

COMMON = {"shots": 2, "local_epochs": 1, "rounds": 1, "method": "fedpgp", "method_options": {"n_ctx": 2}}
CLASSES = {"fruit": ("apple", "banana", "cherry", "pear"), "signs": ("circle", "pear", "square", "star", "triangle")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two folders of images with the domains day and night; both have a class "pear"."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, classes in CLASSES.items():
        for domain in ("day", "night"):
            for label in classes:
                (root / name / domain / label).mkdir(parents=True)
                for number in range(4):
                    pixels = rng.integers(0, 255, (12, 12, 3)).astype(np.uint8)
                    Image.fromarray(pixels).save(root / name / domain / label / f"{number}.png")
    return {name: root / name for name in CLASSES}


def _run(engine: Engine, out: Path, **settings: Any) -> dict[str, Any]:
    summary = simulate_on(engine, RunConfig.build({**COMMON, **settings}), out, False, Observer())
    assert write_report(out).is_file()
    return summary


def test_a_federation_over_several_data_sets_measures_each(
    engine: Engine, tmp_path: Path, folders: dict[str, Path]
) -> None:
    data = "several:" + "+".join(f"folder:{folder}" for folder in folders.values())
    summary = _run(engine, tmp_path / "run", protocol="multi-dataset", data=data, sites=2)
    assert set(summary["metrics"]) == {"local", "base", "novel", "hm", "per_dataset"}
    assert set(summary["metrics"]["per_dataset"]) == set(folders)
    confusion = json.loads((tmp_path / "run" / "confusion.json").read_text())["scopes"]
    assert confusion["local: signs"]["classes"] == ["circle", "pear", "square"]
    assert np.sum(confusion["local: signs"]["counts"]) == sum(map(sum, confusion["base: signs"]["counts"])) / 2
    assert confusion["novel: signs"]["classes"] == ["star", "triangle"]


def test_a_run_on_one_data_set_measures_another_among_its_own_classes(
    engine: Engine, tmp_path: Path, folders: dict[str, Path]
) -> None:
    data = "several:" + "+".join(f"folder:{folder}" for folder in folders.values())
    summary = _run(engine, tmp_path / "run", protocol="cross-dataset", data=data, sites=2)
    assert set(summary["metrics"]) == {"source", "per_dataset", "mean"}
    assert summary["metrics"]["mean"] == summary["metrics"]["per_dataset"]["signs"]
    confusion = json.loads((tmp_path / "run" / "confusion.json").read_text())["scopes"]
    assert confusion["target: signs"]["classes"] == list(CLASSES["signs"])


def test_a_site_with_a_domain_is_measured_on_it_and_on_the_others(
    engine: Engine, tmp_path: Path, folders: dict[str, Path]
) -> None:
    summary = _run(engine, tmp_path / "run", protocol="domain-per-site", data=f"folder:{folders['fruit']}", sites=2)
    metrics = summary["metrics"]
    assert set(metrics) == {"per_domain", "own", "others", "worst_site", "std"}
    assert metrics["own"] == pytest.approx(np.mean(list(metrics["per_domain"].values())))
    assert metrics["worst_site"] == min(metrics["per_domain"].values())
