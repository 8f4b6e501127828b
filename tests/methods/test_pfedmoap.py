"""pFedMoAP's mixture of prompts: the gate head by head, the neighbours, the pool."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.config.registry import METHODS
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import AdapterContext
from fedgraft.methods.pfedmoap import Gate, PFedMoAP, PFedMoAPOptions
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Rule
from fedgraft.testing.rounds import round_after
from tests.plain_text import PlainTextTower

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven", "x"), (0, 1, 3)
LABELS = torch.tensor([0, 1, 2, 1, 0])


@pytest.fixture
def clip(random_clip_folder: Path) -> Backbone:
    """A random backbone."""
    return load_backbone(str(random_clip_folder))


def _adapter(backbone: Backbone, seed: int = 4, site: int | None = 1, **options: Any) -> PFedMoAP:
    loaded = METHODS.load("pfedmoap")
    adapter = loaded.adapter(
        Vocabulary(backbone, NAMES, ("a photo of a {}.",)),
        loaded.parse_options({"n_ctx": 3, **options}),
        torch.Generator().manual_seed(seed),
        AdapterContext(site=site, sites=4),
    )
    assert isinstance(adapter, PFedMoAP)
    adapter.load({"context": 20 * adapter.context.detach(), "pool": 20 * adapter.pool.detach()})
    return adapter


def _rule(**options: Any) -> Rule:
    loaded = METHODS.load("pfedmoap")
    return loaded.rule_for(loaded.parse_options({"n_ctx": 3, **options}))


def test_loss_and_gradients_are_those_of_the_gate_written_out(clip: Backbone, random_clip_folder: Path) -> None:
    width, heads = clip.dim // 2, 4
    adapter = _adapter(clip, experts=3, heads=heads, gate_dim=width, weight=0.7, scaling=2.0)
    images = F.normalize(torch.randn(5, clip.dim, generator=torch.Generator().manual_seed(1)), dim=-1)
    plain = {name: value.detach().clone().requires_grad_() for name, value in adapter.named_parameters()}
    tower, names = PlainTextTower(str(random_clip_folder)), [NAMES[index] for index in CLASSES]
    assert len(adapter.pool) == 3
    contexts = [plain["context"][0], *plain["pool"][1:].detach()]
    experts = [tower.encode(context, names) for context in contexts]
    logits = []
    for image in images:
        seen, row = image[::2], []
        query = plain["gate.queries.weight"] @ seen + plain["gate.queries.bias"]
        for label in range(3):
            parts = []
            for head in range(heads):
                own = slice(head * width // heads, (head + 1) * width // heads)
                products = torch.stack(
                    [query[own] @ (plain["gate.keys.weight"] @ expert[label, ::2])[own] for expert in experts]
                )
                weights = (2.0 * products).softmax(0)
                values = [(plain["gate.values.weight"] @ expert[label, ::2])[own] for expert in experts]
                parts.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
            taken = plain["gate.out.weight"] @ torch.cat(parts)
            row.append(clip.logit_scale * (0.7 * image @ experts[0][label] + seen @ taken))
        logits.append(torch.stack(row))
    rows = torch.stack(logits)
    expected = (rows.logsumexp(1) - rows[range(5), LABELS]).mean()
    loss = adapter.loss(images, LABELS, CLASSES)
    assert torch.allclose(loss, expected, rtol=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    for name, parameter in adapter.named_parameters():
        if name == "pool":
            continue
        slope = plain[name].grad
        assert parameter.grad is not None
        assert slope is not None
        assert slope.norm() > 0
        assert (parameter.grad - slope).norm() <= 1e-4 * slope.norm()


def test_a_site_is_tested_with_its_own_latest_prompt_and_trains_from_the_shared_one(clip: Backbone) -> None:
    """Otherwise every site would be tested with the mean that personalization is there to replace."""
    adapter, everyone = _adapter(clip), _adapter(clip, site=None)
    assert torch.equal(adapter.prompts()[0], adapter.pool[0])
    assert torch.equal(adapter.training_prompts(), adapter.context)
    assert torch.equal(everyone.prompts(), everyone.context)
    with torch.no_grad():
        images = F.normalize(torch.randn(5, clip.dim), dim=-1)
        adapter.context.copy_(adapter.pool[:1])
        mixed = adapter.mixed(images, adapter.class_features(CLASSES), CLASSES)
        assert torch.equal(adapter.scores(images, adapter.class_features(CLASSES), CLASSES), mixed)


def _pool(*values: float) -> dict[str, Any]:
    rows = [np.full((3, 4), value, np.float32) for value in values]
    return {"context": np.zeros((1, 3, 4), np.float32), "pool": np.stack(rows)}


def _received(shared: dict[str, Any], site: int, state: Any = None, **options: Any) -> list[float]:
    pool: Any = _rule(**options).own(site, shared, state or {})["pool"]
    return [float(row[0, 0]) for row in pool]


def test_a_site_receives_its_own_latest_prompt_and_the_nearest_others() -> None:
    shared = _pool(5.0, 1.0, 0.2, 1.5)
    assert _received(shared, 1, experts=3) == pytest.approx([1.0, 1.5, 0.2])
    assert _received(shared, 0, experts=2) == pytest.approx([5.0, 1.5])
    assert _received(shared, 2, experts=10) == pytest.approx([0.2, 1.0, 1.5, 5.0])
    assert _received(shared, 7, experts=3) == pytest.approx([0.0, 0.2, 1.0]), "a newcomer begins at the shared prompt"
    assert set(_rule().common(shared)) == {"context"}


def test_drawn_others_are_the_same_when_a_round_is_repeated_and_others_in_the_next() -> None:
    shared, options = _pool(*range(12)), {"experts": 4, "selection": "random"}
    answers = [Answer(0, {"context": np.ones((1, 3, 4), np.float32)}, 10, 0.0)]
    drawn = [_rule(**options).aggregate(answers, round_after(shared, 12, number), {}) for number in (1, 1, 2)]
    chosen = [_received(outcome.arrays, 5, outcome.state, **options) for outcome in drawn]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0][0] == 5.0
    assert len(set(chosen[0])) == 4
    assert {name: array.shape for name, array in drawn[0].state.items()} == _rule(**options).memory(
        {"pool": (12, 3, 4)}
    )


def test_other_neighbours_are_mixed_in_after_the_next_message(clip: Backbone) -> None:
    adapter = _adapter(clip, experts=2)
    before = adapter.neighbours_features(CLASSES)
    adapter.load({"pool": adapter.pool.detach().flip(0)})
    assert not torch.equal(adapter.neighbours_features(CLASSES), before)


def test_a_site_without_others_mixes_its_own_prompt_alone(clip: Backbone) -> None:
    loaded = METHODS.load("pfedmoap")
    alone = loaded.adapter(
        Vocabulary(clip, NAMES, ("a photo of a {}.",)),
        loaded.parse_options({"n_ctx": 3}),
        torch.Generator().manual_seed(0),
        AdapterContext(site=0, sites=1),
    )
    images = F.normalize(torch.randn(5, clip.dim, generator=torch.Generator().manual_seed(1)), dim=-1)
    assert torch.isfinite(alone.loss(images, LABELS, CLASSES))


def test_the_pool_keeps_the_latest_prompt_of_each_site_and_the_mean_is_weighted(clip: Backbone) -> None:
    previous = {name: value.numpy().copy() for name, value in _adapter(clip, site=None).server_state().items()}
    sites = [{name: value.numpy() for name, value in _adapter(clip, seed).shared().items()} for seed in range(3)]
    assert all(set(own) == {"context"} for own in sites)
    answers = [Answer(site, own, n, 0.0) for site, own, n in zip((0, 1, 3), sites, (10, 20, 50), strict=True)]
    rule = _rule()
    kept, left_out = rule.check_answers(answers, previous, 1)
    assert (len(kept), left_out) == (3, [])
    after = rule.aggregate(kept, round_after(previous, 3), {}).arrays
    mean = sum(own["context"].astype(float) * n for own, n in zip(sites, (10, 20, 50), strict=True)) / 80
    assert np.allclose(after["context"], mean, rtol=1e-4, atol=1e-7)
    for place, own in zip((0, 1, 3), sites, strict=True):
        assert np.array_equal(after["pool"][place], own["context"][0])
    assert np.array_equal(after["pool"][2], previous["pool"][2]), "who did not answer keeps its prompt"


def test_a_model_of_all_sites_classifies_with_the_shared_prompt_alone(clip: Backbone) -> None:
    adapter = _adapter(clip, site=None)
    adapter.load(adapter.impersonal(adapter.shared()))
    images = F.normalize(torch.randn(5, clip.dim), dim=-1)
    with torch.no_grad():
        texts = adapter.class_features(CLASSES)
        assert torch.allclose(adapter.scores(images, texts, CLASSES), 0.5 * images @ texts.T, atol=1e-6)


def test_a_gate_narrower_than_its_heads_is_refused() -> None:
    with pytest.raises(UserError, match="at least one feature for each of 8 heads"):
        METHODS.load("pfedmoap").parse_options({"gate_dim": 4})


def test_the_gate_has_the_published_size_at_512_features() -> None:
    """Four maps of 128 x 128; of their biases only that of the queries does anything."""
    gate = Gate(512, PFedMoAPOptions())
    assert (gate.width, gate.heads) == (128, 8)
    assert sum(parameter.numel() for parameter in gate.parameters()) == 4 * 128 * 128 + 128
    seen: Tensor = gate.reduced(torch.arange(512.0))
    assert torch.equal(seen, torch.arange(0.0, 512.0, 4.0))
