"""ProGrad, PromptFolio, FedPHA and the linear probe against plain derivations of their own, one prompt at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedgraft.backbones import load_backbone
from fedgraft.config.registry import METHODS
from fedgraft.core.errors import UserError
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.vocabulary import Vocabulary
from tests.plain_text import PlainTextTower

NAMES = ("blue circle", "green dotted heart", "seven", "x")
CLASSES = (0, 1, 3)
TEMPLATE = "a photo of a {}."


def _adapter(folder: Path, method: str, **options: Any) -> Adapter:
    found = METHODS.load(method)
    vocabulary = Vocabulary(load_backbone(str(folder)), NAMES, (TEMPLATE,))
    adapter = found.adapter(vocabulary, found.parse_options(options), torch.Generator().manual_seed(5))
    adapter.load({name: 20 * value for name, value in {**adapter.shared(), **adapter.personal()}.items()})
    return adapter


@pytest.fixture
def plain(random_clip_folder: Path) -> PlainTextTower:
    """The text tower, prompt by prompt."""
    return PlainTextTower(str(random_clip_folder))


@pytest.fixture
def images(plain: PlainTextTower) -> torch.Tensor:
    """Unit-norm image features of eleven images."""
    drawn = torch.randn(11, plain.model.config.projection_dim, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(drawn, dim=-1)


def _copies(adapter: Adapter, *names: str) -> list[torch.Tensor]:
    parameters = dict(adapter.named_parameters())
    return [parameters[name].detach().clone().requires_grad_() for name in names]


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def _log_loss(plain: PlainTextTower, images: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = plain.model.logit_scale.exp() * images @ rows.T
    return -logits.log_softmax(-1)[torch.arange(len(labels)), labels].mean()


def _names() -> list[str]:
    return [NAMES[index] for index in CLASSES]


def _same(mine: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((mine - other).norm() <= 1e-4 * other.norm())


# --- ProGrad --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("conflict", [True, False])
def test_prograd_removes_what_goes_against_the_written_prompts_and_nothing_else(
    weight: float,
    temperature: float,
    conflict: bool,
    random_clip_folder: Path,
    plain: PlainTextTower,
    images: torch.Tensor,
) -> None:
    adapter = _adapter(random_clip_folder, "prograd", n_ctx=3, weight=weight, temperature=temperature)
    (context,) = _copies(adapter, "context")
    scale = plain.model.logit_scale.exp()
    with torch.no_grad():
        tokens = plain.tokenizer([TEMPLATE.format(name) for name in _names()], padding=True, return_tensors="pt")
        written = _unit(plain.model.text_projection(plain.model.text_model(**tokens).pooler_output))
        teacher = scale * images @ written.T
    learnt = plain.encode(context[0], _names())
    target = (teacher / temperature).softmax(-1)
    student = (scale * images @ learnt.T / temperature).log_softmax(-1)
    divergence = (target * (target.log() - student)).sum(-1).mean() * temperature**2
    (to_prior,) = torch.autograd.grad(divergence, context, retain_graph=True)
    direction = to_prior / to_prior.norm()
    for seed in range(20):  # until the labels ask for what the case needs
        labels = torch.randint(3, (11,), generator=torch.Generator().manual_seed(seed))
        task = _log_loss(plain, images, learnt, labels)
        (to_task,) = torch.autograd.grad(task, context, retain_graph=True)
        along = (to_task * direction).sum()
        if (float(along) < 0) == conflict:
            break
    assert (float(along) < 0) == conflict
    expected = to_task - weight * along * direction if conflict else to_task
    loss = adapter.loss(images, labels, CLASSES)
    assert torch.allclose(loss, task, rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss, list(adapter.parameters()))
    assert _same(gradient, expected)


# --- PromptFolio ----------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.0, 0.2, 1.0])
def test_promptfolio_mixes_the_features_of_both_contexts(
    theta: float, random_clip_folder: Path, plain: PlainTextTower, images: torch.Tensor
) -> None:
    adapter = _adapter(random_clip_folder, "promptfolio", n_ctx=3, theta=theta)
    context, own = _copies(adapter, "context", "own")
    labels = torch.arange(11) % 3
    mixed = (1 - theta) * plain.encode(context[0], _names()) + theta * plain.encode(own[0], _names())
    expected = _log_loss(plain, images, _unit(mixed), labels)
    expected.backward()
    loss = adapter.loss(images, labels, CLASSES)
    assert torch.allclose(loss, expected, rtol=1e-5)
    loss.backward()
    for name, other in (("context", context), ("own", own)):
        mine = dict(adapter.named_parameters())[name].grad
        assert mine is not None
        assert other.grad is not None
        assert _same(mine, other.grad)
    assert set(adapter.personal()) == {"own"}


# --- FedPHA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own_n_ctx", "ratio", "alpha"), [(0, 0.8, 1.0), (2, 0.5, 1.5), (7, 1.0, 0.0)])
def test_fedpha_has_the_four_terms_of_its_paper(
    own_n_ctx: int, ratio: float, alpha: float, random_clip_folder: Path, plain: PlainTextTower, images: torch.Tensor
) -> None:
    options = {"n_ctx": 5, "own_n_ctx": own_n_ctx, "ratio": ratio, "alpha": alpha}
    adapter = _adapter(random_clip_folder, "fedpha", **options)
    context, own = _copies(adapter, "context", "own")
    assert own.shape[1] == (own_n_ctx or 5)
    labels = torch.arange(11) % 3
    # the kept right singular vectors v_i = G^T u_i / s_i, with u_i and s_i^2 of the small matrix G G^T, largest first
    shared = context[0]
    squares, left = torch.linalg.eigh(shared @ shared.T)
    kept = 5 - int(5 * (1 - ratio))
    small, vectors = squares[:kept], left[:, :kept]
    projection = shared.T @ vectors @ torch.diag(1 / small) @ vectors.T @ shared
    features = [plain.encode(each, _names()) for each in (shared, own[0], own[0] @ projection)]
    common, personal, projected = features
    pull = ((personal - projected) ** 2).sum() / personal.numel()
    push = torch.stack([max(alpha - (a - b).norm(), a.new_zeros(())) for a, b in zip(personal, common, strict=True)])
    expected = _log_loss(plain, images, personal, labels) + _log_loss(plain, images, common, labels) + pull
    expected = expected + push.mean()
    expected.backward()
    loss = adapter.loss(images, labels, CLASSES)
    assert torch.allclose(loss, expected, rtol=1e-5)
    loss.backward()
    for name, other in (("context", context), ("own", own)):
        mine = dict(adapter.named_parameters())[name].grad
        assert mine is not None
        assert other.grad is not None
        assert _same(mine, other.grad)
    assert torch.allclose(adapter.class_features(CLASSES), personal, atol=1e-5)


@pytest.mark.parametrize("method", ["promptfolio", "fedpha"])
def test_a_model_of_all_sites_classifies_with_the_shared_context(
    method: str, random_clip_folder: Path, plain: PlainTextTower
) -> None:
    """Zeros in place of the personal context would be a prompt that nobody trained."""
    adapter = _adapter(random_clip_folder, method, n_ctx=3)
    adapter.load(adapter.impersonal(adapter.shared()))
    (context,) = _copies(adapter, "context")
    assert torch.allclose(adapter.class_features(CLASSES), plain.encode(context[0], _names()), atol=1e-5)


def test_a_shared_context_of_another_length_stands_for_no_personal_one(random_clip_folder: Path) -> None:
    adapter = _adapter(random_clip_folder, "fedpha", n_ctx=3, own_n_ctx=2)
    with pytest.raises(UserError, match="give the number of a site"):
        adapter.impersonal(adapter.shared())


# --- the linear probe -----------------------------------------------------------------------------


def test_a_linear_probe_begins_as_the_zero_shot_classifier_and_moves_trained_classes_alone(
    random_clip_folder: Path, plain: PlainTextTower, images: torch.Tensor
) -> None:
    found = METHODS.load("linear-probe")
    vocabulary = Vocabulary(load_backbone(str(random_clip_folder)), NAMES, (TEMPLATE,))
    adapter = found.adapter(vocabulary, found.parse_options({}), torch.Generator())
    assert torch.allclose(adapter.class_features((0, 1, 2, 3)), vocabulary.zero_shot, atol=1e-6)
    labels = torch.arange(11) % 3
    weight = (3 * vocabulary.zero_shot).detach().clone().requires_grad_()
    adapter.load({"weight": weight})
    expected = _log_loss(plain, images, _unit(weight[list(CLASSES)]), labels)
    expected.backward()
    loss = adapter.loss(images, labels, CLASSES)
    assert torch.allclose(loss, expected, rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss, list(adapter.parameters()))
    assert weight.grad is not None
    assert _same(gradient, weight.grad)
    assert gradient[2].norm() == 0


# --- cost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "shared", "personal"), [("prograd", 8192, 0), ("promptfolio", 8192, 8192), ("fedpha", 8192, 8192)]
)
def test_parameters_at_vit_b16_are_those_of_the_papers(method: str, shared: int, personal: int) -> None:
    """16 vectors of width 512: FedMGP's table counts 8.2k for PromptFL and 16.4k trained for PromptFolio."""
    found = METHODS.load(method)
    options = found.parse_options({})
    assert options.n_ctx * 512 == shared
    assert len(found.adapter.personal_names) * options.n_ctx * 512 == personal
