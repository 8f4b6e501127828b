"""Classifiers that depend on the image, CoCoOp's, FedOTP's and PLOT's, against derivations one image at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.client import evaluation
from fedgraft.config.registry import METHODS
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.edge_export.export import export_bundle
from fedgraft.edge_export.options import BundleOptions
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.transport import TransportOptions, transport_plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.strategies.answers import Answer
from fedgraft.testing.rounds import round_after
from tests.plain_text import PlainTextTower

NAMES = ("blue circle", "green dotted heart", "seven", "x")
CLASSES = (0, 1, 3)
LABELS = torch.tensor([0, 1, 2, 1, 0])
ALL = ("cocoop", "fedotp", "plot")
NOT_EXPORTED = (*ALL, "tip-adapter", "pfedmoap")
Matrix = NDArray[np.float64]


def _adapter(backbone: Backbone, method: str, seed: int = 5, **options: Any) -> Adapter:
    found = METHODS.load(method)
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.",))
    adapter = found.adapter(vocabulary, found.parse_options(options), torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
            seed += 1
    return adapter


@pytest.fixture
def plain(random_clip_folder: Path) -> PlainTextTower:
    """The text tower, prompt by prompt."""
    return PlainTextTower(str(random_clip_folder))


@pytest.fixture
def clip(random_clip_folder: Path) -> Backbone:
    """The same weights as the package reads them."""
    return load_backbone(str(random_clip_folder))


def _unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(1)), dim=-1)


def _names() -> list[str]:
    return [NAMES[index] for index in CLASSES]


def _copies(adapter: Adapter) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in adapter.named_parameters()}


def _check(adapter: Adapter, plain: dict[str, Tensor], images: Tensor, cosines: Tensor) -> None:
    """Scores, loss and gradients from the cosines (B, C) of a derivation."""
    logits = adapter.vocabulary.backbone.logit_scale * cosines
    expected = (logits.exp().sum(1).log() - logits[range(len(LABELS)), LABELS]).mean()
    with torch.no_grad():
        scores = adapter.scores(images, adapter.class_features(CLASSES), CLASSES)
    assert torch.allclose(scores, cosines, atol=1e-5)
    loss = adapter.loss(images, LABELS, CLASSES)
    assert torch.allclose(loss, expected, rtol=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    for name, parameter in adapter.named_parameters():
        slope = plain[name].grad
        assert parameter.grad is not None
        assert slope is not None
        assert slope.norm() > 0
        assert (parameter.grad - slope).norm() <= 1e-4 * slope.norm()


def test_cocoop_has_a_prompt_for_every_image(clip: Backbone, plain: PlainTextTower) -> None:
    adapter, images = _adapter(clip, "cocoop", n_ctx=3), _unit(5, clip.dim)
    own = _copies(adapter)
    rows = []
    for image in images:
        hidden = (own["down.weight"] @ image + own["down.bias"]).clamp(min=0)
        shift = own["up.weight"] @ hidden + own["up.bias"]
        rows.append(plain.encode(torch.stack([v + shift for v in own["context"][0]]), _names()) @ image)
    _check(adapter, own, images, torch.stack(rows))


def _balanced(kernel: Matrix, thresh: float, max_iter: int) -> Matrix:
    """Sinkhorn's iteration: rows that sum to 1/M, columns that sum to 1/N."""
    patches, prompts = kernel.shape
    u, v = np.ones(patches), np.ones(prompts)
    for _ in range(max_iter):
        before = u
        u = (1 / patches) / (kernel @ v)
        v = (1 / prompts) / (kernel.T @ u)
        if np.abs(u - before).mean() < thresh:
            break
    return np.diag(u) @ kernel @ np.diag(v)


def _unbalanced(kernel: Matrix, mass: float, thresh: float, max_iter: int) -> Matrix:
    """Rows of 1/M at most, columns that sum to mass/N."""
    patches, prompts = kernel.shape
    to_rows, to_columns = np.diag(np.full(patches, patches)) @ kernel, np.diag(np.full(prompts, prompts / mass))
    u, v = np.ones(patches), np.ones(prompts)
    for _ in range(max_iter):
        before = v
        u = np.minimum(1 / (to_rows @ v), 1)
        v = 1 / (to_columns @ kernel.T @ u)
        if np.abs(v - before).mean() < thresh:
            break
    return np.diag(u) @ kernel @ np.diag(v)


@pytest.mark.parametrize(("eps", "mass", "thresh", "max_iter"), [(0.1, 0.8, 1e-3, 100), (0.5, 1.0, 0.0, 7)])
@pytest.mark.parametrize("method", ["fedotp", "plot"])
def test_patches_are_divided_among_the_prompts_as_the_papers_have_it(
    method: str, eps: float, mass: float, thresh: float, max_iter: int, clip: Backbone, plain: PlainTextTower
) -> None:
    options = {"n_ctx": 3, "eps": eps, "thresh": thresh, "max_iter": max_iter}
    options |= {"top_percent": mass} if method == "fedotp" else {"prompts": 3}
    adapter, images = _adapter(clip, method, **options), _unit(5, 10, clip.dim)
    own = _copies(adapter)
    contexts = [own["context"][0], own["own"][0]] if method == "fedotp" else list(own["context"])
    encoded = torch.stack([plain.encode(context, _names()) for context in contexts])
    rows = []
    for image in images:
        row = []
        for label in range(3):
            similarity = image[1:] @ encoded[:, label].T
            kernel = np.exp((similarity.detach().double().numpy() - 1) / eps)
            if method == "fedotp":
                found = _unbalanced(kernel, mass, thresh, max_iter)
            else:
                found = _balanced(kernel, thresh, max_iter)
            row.append((torch.from_numpy(found).float() * similarity).sum())
        rows.append(torch.stack(row))
    _check(adapter, own, images, torch.stack(rows))


