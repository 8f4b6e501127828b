"""Every published size at full width and reduced depth has the plain features and gradients."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, SiglipConfig, SiglipModel

from fedgraft.backbones.siglip.dense_tower import dense_tower
from fedgraft.backbones.siglip.image_tower import SiglipImageTower
from fedgraft.backbones.siglip.text_tower import SiglipTextTower
from fedgraft.backbones.siglip.tokens import SiglipTokens
from tests.backbones.siglip.published import PUBLISHED, reduced
from tests.plain_siglip import PlainSiglip

NAMES = ["seven", "small hollow purple hexagon", "g"]
ONE_OF_EACH_WIDTH = (
    "siglip-base-patch16-224",
    "siglip-large-patch16-256",
    "siglip-so400m-patch14-224",
    "siglip2-giant-opt-patch16-256",
)


def _relative(mine: Tensor, other: Tensor) -> float:
    return float(((mine - other).norm() / other.norm()).detach())


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_has_the_plain_features_and_gradients(name: str, siglip2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(siglip2_folder)
    config = SiglipConfig(**reduced(name, 2, tokenizer.vocab_size))
    torch.manual_seed(0)
    model = SiglipModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))

    side = config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side)
    tower = SiglipImageTower(model)
    plain = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    assert _relative(tower.features(tower.states(pixels, 0), 0, {}), plain) < 1e-5
    assert _relative(dense_tower(model, None, None)(pixels), plain) < 1e-5

    if name not in ONE_OF_EACH_WIDTH:  # the resolution is none of the text tower's
        return
    text, width = SiglipTextTower(model, SiglipTokens(name, tokenizer, 64)), config.text_config.hidden_size
    context, deep = 0.02 * torch.randn(1, 16, width), 0.02 * torch.randn(1, 1, 16, width)
    for depth, placement in ((0, "before"), (0, "middle"), (1, "behind")):
        leaves = [tensor.clone().requires_grad_() for tensor in (context, *([deep] if depth else []))]
        prompts = leaves[1] if depth else None
        fast = text.encode_prompts(leaves[0], text.tokenize_names(NAMES), prompts, placement)[0]
        slow = PlainSiglip(model, tokenizer).encode(
            leaves[0][0], NAMES, None if prompts is None else prompts[0], placement
        )
        assert _relative(fast, slow) < 1e-5
        direction = torch.randn_like(slow)
        gradients = [torch.autograd.grad((features * direction).sum(), leaves) for features in (fast, slow)]
        assert all(_relative(mine, other) < 1e-4 for mine, other in zip(*gradients, strict=True))
