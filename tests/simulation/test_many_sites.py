"""More sites than nodes: what a node's sites do together is what each does alone."""

import json
from pathlib import Path

import pytest

import fedgraft.simulation.ray_engine
from fedgraft import RunConfig, simulate


def test_sites_that_share_a_node_learn_what_they_learn_on_nodes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36 sites on 32 nodes and on 36, with personal parameters, sites of several sizes, and some that sit out."""
    config = RunConfig(
        data="digits", protocol="dirichlet", alpha=5.0, sites=36, rounds=2, local_epochs=1, participation=0.6,
        method_options={"n_ctx": 2},
    )  # fmt: skip
    together = simulate(config, tmp_path / "together")
    monkeypatch.setattr(fedgraft.simulation.ray_engine, "_NODES", 100)
    alone = simulate(config, tmp_path / "alone")
    assert together["metrics"]["accuracy"] == pytest.approx(alone["metrics"]["accuracy"], abs=0.5)
    assert together["uplink_bytes_per_site_round"] == alone["uplink_bytes_per_site_round"]
    one, other = (_losses(tmp_path / name / "metrics.jsonl") for name in ("together", "alone"))
    assert one == pytest.approx(other, rel=1e-3)
    assert len(list((tmp_path / "together" / "sites" / "000").iterdir())) > 22


def _losses(path: Path) -> list[float]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["loss"] for row in rows if row["scope"] == "train"]
