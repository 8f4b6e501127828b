"""One PromptFL training step on a SigLIP of the size B/16 with random weights, fast and plain, in turn.

Plain is what published implementations do: the image tower on every batch, and the text tower over all 64 positions of
every class. Fast is fedgraft's: cached image features, and what a bidirectional text tower with padding can share. Both
sides are checked to give the same features and gradients.

A text tower that reads its padding has to compute nearly every position of every class, so that `operations_ratio`,
the multiply-adds of both sides, is the ratio to expect where both sides multiply equally fast.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from fedgraft.backbones.siglip.family import SiglipBackbone
from fedgraft.backbones.siglip.sample import write_sample
from fedgraft.methods.promptfl import METHOD, PromptFL
from fedgraft.methods.vocabulary import Vocabulary
from tests.plain_siglip import PlainSiglip

POSITIONS, PATCHES = 64, 196


def random_model(layers: int) -> tuple[SiglipModel, Any]:
    """B/16 at 224 pixels, and a tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        write_sample(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    text = {"num_hidden_layers": layers, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={"num_hidden_layers": layers}))
    return model.eval().requires_grad_(False), tokenizer


class PlainPromptFL:
    """The published step, with the same context as an adapter."""

    def __init__(self, model: SiglipModel, tokenizer: Any, adapter: PromptFL, names: list[str]) -> None:
        self.tower, self.names = PlainSiglip(model, tokenizer), names
        self.context = adapter.context.detach().clone().requires_grad_()
        self.seconds_on_images = 0.0

    @torch.no_grad()
    def class_features(self) -> torch.Tensor:
        """(C, dim)."""
        return self.tower.encode(self.context[0], self.names)

    def __call__(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The gradient of the context."""
        self.context.grad = None
        model = self.tower.model
        began = time.perf_counter()
        images = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        self.seconds_on_images = time.perf_counter() - began
        classes = self.tower.encode(self.context[0], self.names)
        F.cross_entropy(model.logit_scale.exp() * images @ classes.T, labels).backward()
        assert self.context.grad is not None
        return self.context.grad


def operations_ratio(model: SiglipModel, classes: int, batch: int) -> float:
    """Multiply-adds of the plain step over those of the fast one, without attention itself (below 5 %).

    Weights are frozen, so a backward pass costs as much as a forward one. The fast side has all products with every
    position but the projections of the first layer and everything in the last.
    """
    config = model.config.text_config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    layer = 4 * width * width + 2 * width * inner
    positions = classes * POSITIONS
    plain = batch * PATCHES * layers * layer + 2 * positions * layers * layer
    fast = 2 * positions * ((layers - 2) * layer + width * width + 2 * width * inner)
    return plain / fast


def measure(names: list[str], batch: int, n_ctx: int, repeat: int, layers: int = 12) -> dict[str, float]:
    """Both sides in turn, medians; CPU seconds, of all threads, tell more on a machine that is not idle."""
    torch.manual_seed(0)
    model, tokenizer = random_model(layers)
    backbone = SiglipBackbone("random", model, tokenizer, SiglipImageProcessorPil())
    everything = tuple(range(len(names)))
    vocabulary = Vocabulary(backbone, names, ("a photo of a {}.",))
    adapter = METHOD.adapter(vocabulary, METHOD.parse_options({"n_ctx": n_ctx}), torch.Generator().manual_seed(0))
    assert isinstance(adapter, PromptFL)
    plain = PlainPromptFL(model, tokenizer, adapter, names)
    pixels, labels = torch.randn(batch, 3, 224, 224), torch.randint(len(names), (batch,))
    images = backbone.encode_images(pixels)

    def fast() -> torch.Tensor:
        adapter.zero_grad()
        adapter.loss(images, labels, everything).backward()
        assert adapter.context.grad is not None
        return adapter.context.grad

    times: dict[str, list[float]] = {"plain": [], "fast": [], "plain_cpu": [], "fast_cpu": [], "images": []}
    gradients = {}
    for _ in range(repeat):
        for side, step in (("fast", fast), ("plain", lambda: plain(pixels, labels))):
            began, began_cpu = time.perf_counter(), time.process_time()
            gradients[side] = step()
            times[side].append(time.perf_counter() - began)
            times[f"{side}_cpu"].append(time.process_time() - began_cpu)
        times["images"].append(plain.seconds_on_images)
    median = {name: statistics.median(values) for name, values in times.items()}
    classes = plain.class_features()
    return {
        "classes": len(names),
        "plain_seconds": median["plain"],
        "of_these_on_images": median["images"],
        "fast_seconds": median["fast"],
        "ratio": median["plain"] / median["fast"],
        "plain_cpu_seconds": median["plain_cpu"],
        "fast_cpu_seconds": median["fast_cpu"],
        "cpu_ratio": median["plain_cpu"] / median["fast_cpu"],
        "operations_ratio": operations_ratio(model, len(names), batch),
        "feature_relative_error": _relative(adapter.class_features(everything), classes),
        "gradient_relative_error": _relative(gradients["fast"], gradients["plain"]),
    }


def _relative(mine: torch.Tensor, other: torch.Tensor) -> float:
    return float(((mine - other).norm() / other.norm()).detach())
