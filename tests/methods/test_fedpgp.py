"""FedPGP's loss and gradients against a plain derivation of their own, and its published parameter counts."""

from pathlib import Path

import pytest
import torch

from fedgraft.backbones import load_backbone
from fedgraft.methods.fedpgp import METHOD, FedPGP
from fedgraft.methods.vocabulary import Vocabulary
from tests.plain_text import PlainTextTower

NAMES = ("blue circle", "green dotted heart", "seven", "x")
CLASSES = (0, 1, 3)


def _adapter(folder: Path, **options: object) -> FedPGP:
    vocabulary = Vocabulary(load_backbone(str(folder)), NAMES, ("a photo of a {}.", "the {}"))
    adapter = METHOD.adapter(vocabulary, METHOD.parse_options(options), torch.Generator().manual_seed(5))
    assert isinstance(adapter, FedPGP)
    adapter.load({name: 20 * value for name, value in {**adapter.shared(), **adapter.personal()}.items()})
    return adapter


def _plain_loss(
    plain: PlainTextTower, adapter: FedPGP, images: torch.Tensor, labels: torch.Tensor, mu: float, tau: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """METHODS.md 1.1 written out prompt by prompt and class by class."""
    parameters = [p.detach().clone().requires_grad_() for p in (adapter.sigma, adapter.U, adapter.V)]
    sigma, left, right = parameters
    names = [NAMES[index] for index in CLASSES]
    texts = [template.format(name) for name in names for template in ("a photo of a {}.", "the {}")]
    tokens = plain.tokenizer(texts, padding=True, return_tensors="pt")
    pooled = plain.model.text_model(**tokens).pooler_output
    written = plain.model.text_projection(pooled)
    written = (written / written.norm(dim=-1, keepdim=True)).view(len(names), 2, -1).mean(1)
    anchor = written / written.norm(dim=-1, keepdim=True)
    terms, per_prompt = [], []
    for prompt in range(sigma.shape[0]):
        common = plain.encode(sigma[prompt], names)
        personal = plain.encode(sigma[prompt] + left[prompt] @ right[prompt], names)
        per_prompt.append(personal)
        for row in range(len(names)):
            positive = torch.exp(torch.dot(anchor[row], common[row]) / tau)
            negative = torch.exp(torch.dot(common[row], personal[row]) / tau)
            terms.append(-torch.log(positive / (positive + negative)))
    mean = torch.stack(per_prompt).mean(0)
    classifier = mean / mean.norm(dim=-1, keepdim=True)
    logits = plain.model.logit_scale.exp() * images @ classifier.T
    cross_entropy = -(logits.log_softmax(-1)[torch.arange(len(labels)), labels]).mean()
    loss = cross_entropy + mu * torch.stack(terms).mean()
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in parameters if parameter.grad is not None]


@pytest.mark.parametrize(("prompts", "mu", "tau"), [(1, 0.5, 0.5), (2, 1.0, 0.5), (2, 3.0, 0.1)])
def test_loss_and_gradients_equal_the_plain_derivation(
    random_clip_folder: Path, prompts: int, mu: float, tau: float
) -> None:
    adapter = _adapter(random_clip_folder, n_ctx=4, prompts=prompts, rank=3, mu=mu, tau=tau)
    images = torch.nn.functional.normalize(torch.randn(6, 24, generator=torch.Generator().manual_seed(2)), dim=-1)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    expected, gradients = _plain_loss(PlainTextTower(str(random_clip_folder)), adapter, images, labels, mu, tau)
    loss = adapter.loss(images, labels, CLASSES)
    loss.backward()
    assert torch.allclose(loss.detach(), expected, atol=1e-4)
    for parameter, gradient in zip((adapter.sigma, adapter.U, adapter.V), gradients, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad - gradient).norm() / gradient.norm() < 1e-4


def test_published_parameter_counts(random_clip_folder: Path) -> None:
    """METHODS.md 1.2 at d = 512: sent + local = 8,192 + 4,224 and 16,384 + 8,448; here d = 48."""
    for prompts in (1, 2):
        adapter = _adapter(random_clip_folder, n_ctx=16, prompts=prompts, rank=8)
        shared = sum(value.numel() for value in adapter.shared().values())
        personal = sum(value.numel() for value in adapter.personal().values())
        assert shared == prompts * 16 * 48
        assert personal == prompts * 8 * (16 + 48)


def test_token_anchor_is_the_literal_x_prompt(random_clip_folder: Path) -> None:
    adapter = _adapter(random_clip_folder, n_ctx=3, anchor="tokens")
    plain = PlainTextTower(str(random_clip_folder))
    ids = plain.tokenizer("X X X", add_special_tokens=False)["input_ids"]
    embedded = plain.model.text_model.embeddings.token_embedding(torch.tensor(ids))
    expected = plain.encode(embedded, [NAMES[index] for index in CLASSES])
    assert torch.allclose(adapter.anchor(CLASSES), expected, atol=1e-5)


def test_the_anchor_takes_no_gradient_and_zero_init_starts_at_the_shared_prompt(random_clip_folder: Path) -> None:
    adapter = _adapter(random_clip_folder, n_ctx=4, init="zero")
    assert not adapter.anchor(CLASSES).requires_grad
    with torch.no_grad():
        tokens = adapter.vocabulary.tokens(CLASSES)
        common = adapter.vocabulary.backbone.text.encode_prompts(adapter.sigma, tokens)[0]
        assert torch.allclose(adapter.class_features(CLASSES), common, atol=1e-6)
