"""OpenCLIP's text towers give the features and gradients of the library's plain forward."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, CLIPTextConfig, CLIPTextModel

from fedgraft.backbones.abilities import Placement
from fedgraft.backbones.bert.padded_text_tower import PaddedTextTower
from fedgraft.backbones.bert.text_tower import BertTextTower
from fedgraft.backbones.deltas import Delta
from tests.backbones.bert_folders import bert_tokenizer, small_text_config
from tests.backbones.open_clip_oracle import (
    clip_tokenizer,
    open_clip,
    text_config,
    text_transformer,
    text_weights,
    uneven,
)

pytestmark = pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip_torch is not installed")

NAMES = ["red circle", "a", "a hollow hexagon"]
DIM = 24


class PlainText(nn.Module):
    """OpenCLIP's own forward with the embeddings of some positions replaced."""

    def __init__(self, tower: Any, tokenizer: Any, length: int) -> None:
        super().__init__()
        self.tower, self.tokenizer, self.length = tower, tokenizer, length

    def encode(self, context: Tensor, name: str, placement: str, deep: Tensor | None) -> Tensor:
        """Features of one prompted name: dummy words in a text, then their embeddings replaced by the context's."""
        n_ctx = len(context)
        front = {"before": n_ctx, "middle": n_ctx // 2, "behind": 0}[placement]
        words = self.tokenizer(f"{name}.", add_special_tokens=False)["input_ids"]
        dummy = self.tokenizer("x", add_special_tokens=False)["input_ids"]
        inner = [*dummy * front, *words[:-1], *dummy * (n_ctx - front), words[-1]]
        ids = [self.tokenizer.bos_token_id, *inner, self.tokenizer.eos_token_id]
        row = torch.tensor([ids + [0] * (self.length - len(ids))])
        places = [*range(1, 1 + front), *range(front + len(words), len(words) + n_ctx)]

        def put(vectors: Tensor, states: Tensor) -> Tensor:
            changed = states.clone()
            changed[:, places] = vectors
            return changed

        handles = [self.tower.token_embedding.register_forward_hook(lambda m, i, out: put(context, out))]
        for block, vectors in zip(self.tower.transformer.resblocks[1:], () if deep is None else deep, strict=False):
            handles.append(
                block.register_forward_pre_hook(lambda m, i, v=vectors: (put(v, i[0]), *i[1:]))  # type: ignore[misc]
            )
        features = self.tower(row)[0]
        for handle in handles:
            handle.remove()
        return F.normalize(features, dim=-1)


def _both(config: dict[str, Any], dim: int = DIM) -> tuple[PaddedTextTower, PlainText]:
    theirs = text_transformer(config, dim)
    own = CLIPTextModel(CLIPTextConfig(**{k: v for k, v in config.items() if k not in ("causal", "model_type")}))
    weights = text_weights(theirs)
    projection = nn.Linear(config["hidden_size"], dim, bias=False)
    projection.weight.data = weights.pop("text_projection.weight")
    own.load_state_dict({name.removeprefix("text_model."): tensor for name, tensor in weights.items()})
    tokenizer = clip_tokenizer()
    fast = PaddedTextTower(own.eval().requires_grad_(False), tokenizer, projection.requires_grad_(False), "text_model.")
    return fast, PlainText(theirs, tokenizer, config["max_position_embeddings"])


def compare(
    towers: tuple[PaddedTextTower, PlainText],
    names: Sequence[str],
    context: Tensor,
    placement: Placement,
    depth: int = 0,
) -> None:
    """Features to 1e-5, gradients to 1e-4."""
    deep = torch.randn(len(context), depth, *context.shape[-2:], generator=torch.Generator().manual_seed(2))
    mine = [context.clone().requires_grad_(), deep.clone().requires_grad_()]
    theirs = [context.clone().requires_grad_(), deep.clone().requires_grad_()]
    fast = towers[0].encode_prompts(mine[0], towers[0].tokenize_names(names), mine[1] if depth else None, placement)
    slow = torch.stack(
        [
            torch.stack([towers[1].encode(one, name, placement, layers if depth else None) for name in names])
            for one, layers in zip(*theirs, strict=True)
        ]
    )
    assert torch.allclose(fast, slow, atol=1e-5), (fast - slow).abs().max()
    direction = torch.randn(slow.shape, generator=torch.Generator().manual_seed(1))
    (fast * direction).sum().backward()
    (slow * direction).sum().backward()
    for own, other in zip(mine[: 1 + (depth > 0)], theirs, strict=False):
        assert own.grad is not None
        assert other.grad is not None
        assert (own.grad - other.grad).norm() < 1e-4 * other.grad.norm()


@pytest.mark.parametrize("placement", ["before", "middle", "behind"])
@pytest.mark.parametrize("depth", [0, 2])
def test_a_tower_without_a_causal_mask_reads_its_padding(placement: Placement, depth: int) -> None:
    context = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    compare(_both(text_config()), NAMES, context, placement, depth)


def test_texts_have_the_features_of_the_library() -> None:
    fast, plain = _both(text_config())
    texts = ["a red circle.", "seven", "a photo of the very large thing."]
    rows = [plain.tokenizer(text)["input_ids"][:32] for text in texts]
    ids = torch.tensor([row + [0] * (32 - len(row)) for row in rows])
    assert torch.allclose(fast.encode_texts(texts), F.normalize(plain.tower(ids), dim=-1), atol=1e-5)
    context, tokens = fast.tokenize_texts([*texts[:1], "a red seven."])
    assert len(context) > 1
    assert torch.allclose(fast.encode_prompts(context[None], tokens)[0, 0], fast.encode_texts(texts[:1])[0], atol=1e-5)


def test_low_rank_changes_of_two_sites_stay_apart() -> None:
    fast, _ = _both(text_config())
    maps, generator = fast.linear_maps(), torch.Generator().manual_seed(0)
    assert len(maps) == 6 * 3
    deltas = {
        name: Delta(
            0.1 * torch.randn(2, 2, weight.shape[1], generator=generator),
            0.1 * torch.randn(2, weight.shape[0], 2, generator=generator),
        )
        for name, (_, weight) in maps.items()
    }
    context, tokens = torch.randn(2, 3, 32, generator=generator), fast.tokenize_names(NAMES)
    together = fast.encode_prompts(context, tokens, deltas=deltas)
    for site in range(2):
        merged, _ = _both(text_config())
        for name, found in merged.linear_maps().items():
            found.weight.data += deltas[name].B[site] @ deltas[name].A[site]
        assert torch.allclose(together[site], merged.encode_prompts(context[site][None], tokens)[0], atol=1e-5)


@pytest.mark.parametrize(("pooler", "projection"), [("class", "mlp"), ("mean", "linear"), ("class", "linear")])
def test_a_bert_of_open_clip_masks_its_padding(pooler: str, projection: str) -> None:
    """BiomedCLIP's text tower: an MLP behind the class token."""
    torch.manual_seed(0)
    names = {"class": "cls_last_hidden_state_pooler", "mean": "mean_pooler"}
    library = open_clip().hf_model
    theirs = uneven(
        library.HFTextEncoder("", DIM, BertConfig(**small_text_config()), names[pooler], projection, pretrained=False)
    )
    tokenizer = bert_tokenizer()
    fast = BertTextTower(theirs.transformer, tokenizer, pooler, theirs.proj, context_length=30)
    texts = ["a red circle.", "seven", "a photo of the very long name."]
    ids = tokenizer(texts, padding="max_length", max_length=30, return_tensors="pt")["input_ids"]
    plain = F.normalize(theirs(ids), dim=-1)
    assert torch.allclose(fast.encode_texts(texts), plain, atol=1e-5)
    context, tokens = fast.tokenize_texts(texts)
    assert torch.allclose(fast.encode_prompts(context[None], tokens)[0], plain, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "heads", "dim"), [(512, 8, 512), (768, 12, 768)], ids=["S0 to S2", "S3, S4 and L"])
def test_mobileclips_text_towers_at_full_width(width: int, heads: int, dim: int) -> None:
    config = text_config(width, 2, heads, max_position_embeddings=77)
    context = 0.1 * torch.randn(1, 8, width, generator=torch.Generator().manual_seed(0))
    compare(_both(config, dim), NAMES, context, "before", 1)


def test_the_module_is_told_by_its_own_forward() -> None:
    """The oracle itself: without hooks it is OpenCLIP's forward."""
    _, plain = _both(text_config())
    words = plain.tokenizer("a red circle.")["input_ids"]
    ids = torch.tensor([words + [0] * (32 - len(words))])
    context = plain.tower.token_embedding(torch.tensor(words[1:2]))
    prompted = plain.encode(context, "red circle", "before", None)
    assert torch.allclose(prompted, F.normalize(plain.tower(ids)[0], dim=-1), atol=1e-6)
