"""FedTPG's network against a derivation of its paper, its published size, and contexts for classes never seen."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.backbones import Backbone
from fedgraft.config.registry import METHODS
from fedgraft.methods.fedtpg import EXPANSION, FedTPG
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.strategies.answers import Answer
from fedgraft.testing.rounds import round_after

NAMES = ("blue circle", "green dotted heart", "seven", "red star")


def _adapter(backbone: Backbone, seed: int = 4) -> FedTPG:
    loaded = METHODS.load("fedtpg")
    adapter = loaded.adapter(
        Vocabulary(backbone, NAMES, ("a photo of a {}.",)),
        loaded.parse_options({}),
        torch.Generator().manual_seed(seed),
    )
    assert isinstance(adapter, FedTPG)
    return adapter


def _written(adapter: FedTPG, names: Tensor) -> Tensor:
    """The paper's network head by head, without torch's attention."""

    def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias

    own = adapter.attention
    width = adapter.queries.shape[1]
    bias_q, bias_k, bias_v = own.in_proj_bias.chunk(3)
    to_q, to_k, to_v = own.in_proj_weight.chunk(3)  # the class names' features are as wide as the context here
    q = normed(adapter.queries, adapter.norm_queries) @ to_q.T + bias_q
    known = normed(names, adapter.norm_names)
    k, v = known @ to_k.T + bias_k, known @ to_v.T + bias_v
    heads = []
    for head in range(4):
        part = slice(head * width // 4, (head + 1) * width // 4)
        weights = (q[:, part] @ k[:, part].T / (width // 4) ** 0.5).softmax(-1)
        heads.append(weights @ v[:, part])
    attended = torch.cat(heads, dim=1) @ own.out_proj.weight.T + own.out_proj.bias
    hidden = normed(attended, adapter.norm) @ adapter.gated.weight.T + adapter.gated.bias
    value, gate = hidden[:, : EXPANSION * width], hidden[:, EXPANSION * width :]
    return (value * F.gelu(gate)) @ adapter.out.weight.T + adapter.out.bias + attended


def test_loss_and_gradients_are_those_of_the_network_written_out(mini: Backbone) -> None:
    adapter, classes = _adapter(mini), (0, 2, 3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    images, labels = F.normalize(torch.randn(5, mini.dim), dim=-1), torch.tensor([0, 1, 2, 1, 0])
    names = mini.text.encode_texts([NAMES[index] for index in classes])
    context = _written(adapter, names)
    features = mini.text.encode_prompts(context[None], mini.text.tokenize_names([NAMES[i] for i in classes]))[0]
    expected = F.cross_entropy(mini.logit_scale * images @ features.T, labels)
    wanted = torch.autograd.grad(expected, list(adapter.parameters()))
    loss = adapter.loss(images, labels, classes)
    found = torch.autograd.grad(loss, list(adapter.parameters()))
    assert torch.allclose(loss, expected, rtol=1e-4)
    for mine, other in zip(found, wanted, strict=True):
        assert (mine - other).norm() <= 1e-4 * other.norm() + 1e-7


def test_every_set_of_classes_has_a_context_of_its_own_whatever_their_order(mini: Backbone) -> None:
    adapter = _adapter(mini)
    with torch.no_grad():
        assert torch.allclose(adapter.context((0, 1, 2)), adapter.context((2, 0, 1)), atol=1e-6)
        assert not torch.allclose(adapter.context((0, 1, 2)), adapter.context((3,)), atol=1e-4)


def test_sites_count_alike_in_the_average(mini: Backbone) -> None:
    sites = [{name: value.numpy() for name, value in _adapter(mini, seed).shared().items()} for seed in range(3)]
    answers = [Answer(number, arrays, 10**number, 0.0) for number, arrays in enumerate(sites)]
    after = METHODS.load("fedtpg").rule_for(None).aggregate(answers, round_after(sites[0], 3), {}).arrays
    assert all(np.allclose(after[name], np.mean([own[name] for own in sites], axis=0), atol=1e-6) for name in after)