def test_a_plan_moves_the_mass_that_it_is_given_to_the_nearest() -> None:
    similarity = torch.rand(4, 3, 20, 2, generator=torch.Generator().manual_seed(3))
    options = TransportOptions(thresh=1e-6, max_iter=1000)
    balanced = transport_plan(similarity, options)
    assert torch.allclose(balanced.sum(-1), torch.tensor(1 / 20), atol=1e-5)
    assert torch.allclose(balanced.sum(-2), torch.tensor(1 / 2), atol=1e-5)
    partial = transport_plan(similarity, options, 0.5, at_most=True)
    assert torch.allclose(partial.sum(-2), torch.tensor(0.5 / 2), atol=1e-5)
    assert float(partial.sum(-1).max()) <= 1 / 20 + 1e-4
    cost = [((1 - similarity) * plan).sum((-2, -1)) / plan.sum((-2, -1)) for plan in (partial, balanced)]
    assert (cost[0] < cost[1]).all()


@pytest.mark.parametrize("method", ["fedotp", "plot"])
def test_an_image_has_the_same_scores_whatever_is_scored_beside_it(method: str, clip: Backbone) -> None:
    adapter, images = _adapter(clip, method, n_ctx=3), _unit(6, 10, clip.dim)
    with torch.no_grad():
        features = adapter.class_features(CLASSES)
        together = adapter.scores(images, features, CLASSES)
        assert torch.allclose(adapter.scores(images[2:3], features, CLASSES), together[2:3], atol=1e-6)


def test_a_model_of_all_sites_has_the_shared_context_twice(clip: Backbone) -> None:
    adapter = _adapter(clip, "fedotp", n_ctx=3)
    assert set(adapter.personal()) == {"own"}
    adapter.load(adapter.impersonal(adapter.shared()))
    contexts = adapter.prompts()  # type: ignore[operator]
    assert torch.equal(contexts[0], contexts[1])


def test_half_precision_keeps_the_scores_to_a_thousandth(clip: Backbone) -> None:
    adapter, images = _adapter(clip, "plot", n_ctx=3, cache="float16"), _unit(5, 10, clip.dim)
    with torch.no_grad():
        features = adapter.class_features(CLASSES)
        exact = adapter.scores(images, features, CLASSES)
        assert torch.allclose(adapter.scores(images.half().float(), features, CLASSES), exact, atol=2e-3)


@pytest.mark.parametrize("method", ALL)
def test_sites_are_averaged_by_their_examples(method: str, clip: Backbone) -> None:
    sites = [_adapter(clip, method, seed).shared() for seed in range(3)]
    answers = [Answer(i, {n: v.numpy() for n, v in own.items()}, 10 * (i + 1), 0.0) for i, own in enumerate(sites)]
    rule = METHODS.load(method).rule_for(None)
    after = rule.aggregate(answers, round_after(answers[0].arrays, 3), {}).arrays
    assert after
    for name, array in after.items():
        expected = sum(own[name].double() * (i + 1) / 6 for i, own in enumerate(sites))
        assert np.allclose(array, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", NOT_EXPORTED)
def test_what_depends_on_the_image_is_not_exported_and_that_is_said_before_anything_is_loaded(
    method: str, tmp_path: Path
) -> None:
    """The backbone is none that could be loaded, and the run has trained nothing."""
    directory = RunDirectory(tmp_path / "run")
    directory.create(RunConfig.build({"method": method, "data": "digits", "backbone": str(tmp_path / "none")}))
    with pytest.raises(UserError, match=rf"cannot be exported.*{method}.* is more, because"):
        export_bundle(tmp_path / "run", tmp_path / "out", BundleOptions())


@pytest.mark.parametrize(("method", "shared", "personal"), [("cocoop", 35_360, 0), ("fedotp", 8192, 8192)])
def test_parameters_at_vit_b16_are_those_of_the_papers(method: str, shared: int, personal: int) -> None:
    """Width and features of 512: 4 x 512 and 512 x 32 + 32 + 32 x 512 + 512; 16 x 512 each."""
    options = METHODS.load(method).parse_options({})
    context = options.n_ctx * 512
    network = (512 * 32 + 32 + 32 * 512 + 512) if method == "cocoop" else 0
    assert context + network == shared
    assert len(METHODS.load(method).adapter.personal_names) * context == personal


def test_cocoops_cost_is_said_in_one_line() -> None:
    found = METHODS.load("cocoop")
    sentence = found.adapter.cost(found.parse_options({}), images=1001, batch_size=10, classes=7)
    assert "each of 1,001 images" in sentence
    assert "takes about 101 such" in sentence
    assert "\n" not in sentence
    assert not METHODS.load("promptfl").adapter.cost(None, images=1001, batch_size=10, classes=7)


def test_a_scope_without_images_is_evaluated(clip: Backbone) -> None:
    """A site that holds nothing of another's domain has no patches either."""
    nothing = evaluation.TestSet(np.empty(0, np.int64), torch.empty(0, dtype=torch.long), CLASSES)
    for method in ALL:
        model = evaluation.Model(_adapter(clip, method, n_ctx=3), lambda positions: torch.empty(0, clip.dim))
        (found,) = evaluation.evaluate_together([model], [{"local": nothing}])
        assert found["local"].total == 0
