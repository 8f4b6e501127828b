"""The tickets of a run are measured once; existing rows are not measured again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.edge_export import sweep
from fedgraft.reports.edge import TICKETS, read_rows

SETTINGS: dict[str, Any] = {"images": 16, "induction_steps": 1, "distillation_steps": 0}


def test_every_kind_and_cut_of_a_run_gets_a_row_once(random_clip_folder: Path, tmp_path: Path) -> None:
    config = RunConfig(backbone=str(random_clip_folder), data="digits", seed=3)
    (tmp_path / "config.toml").write_text(config.to_toml())
    whole = sweep.sweep_of_run(tmp_path, SETTINGS)
    assert {pattern for pattern, _ in whole.cuts} == {"unstructured", "n:m", "rows", "structured"}
    asked = replace(whole, cuts=(("structured", 0.5), ("n:m", 0.5)), attacked=8)
    sweep.measure(asked, tmp_path, lambda stage, done, total: None)
    rows = read_rows(tmp_path / TICKETS)
    found = [(row["induction"], row["pattern"], row["sparsity"]) for row in rows]
    cuts = [("dense", 0.0), ("structured", 0.5), ("n:m", 0.5)]
    assert sorted(found) == sorted((induction, *cut) for induction in ("none", "pgd") for cut in cuts)
    assert all({"base", "novel", "attacked"} <= row.keys() and row["seed"] == 3 for row in rows)
    sweep.measure(asked, tmp_path, lambda stage, done, total: pytest.fail("measured again"))
    assert read_rows(tmp_path / TICKETS) == rows


def test_a_folder_without_a_run_and_a_run_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run \(config\.toml\)"):
        sweep.sweep_of_run(tmp_path, SETTINGS)
    config = RunConfig(protocol="own-data", protocol_options={"class_names": ["cat", "dog"]})
    (tmp_path / "config.toml").write_text(config.to_toml())
    with pytest.raises(UserError, match="are at its sites"):
        sweep.sweep_of_run(tmp_path, SETTINGS)
