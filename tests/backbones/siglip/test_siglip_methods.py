"""pFedMMA and DPT on SigLIP's towers: loss and gradients are those of transformers' own layers with their additions."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, SiglipModel

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.kept_images import keep_images
from fedgraft.config.registry import METHODS
from fedgraft.methods.adapter import Adapter
from fedgraft.methods.vocabulary import Vocabulary
from tests.plain_siglip import PlainSiglip

NAMES, CLASSES = ("blue circle", "green dotted heart", "seven"), (0, 1, 2)


def _adapter(name: str, backbone: Backbone, by: float, **options: Any) -> Any:
    """An adapter whose parameters are all moved."""
    method, draw = METHODS.load(name), torch.Generator().manual_seed(4)
    vocabulary = Vocabulary(backbone, NAMES, ("a photo of a {}.",))
    made = method.adapter(vocabulary, method.parse_options(options), torch.Generator().manual_seed(3))
    with torch.no_grad():
        for _, parameter in sorted(made.named_parameters()):
            parameter.add_(by * torch.randn(parameter.shape, generator=draw))
    return made


def _opened(folder: Path) -> tuple[Backbone, PlainSiglip, Tensor]:
    model = SiglipModel.from_pretrained(folder).eval()
    side = model.config.vision_config.image_size
    pixels = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(1))
    return load_backbone(str(folder)), PlainSiglip(model, AutoTokenizer.from_pretrained(folder)), pixels


def _kept(backbone: Backbone, adapter: Adapter, pixels: Tensor) -> Tensor:
    return keep_images(backbone, pixels, adapter.representation(backbone, adapter.options))


def test_adapters_beside_the_layers_of_both_towers(siglip2_folder: Path) -> None:
    (backbone, plain, pixels), scale = _opened(siglip2_folder), 0.05
    adapter, labels = _adapter("pfedmma", backbone, 0.3, layers=2, dim=4, scale=scale), torch.tensor([0, 1, 2, 1, 0])
    own = {name: value.detach().clone().requires_grad_() for name, value in adapter.named_parameters()}

    def beside(tower: str, number: int, layer: Any) -> None:
        def added(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
            hidden = module.layer_norm1(inputs[0])
            for name in (f"{tower}_down", "shared_middle"):
                hidden = (hidden @ own[name][number].T + own[f"{name}_bias"][number]).clamp(min=0)
            more = scale * (hidden @ own[f"{tower}_up"][number].T + own[f"{tower}_up_bias"][number])
            return (output[0] + more, *output[1:]) if isinstance(output, tuple) else output + more

        layer.register_forward_hook(added)

    for tower, half in (("text", plain.model.text_model), ("image", plain.model.vision_model)):
        for number, layer in enumerate(half.encoder.layers[-2:]):
            beside(tower, number, layer)
    images = F.normalize(plain.model.vision_model(pixels).pooler_output, dim=-1)
    classes = plain.texts([f"a photo of a {name}." for name in NAMES])
    expected = F.cross_entropy(backbone.logit_scale * images @ classes.T, labels)
    expected.backward()  # type: ignore[no-untyped-call]
    loss = adapter.loss(_kept(backbone, adapter, pixels), labels, CLASSES)
    loss.backward()
    assert torch.allclose(loss, expected, rtol=1e-4)
    for name, parameter in adapter.named_parameters():
        slope = own[name].grad
        assert slope is not None
        assert slope.norm() > 0
        assert (parameter.grad - slope / scale).norm() <= 1e-4 * slope.norm() / scale, name


def test_class_aware_prompts_before_the_upper_layers(siglip2_folder: Path) -> None:
    backbone, plain, pixels = _opened(siglip2_folder)
    adapter = _adapter("dpt", backbone, 0.3, n_ctx=2, n_visual=3, aware_layers=1, class_prompts=2, alpha=0.7)
    tower, count = plain.model.vision_model, len(plain.model.vision_model.encoder.layers)
    order = (backbone.encode_images(pixels) @ adapter.vocabulary.zero_shot.T).argsort(dim=1, descending=True)[:, :2]
    labels = torch.tensor([int(order[0, 0]), int(order[1, 1]), *((order[2:, 0] + 1) % 3).tolist()])
    parameters = dict(adapter.named_parameters())
    named = plain.encode(adapter.context[0], list(NAMES))
    rows, right = [], []
    for image in range(len(pixels)):
        states = tower.embeddings(pixels[image : image + 1])
        patches = states.shape[1]
        for index, layer in enumerate(tower.encoder.layers):
            tokens, prompts = states[:, :patches], adapter.visual[index] if index < count - 1 else None
            if prompts is None:
                own, made = adapter.aware[0], []
                around = torch.cat([tokens[0].detach(), own.vectors])
                for known in order[image].tolist():
                    asked = own.named.weight @ named[known] + own.named.bias
                    score = (own.key.weight @ around.T).T @ (own.query.weight @ asked) / 32**0.5
                    saw = own.value.weight @ (score.softmax(0) @ around)
                    made.append(F.layer_norm(asked + saw, asked.shape, own.norm.weight, own.norm.bias))
                    if known == labels[image]:
                        normed = F.layer_norm(saw, saw.shape, own.norm_seen.weight, own.norm_seen.bias)
                        right.append(-F.log_softmax(own.classifier.weight @ normed, dim=0)[known])
                prompts = torch.stack(made)
            states = layer(torch.cat([tokens, prompts[None]], dim=1), None)
        rows.append(F.normalize(tower.head(tower.post_layernorm(states)[:, :patches]), dim=-1)[0])
    assert 0 < len(right) < order.numel()
    expected = F.cross_entropy(backbone.logit_scale * torch.stack(rows) @ named.T, labels)
    expected = expected + 0.7 * torch.stack(right).mean()
    loss = adapter.loss(_kept(backbone, adapter, pixels), labels, CLASSES)
    assert torch.allclose(loss, expected, rtol=1e-4)
    mine, other = (torch.autograd.grad(value, list(parameters.values())) for value in (loss, expected))
    for name, a, b in zip(parameters, mine, other, strict=True):
        assert b.norm() > 0, name
        assert (a - b).norm() <= 1e-4 * b.norm(), name
