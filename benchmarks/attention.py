"""Which attention kernel for class tokens behind a shared prefix: `python -m benchmarks.attention --backbone PATH`.

Three kernels with the same result, in turn, forward and backward of the whole text tower for two prompts as a FedPGP
step has them: `joined` multiplies the shared keys and each name's own apart and takes one softmax over both; `copied`
puts a copy of the shared keys before each name's own and calls torch's scaled_dot_product_attention; `blocks` puts all
names in one sequence and calls it with a block mask. Medians; features and gradients are compared as well.
"""

import argparse
import json
import statistics
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.step import class_names, seconds
from fedgraft.backbones import load_backbone
from fedgraft.backbones.clip.family import ClipTextTower

JOINED = ClipTextTower._attend


def copied(tower: ClipTextTower, q: Tensor, pk: Tensor, pv: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """The prefix's keys and values once more for every class."""
    prompts, count, length, width = q.shape
    split = tower._split
    keys = torch.cat([split(pk)[:, None].expand(-1, count, -1, -1, -1), split(k)], dim=-2)
    values = torch.cat([split(pv)[:, None].expand(-1, count, -1, -1, -1), split(v)], dim=-2)
    mask = F.pad(visible.expand(count, 1, length, -1), (pk.shape[1], 0), value=True)
    mixed = F.scaled_dot_product_attention(split(q), keys, values, attn_mask=mask)
    return mixed.transpose(-3, -2).reshape(prompts, count, length, width)


def blocks(tower: ClipTextTower, q: Tensor, pk: Tensor, pv: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """All classes in one sequence; each sees the prefix and itself."""
    prompts, count, length, width = q.shape
    split = tower._split
    keys, values = torch.cat([pk, k.flatten(1, 2)], dim=1), torch.cat([pv, v.flatten(1, 2)], dim=1)
    own = visible.expand(count, 1, length, -1)[:, 0]
    mask = F.pad(torch.block_diag(*own), (pk.shape[1], 0), value=True).bool()
    mixed = F.scaled_dot_product_attention(split(q.flatten(1, 2)), split(keys), split(values), attn_mask=mask)
    return mixed.transpose(-3, -2).reshape(prompts, count, length, width)


def measure(backbone: str, classes: int, n_ctx: int, repeat: int) -> dict[str, float]:
    """Median seconds of each kernel, and how far the others are from `joined`."""
    torch.manual_seed(0)
    text = load_backbone(backbone).text
    names = text.tokenize_names(class_names(classes))
    context = (0.02 * torch.randn(2, n_ctx, text.width)).requires_grad_()
    direction = torch.randn(1, classes, text.encode_prompts(context, names).shape[-1])

    def step() -> None:
        context.grad = None
        (text.encode_prompts(context, names) * direction).sum().backward()

    times: dict[str, list[float]] = {"joined": [], "copied": [], "blocks": []}
    gradients: dict[str, Tensor] = {}
    for turn in range(repeat + 1):
        for name, kernel in (("joined", JOINED), ("copied", copied), ("blocks", blocks)):
            with patch.object(ClipTextTower, "_attend", kernel):
                spent = seconds(step)
            assert context.grad is not None
            gradients[name] = context.grad
            if turn:
                times[name].append(spent)
    apart = [float((g - gradients["joined"]).norm() / gradients["joined"].norm()) for g in gradients.values()]
    medians = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in times.items()}
    return {"classes": classes, **medians, "gradient_difference": max(apart)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="mini or a Hugging Face CLIP folder")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--n-ctx", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("runs/attention.json"))
    args = parser.parse_args()
    results = [measure(args.backbone, count, args.n_ctx, args.repeat) for count in args.classes]
    for result in results:
        print("  ".join(f"{name} {value:.4g}" for name, value in result.items()), flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
