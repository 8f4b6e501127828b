"""More sites than nodes: what a node's sites do together is what each does alone."""

import json
from pathlib import Path

import pytest

from fedgraft import RunConfig
from fedgraft.core.observer import Observer
from fedgraft.simulation.engine import Engine, node_count
from fedgraft.simulation.simulate import simulate_on


@pytest.mark.slow
def test_sites_that_share_a_node_learn_what_they_learn_on_nodes_of_their_own(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36 sites on 32 nodes and on 36, with personal parameters, sites of several sizes, and some that sit out."""
    config = RunConfig(
        data="digits", protocol="dirichlet", sites=36, rounds=2, local_epochs=1, participation=0.6,
        method_options={"n_ctx": 2}, protocol_options={"alpha": 5.0},
    )  # fmt: skip
    together = simulate_on(engine, config, tmp_path / "together", False, Observer())
    monkeypatch.setattr("fedgraft.simulation.engine._NODES", 100)
    alone = simulate_on(engine, config, tmp_path / "alone", False, Observer())
    assert together["metrics"]["accuracy"] == pytest.approx(alone["metrics"]["accuracy"], abs=0.5)
    assert together["uplink_bytes_per_site_round"] == alone["uplink_bytes_per_site_round"]
    one, other = (_losses(tmp_path / name / "metrics.jsonl") for name in ("together", "alone"))
    assert one == pytest.approx(other, rel=1e-3)
    assert len(list((tmp_path / "together" / "sites" / "000").iterdir())) > 22


@pytest.mark.parametrize(("sites", "nodes"), [(1, 1), (32, 32), (33, 32), (512, 32), (513, 33), (1000, 63)])
def test_the_number_of_nodes_follows_from_the_sites_alone(sites: int, nodes: int) -> None:
    """Not from the workers: who is computed with whom must not depend on the machine."""
    assert node_count(sites) == nodes


def _losses(path: Path) -> list[float]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["loss"] for row in rows if row["scope"] == "train"]
