"""Rules that send each site its own parameters: in training, evaluation, a resumed run, exports and deployments."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft import RunConfig
from fedgraft.core.observer import Observer
from fedgraft.edge_export.adapter_folder import trained_adapter
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on
from tests.simulation.conftest import HalfwayCopy

CONFIG = RunConfig(
    method="promptfl", data="digits", sites=3, rounds=4, shots=4, local_epochs=2, eval_every=2, participation=0.67,
    strategy="similarity(self_weight=0.9)", method_options={"n_ctx": 2},
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A whole run, what was on disk after its second round, and its summary."""
    folder = tmp_path_factory.mktemp("runs")
    whole, half = folder / "whole", folder / "half"
    return whole, half, simulate_on(engine, CONFIG, whole, False, HalfwayCopy(whole, half))


def _rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith(("seconds", "per_site"))} for row in rows]


def test_a_killed_run_resumes_with_the_mean_of_each_site(
    runs: tuple[Path, Path, dict[str, Any]], engine: Engine
) -> None:
    whole, half, summary = runs
    assert simulate_on(engine, CONFIG, half, True, Observer())["metrics"] == summary["metrics"]
    assert _rows(half) == _rows(whole)


def test_an_export_of_a_site_has_its_own_mean_and_global_that_of_all(
    runs: tuple[Path, Path, dict[str, Any]],
) -> None:
    whole, _, summary = runs
    checkpoint = RunDirectory(whole).checkpoints.newest(0, summary["fingerprint"])
    assert checkpoint is not None
    contexts = [trained_adapter(whole, site).get_parameter("context").detach() for site in (0, 1, 2)]
    for site, context in enumerate(contexts):
        kept = checkpoint.state[f"0/{site}/context"]
        assert torch.equal(context, torch.from_numpy(kept))
    assert not torch.equal(contexts[0], contexts[1])
    shared = trained_adapter(whole, None).get_parameter("context").detach()
    assert torch.equal(shared, torch.from_numpy(checkpoint.arrays["context"]))


def test_a_site_is_evaluated_with_what_it_receives(runs: tuple[Path, Path, dict[str, Any]], engine: Engine) -> None:
    """The mean of all is the same under both; only what each site received can tell them apart."""
    learnt = {"rounds": 1, "eval_every": 1, "local_epochs": 6, "lr": 0.5, "participation": 1.0}
    found = []
    for strategy in ("similarity(self_weight=1)", "fedavg"):
        run = runs[0].parent / strategy
        simulate_on(engine, CONFIG.model_copy(update={**learnt, "strategy": strategy}), run, False, Observer())
        found.append([row["sites"] for row in _rows(run) if row["round"] == 1 and row["scope"] in ("local", "base")])
    assert found[0] != found[1]


def test_messages_are_as_large_as_those_of_one_mean_for_all(
    runs: tuple[Path, Path, dict[str, Any]], engine: Engine, tmp_path: Path
) -> None:
    _, _, summary = runs
    config = CONFIG.model_copy(update={"strategy": "fedavg", "rounds": 1})
    plain = simulate_on(engine, config, tmp_path / "run", False, Observer())
    apart = summary["downlink_bytes_per_site_round"] - plain["downlink_bytes_per_site_round"]
    assert abs(apart) < 100
    assert np.isclose(summary["uplink_bytes_per_site_round"], plain["uplink_bytes_per_site_round"], atol=20)


def test_a_pool_of_prompts_goes_to_each_site_in_part_and_a_resumed_run_draws_the_same(
    engine: Engine, tmp_path: Path
) -> None:
    options = {"n_ctx": 2, "experts": 2, "selection": "random"}
    config = CONFIG.model_copy(
        update={
            "method": "pfedmoap",
            "strategy": "",
            "sites": 5,
            "rounds": 3,
            "local_epochs": 1,
            "method_options": options,
        }
    )
    whole, half = tmp_path / "whole", tmp_path / "half"
    summary = simulate_on(engine, config, whole, False, HalfwayCopy(whole, half))
    assert simulate_on(engine, config, half, True, Observer())["metrics"] == summary["metrics"]
    assert _rows(half) == _rows(whole)
    prompt = 4 * summary["shared_parameters"]
    assert 3 * prompt < summary["downlink_bytes_per_site_round"] < 4 * prompt, "the shared, its own, and one other"
