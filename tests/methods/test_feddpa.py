"""FedDPA's two low-rank adapters against a separate derivation: two models, one loss, one aggregate."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.config.registry import METHODS
from fedgraft.methods.adapter import AdapterContext
from fedgraft.methods.feddpa import FedDPA
from fedgraft.methods.peft_folder import save_as_peft
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.answers import Answer
from fedgraft.testing.rounds import round_after

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven"), (0, 1, 2)
LABELS = torch.tensor([0, 1, 2, 1, 0, 2])


@pytest.fixture
def clip(random_clip_folder: Path) -> Backbone:
    """A random backbone."""
    return load_backbone(str(random_clip_folder))


def _adapter(backbone: Backbone, seed: int = 4, **options: Any) -> FedDPA:
    """An adapter with something in every factor."""
    loaded = METHODS.load("feddpa")
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.",))
    parsed = loaded.parse_options({"rank": 2, "alpha": 3.0, **options})
    made = loaded.adapter(vocabulary, parsed, torch.Generator().manual_seed(seed), AdapterContext(site=0, sites=3))
    draw = torch.Generator().manual_seed(seed)
    values = {n: 0.3 * torch.randn(p.shape, generator=draw) for n, p in made.named_parameters() if p.requires_grad}
    made.load(values)
    return cast(FedDPA, made)


def _images(backbone: Backbone) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return F.normalize(torch.rand(6, backbone.dim, generator=draw), dim=-1)


def _plain_features(folder: Path, changes: dict[str, Tensor]) -> Tensor:
    """The hand-written prompts through transformers' text model, whose weights are changed."""
    model = CLIPModel.from_pretrained(folder, attn_implementation="eager").eval().requires_grad_(False)
    tokens = AutoTokenizer.from_pretrained(folder)(
        [f"a photo of a {n}." for n in NAMES], return_tensors="pt", padding=True
    )
    weights = dict(model.text_model.named_parameters())
    changed = {
        f"{name}.weight": weights[f"{name}.weight"] + change
        for name, change in ((name.removeprefix("text_model."), change) for name, change in changes.items())
    }
    pooled = torch.func.functional_call(model.text_model, changed, kwargs=dict(tokens)).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def _plain_loss(folder: Path, backbone: Backbone, changes: dict[str, Tensor], images: Tensor) -> Tensor:
    """Cross-entropy over scaled cosines."""
    return F.cross_entropy(backbone.logit_scale * images @ _plain_features(folder, changes).T, LABELS)


