"""Low-rank methods over rounds: sites that miss one, a round that is repeated, ranks that differ; what is saved."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoTokenizer, CLIPModel

from fedgraft import RunConfig, UserError
from fedgraft.backbones.loading import mini_folder
from fedgraft.cli.main import main
from fedgraft.client.evaluation import ScopeResult
from fedgraft.client.loaded_run import SimulatedRun
from fedgraft.client.site import Site, evaluate_sites, train_sites
from fedgraft.core.observer import Observer
from fedgraft.edge_export.adapter_folder import save_adapter, trained_adapter
from fedgraft.flower.messages import Arrays
from fedgraft.runs.checkpoints import Checkpoint
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.server.preparation import prepare
from fedgraft.strategies.answers import Answer
from fedgraft.testing.rounds import round_after
from tests.simulation.conftest import open_once

CASES = {
    "fedsa-lora": {"rank": 2},
    "fedex-lora": {"rank": 2},
    "flora": {"ranks": "1,3"},
    "flexlora": {"ranks": "1,3", "tower": "both", "layers": 1},
}


class Run:
    """Rounds without Flower: what the sites answer goes through the method's own rule."""

    def __init__(self, method: str, folder: Path) -> None:
        options = {"templates": 0, **CASES[method]}
        self.config = RunConfig(
            method=method, data="digits", sites=3, shots=4, local_epochs=1, lr=0.02, method_options=options
        )
        coordinator = prepare(self.config, folder, False, Observer(), open_examples=open_once)
        assert coordinator is not None
        coordinator.directory.unlock()
        self.rule, self.folder = coordinator.plan.composition.rule, folder
        self.start, self.fingerprint = coordinator.initial(), coordinator.backbone.fingerprint
        self.errors: Mapping[str, float] = {}

    def sites(self, numbers: tuple[int, ...]) -> list[Site]:
        loaded = SimulatedRun(self.config, self.folder)  # as a process that has just begun
        return [Site(loaded, 0, number) for number in numbers]

    def round(self, arrays: Arrays, server_round: int, numbers: tuple[int, ...] = (0, 1, 2)) -> Arrays:
        answers = list(train_sites(self.sites(numbers), arrays, server_round).values())
        kept, left_out = self.rule.check_answers([a for a in answers if isinstance(a, Answer)], arrays, server_round)
        assert (len(kept), left_out) == (len(numbers), [])
        outcome = self.rule.aggregate(kept, round_after(arrays, len(numbers), server_round, initial=self.start), {})
        self.errors = outcome.figures
        return outcome.arrays

    def save(self, arrays: Arrays, server_round: int) -> None:
        RunDirectory(self.folder).checkpoints.save(Checkpoint(0, server_round, arrays, []), self.fingerprint)

    def evaluate(self, arrays: Arrays, server_round: int) -> dict[int, dict[str, ScopeResult] | str]:
        return evaluate_sites(self.sites((0, 1, 2)), arrays, server_round)


@pytest.mark.parametrize("method", CASES)
def test_a_round_repeated_by_new_processes_after_a_kill_gives_the_same(method: str, tmp_path: Path) -> None:
    """Whatever a site keeps, and whoever took part in the round before."""
    run = Run(method, tmp_path)
    first = run.round(run.start, 1, (0, 2))
    second = run.round(first, 2)
    again = run.round(first, 2)
    assert second.keys() == again.keys() == run.start.keys()
    assert all(np.array_equal(second[name], again[name]) for name in second)
    assert all(array.shape == run.start[name].shape for name, array in second.items())
    before, after = run.evaluate(second, 2), run.evaluate(again, 2)
    for site in range(3):
        one, other = before[site], after[site]
        assert isinstance(one, dict)
        assert isinstance(other, dict)
        assert all(np.array_equal(one[scope].confusion, other[scope].confusion) for scope in one)


@pytest.mark.parametrize("method", ["fedex-lora", "flora"])
def test_a_site_that_missed_a_round_goes_on_from_where_the_others_do(method: str, tmp_path: Path) -> None:
    run = Run(method, tmp_path)
    arrays = run.round(run.round(run.start, 1, (0, 2)), 2, (0, 2))
    assert run.errors["product_error"] < 1e-6
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    present, absent = (site.adapter(tensors, 2) for site in run.sites((0, 1)))
    classes = tuple(range(5))
    with torch.no_grad():
        assert torch.allclose(present.class_features(classes), absent.class_features(classes), atol=1e-6)
        assert not torch.allclose(absent.class_features(classes), absent.vocabulary.zero_shot[list(classes)], atol=1e-3)


def test_fedsa_keeps_b_at_the_site_and_sends_a(tmp_path: Path) -> None:
    run = Run("fedsa-lora", tmp_path)
    arrays = run.round(run.start, 1)
    assert all(name.endswith("lora_A") for name in arrays)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    one, other = (site.adapter(tensors, 1) for site in run.sites((0, 1)))
    for name, value in one.personal().items():
        assert name.endswith("lora_B")
        assert not torch.equal(value, other.personal()[name])
    assert all(torch.equal(value, other.shared()[name]) for name, value in one.shared().items())


@pytest.mark.parametrize(("method", "site"), [("fedsa-lora", 1), ("fedex-lora", None), ("flexlora", 0)])
def test_the_adapter_that_a_run_has_trained_is_written_for_peft(
    method: str, site: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = Run(method, tmp_path / "run"), tmp_path / "adapter"
    arrays = run.round(run.start, 1)
    run.save(arrays, 1)
    words = ["fedgraft", "adapter", str(run.folder), "--site", "global" if site is None else str(site)]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    adapter = run.sites((site or 0,))[0].adapter(tensors, 1)
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(mini_folder()).eval(), out).base_model.model
    names, templates = adapter.vocabulary.class_names, adapter.vocabulary.templates
    tokens = AutoTokenizer.from_pretrained(mini_folder())
    ids = tokens([t.format(name) for name in names for t in templates], padding=True, return_tensors="pt")
    classes = tuple(range(len(names)))
    with torch.no_grad():
        each = F.normalize(model.text_projection(model.text_model(**ids).pooler_output), dim=-1)
        plain = F.normalize(each.view(len(names), len(templates), -1).mean(1), dim=-1)
        assert torch.allclose(adapter.class_features(classes), plain, atol=1e-5)
        assert torch.allclose(trained_adapter(run.folder, site).class_features(classes), plain, atol=1e-5)


def test_a_mistake_is_found_before_any_image_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGRAFT_CACHE", str(tmp_path))
    config = RunConfig(method="fedit", data="digits", method_options={"targets": "query"})
    with pytest.raises(UserError, match="'query'"):
        prepare(config, tmp_path / "run", False, Observer())
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_for_peft_is_one_sentence(tmp_path: Path) -> None:
    run = Run("fedsa-lora", tmp_path / "run")
    out = tmp_path / "adapter"
    with pytest.raises(UserError, match="trained nothing"):
        save_adapter(run.folder, out, site=0)
    run.save(run.round(run.start, 1, (0,)), 1)
    with pytest.raises(UserError, match="server has no adapter"):
        save_adapter(run.folder, out)
    with pytest.raises(UserError, match="Site 1 has no personal parameters"):
        save_adapter(run.folder, out, site=1)
    with pytest.raises(UserError, match="its sites are 0 to 2"):
        save_adapter(run.folder, out, site=3)
    with pytest.raises(UserError, match="not empty"):
        save_adapter(run.folder, tmp_path / "run", site=0)
    assert not out.exists()
