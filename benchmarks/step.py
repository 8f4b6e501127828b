"""One training step, fast and plain, in turn.

`python -m benchmarks.step --backbone PATH --classes 50` is of FedPGP on a CLIP folder, `python -m benchmarks.step
--family siglip` of PromptFL on a random SigLIP, see `siglip_step`.

Plain is what published implementations do: the image tower on every batch, and four passes of the text tower over all
positions of every class (shared prompt, personal prompt, their difference, whose features are never used, and the
anchor). Fast is fedgraft's: cached image features, a cached anchor, and two prompts behind one shared prefix. Both
sides are checked to give the same loss and gradients. The peak is what a large matrix product reaches in the same run.

With `--method maple vpt`, steps of these methods instead, against the image tower's own forward and backward pass, see
`benchmarks.image_step`; of methods that train prompts of the text tower alone, as `--method fedotp plot`, against
PromptFL's step with as many prompts, see `benchmarks.text_step`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import image_step, siglip_step, text_step
from fedgraft.backbones import load_backbone
from fedgraft.config.registry import METHODS
from fedgraft.methods.fedpgp import METHOD, FedPGP
from fedgraft.methods.vocabulary import Vocabulary
from tests.plain_text import PlainTextTower

WORDS = ("red", "striped", "wooden", "small", "old", "happy", "green", "metal", "round", "fast")
THINGS = ("circle", "dog", "car", "house", "laptop computer", "tree", "bird", "cup", "chair", "fish")


def class_names(count: int) -> list[str]:
    """Distinct names of one to three words."""
    names = [*THINGS, *(f"{word} {thing}" for word in WORDS for thing in THINGS)]
    return names[:count]


class PlainStep:
    """The published step, with the same parameters as an adapter."""

    def __init__(self, folder: str, adapter: FedPGP, names: list[str], mu: float, tau: float) -> None:
        self.tower = PlainTextTower(folder)
        self.names, self.mu, self.tau = names, mu, tau
        self.parameters = [p.detach().clone().requires_grad_() for p in (adapter.sigma, adapter.U, adapter.V)]
        self.anchor_context = self.tower.model.text_model.embeddings.token_embedding(
            torch.tensor(self.tower.tokenizer("a photo of a", add_special_tokens=False)["input_ids"])
        )

    @torch.no_grad()
    def feature_error(self, features: torch.Tensor) -> float:
        """Largest absolute difference of the personal prompt's class features, (C, dim)."""
        sigma, left, right = self.parameters
        return float((self.tower.encode(sigma[0] + left[0] @ right[0], self.names) - features).abs().max())

    def __call__(self, pixels: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """The gradients of sigma, U and V."""
        sigma, left, right = self.parameters
        for parameter in self.parameters:
            parameter.grad = None
        pooled = self.tower.model.vision_model(pixel_values=pixels).pooler_output
        images = F.normalize(self.tower.model.visual_projection(pooled), dim=-1)
        common = self.tower.encode(sigma[0], self.names)
        personal = self.tower.encode(sigma[0] + left[0] @ right[0], self.names)
        self.tower.encode(left[0] @ right[0], self.names)
        anchor = self.tower.encode(self.anchor_context, self.names)
        logits = self.tower.model.logit_scale.exp() * images @ personal.T
        contrast = F.softplus(((common * personal).sum(-1) - (common * anchor).sum(-1)) / self.tau).mean()
        loss = F.cross_entropy(logits, labels) + self.mu * contrast
        loss.backward()
        return [p.grad for p in self.parameters if p.grad is not None]


def fast_step(
    adapter: FedPGP, images: torch.Tensor, labels: torch.Tensor, classes: tuple[int, ...]
) -> list[torch.Tensor]:
    """The gradients of sigma, U and V on cached features."""
    adapter.zero_grad()
    adapter.loss(images, labels, classes).backward()
    return [p.grad for p in (adapter.sigma, adapter.U, adapter.V) if p.grad is not None]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak_gflops(size: int = 2048) -> float:
    """What a float32 matrix product of this side reaches."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    left @ right
    return 2 * size**3 / statistics.median(seconds(lambda: left @ right) for _ in range(5)) / 1e9


def fast_flops(backbone: str, classes: int, n_ctx: int, tokens: int) -> float:
    """Multiply-adds of the two fast text passes, forward and backward to the inputs, counted as two operations each.

    Weights are frozen, so the backward pass costs as much as the forward one. Attention itself is left out: it is
    below 3 % at these lengths.
    """
    config = json.loads((Path(backbone) / "config.json").read_text()).get("text_config", {})
    width, layers = config.get("hidden_size", 512), config.get("num_hidden_layers", 12)
    inner = config.get("intermediate_size", 4 * width)
    positions = n_ctx + 1 + tokens
    per_position = 4 * width * width + 2 * width * inner
    last = classes * (2 * width * width + 2 * width * inner) + positions * 2 * width * width
    return 2 * 2 * 2 * ((layers - 1) * positions * per_position + last)


def measure(backbone_path: str, classes: int, batch: int, n_ctx: int, repeat: int) -> dict[str, float]:
    """Both sides in turn, medians."""
    torch.manual_seed(0)
    backbone = load_backbone(backbone_path)
    names = class_names(classes)
    everything = tuple(range(classes))
    vocabulary = Vocabulary(backbone, names, ("a photo of a {}.",))
    options = METHOD.parse_options({"n_ctx": n_ctx, "rank": 8})
    adapter = METHOD.adapter(vocabulary, options, torch.Generator().manual_seed(0))
    assert isinstance(adapter, FedPGP)
    plain = PlainStep(backbone_path, adapter, names, mu=0.5, tau=0.5)
    side = int(plain.tower.model.config.vision_config.image_size)
    pixels = torch.randn(batch, 3, side, side)
    labels = torch.randint(classes, (batch,))
    images = backbone.encode_images(pixels)
    fast_gradients = fast_step(adapter, images, labels, everything)
    fast = [seconds(lambda: fast_step(adapter, images, labels, everything)) for _ in range(3 * repeat)]
    slow, slow_gradients = [], []
    for _ in range(repeat):
        began = time.perf_counter()
        slow_gradients = plain(pixels, labels)
        slow.append(time.perf_counter() - began)
        fast.append(seconds(lambda: fast_step(adapter, images, labels, everything)))
    pairs = zip(fast_gradients, slow_gradients, strict=True)
    tokens = len(vocabulary.tokens(everything).kept)
    gflops = fast_flops(backbone_path, classes, n_ctx, tokens) / statistics.median(fast) / 1e9
    return {
        "classes": classes,
        "plain_seconds": statistics.median(slow),
        "fast_seconds": statistics.median(fast),
        "ratio": statistics.median(slow) / statistics.median(fast),
        "feature_error": plain.feature_error(adapter.class_features(everything)),
        "gradient_relative_error": max(float((a - b).norm() / b.norm()) for a, b in pairs),
        "fast_gflops": gflops,
        "fraction_of_peak": gflops / peak_gflops(),
    }


def methods_steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Of the methods that train the image tower, then of the others."""
    on_images = [name for name in args.method if "image" in METHODS.load(name).towers]
    on_text = [name for name in args.method if name not in on_images]
    results = image_step.measure(on_images, args.backbone, args.batch, args.repeat) if on_images else []
    if on_text:
        backbone = load_backbone(args.backbone) if args.backbone else image_step.random_vit_b16()[0]
        for count in args.classes:
            names = class_names(count)
            results += text_step.measure(on_text, backbone, names, args.batch, args.n_ctx, args.repeat)
    return results


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=["clip", "siglip"], default="clip")
    parser.add_argument("--backbone", help="a Hugging Face CLIP folder; SigLIP and --method take random B/16 weights")
    parser.add_argument("--method", nargs="+", default=[], help="methods that train prompts")
    parser.add_argument("--classes", type=int, nargs="+", default=[50])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--n-ctx", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12, help="of both towers of SigLIP; fewer for a trial")
    parser.add_argument("--json", type=Path, default=Path("runs/step.json"))
    args = parser.parse_args()
    if args.method:
        results = methods_steps(args)
    elif args.family == "siglip":
        results = [
            siglip_step.measure(class_names(count), args.batch, args.n_ctx, args.repeat, args.layers)
            for count in args.classes
        ]
    elif args.backbone:
        results = [measure(args.backbone, count, args.batch, args.n_ctx, args.repeat) for count in args.classes]
    else:
        parser.error("give --backbone, or --method")
    for result in results:
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items()), flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