@pytest.mark.parametrize("learning", ["iterative", "sequential"])
def test_loss_and_gradients_are_those_of_two_models(clip: Backbone, random_clip_folder: Path, learning: str) -> None:
    adapter, images = _adapter(clip, learning=learning, weight=0.3), _images(clip)
    adapter.on_training_begin()
    received = {name: own.detach().clone() for name, own in adapter.named_parameters()}
    with torch.no_grad():
        for own in adapter.factors.values():
            own.lora_B.mul_(1.5)
    plain = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in adapter.named_parameters()}
    both, local = {}, {}
    for number, name in enumerate(sorted(adapter.factors)):
        kept = 3.0 / 2 * received[f"{name}.lora_B"] @ received[f"{name}.lora_A"]
        both[name] = 3.0 / 2 * plain[f"{name}.lora_B"] @ plain[f"{name}.lora_A"]
        change = 3.0 / 2 * plain[f"local_{number}.lora_B"] @ plain[f"local_{number}.lora_A"]
        local[name] = change if learning == "sequential" else 0.7 * kept + 0.3 * change
    expected = sum(_plain_loss(random_clip_folder, clip, changes, images) for changes in (both, local))
    loss = adapter.loss(images, LABELS, CLASSES)
    assert torch.allclose(loss, cast(Tensor, expected), rtol=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    cast(Tensor, expected).backward()  # type: ignore[no-untyped-call]
    for name, parameter in adapter.named_parameters():
        if not parameter.requires_grad:
            continue
        slope = plain[name].grad
        assert parameter.grad is not None
        assert slope is not None
        assert slope.norm() > 0
        assert (parameter.grad - slope).norm() <= 1e-4 * slope.norm()


def test_a_site_classifies_with_both_weighted_by_how_alike_its_images_are(
    clip: Backbone, random_clip_folder: Path
) -> None:
    adapter, images = _adapter(clip, scale=0.8), _images(clip)
    adapter.on_training_images(images[:, None], LABELS, CLASSES)
    cosines = [float(images[i] @ images[j]) for i in range(6) for j in range(6) if i != j]
    weight = 0.8 * float(np.mean(cosines))
    assert float(adapter.local_weight) == pytest.approx(weight, rel=1e-5)
    changes = {}
    for number, name in enumerate(sorted(adapter.factors)):
        parts = (adapter.factors[name], cast(Any, adapter.get_submodule(f"local_{number}")))
        both, own = (3.0 / 2 * part.lora_B.detach() @ part.lora_A.detach() for part in parts)
        changes[name] = (1 - weight) * both + weight * own
    expected = _plain_features(random_clip_folder, changes)
    with torch.no_grad():
        assert torch.allclose(adapter.class_features(CLASSES), expected, atol=1e-5)


def test_one_image_is_as_alike_as_can_be(clip: Backbone) -> None:
    adapter = _adapter(clip)
    adapter.on_training_images(_images(clip)[:1, None], LABELS[:1], CLASSES)
    assert float(adapter.local_weight) == pytest.approx(0.5)


def test_sequential_learning_begins_at_the_adapter_received(clip: Backbone) -> None:
    adapter = _adapter(clip, learning="sequential")
    adapter.on_training_begin()
    for name, own in adapter.local.items():
        assert torch.equal(own.lora_A, adapter.factors[name].lora_A)
        assert torch.equal(own.lora_B, adapter.factors[name].lora_B)


def test_three_unequal_sites_average_the_global_adapter_and_keep_their_own(clip: Backbone) -> None:
    sites, examples = [_adapter(clip, seed) for seed in range(3)], (10, 30, 20)
    answers = [
        Answer(number, {name: value.numpy() for name, value in own.shared().items()}, count, 0.0)
        for number, (own, count) in enumerate(zip(sites, examples, strict=True))
    ]
    assert not any("local" in name for name in answers[0].arrays)
    after = METHODS.load("feddpa").rule_for(None).aggregate(answers, round_after(answers[0].arrays, 3), {}).arrays
    for name, array in after.items():
        mean = sum(a.arrays[name].astype(float) * n for a, n in zip(answers, examples, strict=True)) / 60
        assert np.allclose(array, mean, rtol=1e-4, atol=1e-7)


def test_a_model_of_all_sites_has_the_global_adapter_alone(clip: Backbone) -> None:
    adapter, alone = _adapter(clip), METHODS.load("fedit")
    adapter.local_weight.data.fill_(0.4)
    vocabulary = Vocabulary(clip, NAMES, ("a photo of a {}.",))
    options = alone.parse_options({"rank": 2, "alpha": 3.0})
    plain = alone.adapter(vocabulary, options, torch.Generator().manual_seed(0), AdapterContext())
    plain.load(adapter.shared())
    adapter.load(adapter.impersonal(adapter.shared()))
    with torch.no_grad():
        assert torch.allclose(adapter.class_features(CLASSES), plain.class_features(CLASSES), atol=1e-5)


def test_peft_gets_the_weighted_sum(clip: Backbone, tmp_path: Path) -> None:
    adapter = _adapter(clip)
    adapter.local_weight.data.fill_(0.4)
    save_as_peft(adapter.as_peft(), tmp_path, "base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for name in adapter.factors:
        right, left = (tensors[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
        assert len(right) == 4
        assert torch.allclose(left @ right, adapter.change(name), atol=1e-6)
