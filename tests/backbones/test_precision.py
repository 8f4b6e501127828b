"""bfloat16 stays close to float32, and every tensor of a step is on the device of the weights."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from fedgraft import Resources, RunConfig, UserError, simulate
from fedgraft.backbones import Backbone, ClassTokens, load_backbone
from fedgraft.backbones.clip.text_tower import ClipTextTower
from fedgraft.backbones.feature_store import FeatureStore
from fedgraft.backbones.loading import mini_folder
from fedgraft.core.observer import Observer
from fedgraft.methods.fedpgp import METHOD
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on

NAMES = ("red circle", "dog", "a very long name of something else", "cup")


@pytest.mark.parametrize("which", ["mini", "random"])
def test_bfloat16_features_and_gradients_are_close(which: str, mini: Backbone, random_clip_folder: Path) -> None:
    """Features within 0.02 and gradients within 5 %, in float32 and of unit norm; the fingerprint is the same."""
    name = "mini" if which == "mini" else str(random_clip_folder)
    full, half = load_backbone(name), load_backbone(name, "bfloat16")
    assert half.fingerprint == full.fingerprint
    assert half.logit_scale == full.logit_scale
    context = 0.02 * torch.randn(2, 4, full.text.width, generator=torch.Generator().manual_seed(0))
    results = []
    for backbone in (full, half):
        leaf = context.clone().requires_grad_()
        features = backbone.text.encode_prompts(leaf, backbone.text.tokenize_names(NAMES))
        features.pow(3).sum().backward()
        assert features.dtype == torch.float32
        assert torch.allclose(features.norm(dim=-1), torch.ones(2, 4), atol=1e-5)
        results.append((features.detach(), leaf.grad))
    assert torch.allclose(results[0][0], results[1][0], atol=0.02)
    assert not torch.equal(results[0][0], results[1][0])
    assert (results[0][1] - results[1][1]).norm() < 0.05 * results[0][1].norm()


def test_features_of_another_precision_are_kept_apart(mini: Backbone, tmp_path: Path) -> None:
    """A store never mixes the two."""
    half = load_backbone("mini", "bfloat16")
    assert FeatureStore(tmp_path, half).folder != FeatureStore(tmp_path, mini).folder


def test_a_run_in_bfloat16_learns_as_well(engine: Engine, tmp_path: Path) -> None:
    """The last round's accuracy is within three points of float32's."""
    runs = {}
    for precision in ("float32", "bfloat16"):
        config = RunConfig(data="digits", sites=2, rounds=4, shots=8, precision=precision)
        summary = simulate_on(engine, config, tmp_path / precision, False, Observer())
        runs[precision] = summary["metrics"]["local"]
    assert runs["bfloat16"] == pytest.approx(runs["float32"], abs=3)


def test_every_tensor_of_a_step_is_on_the_device_of_the_weights(mini: Backbone) -> None:
    """The meta device computes shapes alone and refuses to mix with others, as a GPU does: this needs none."""
    config = CLIPConfig.from_pretrained(mini_folder())
    tower = ClipTextTower(CLIPModel(config).to("meta").requires_grad_(False), mini.text._tokenizer)
    real = mini.text.tokenize_names(NAMES)
    tokens = ClassTokens(real.ids.to("meta"), real.ends.to("meta"))
    tokens.__dict__.update(kept=real.kept.to("meta"), last=real.last.to("meta"))
    assert tower.embed_words("a photo of a").is_meta
    vocabulary = Vocabulary(_OnMeta(tower), NAMES, ("a {}",))
    vocabulary.__dict__.update(zero_shot=torch.empty(4, config.projection_dim, device="meta"))
    vocabulary._tokens[0, 1, 2, 3] = tokens
    adapter = METHOD.adapter(vocabulary, METHOD.parse_options({"n_ctx": 4}), torch.Generator())
    images, labels = torch.empty(5, config.projection_dim, device="meta"), torch.zeros(5, dtype=int, device="meta")
    adapter.loss(images, labels, (0, 1, 2, 3)).backward()
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in adapter.parameters())
    deep = torch.empty(1, 1, 4, tower.width, device="meta", requires_grad=True)
    tower.encode_prompts(torch.empty(1, 4, tower.width, device="meta"), tokens, deep).sum().backward()
    assert deep.grad is not None


@pytest.mark.parametrize("gpus", [-1, 64])
def test_gpus_that_are_not_there_are_one_sentence(gpus: float, tmp_path: Path) -> None:
    """Before anything is computed."""
    with pytest.raises(UserError, match="GPUs; this machine has"):
        simulate(RunConfig(sites=2, rounds=1), tmp_path / "run", resources=Resources(gpus_per_worker=gpus))
    assert not (tmp_path / "run").exists()


class _OnMeta:
    """What an adapter reads of a backbone."""

    device, logit_scale = torch.device("meta"), 100.0

    def __init__(self, text: ClipTextTower) -> None:
        self.text = text
