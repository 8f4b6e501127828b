"""A step of methods that train the image tower, against the tower alone, for `benchmarks.step --method`.

The tower alone is the library's own `CLIPVisionModel` from the patch embedding to the last layer, on the same batch,
forward and backward to its embeddings, which is where a gradient for visual prompts has to arrive. Both run in turn, on
random weights of ViT-B/16's sizes unless a folder is given; the weights do not matter to the time. The text tower has
few short names, so that the step is that of the image tower. Memory is the largest resident size of the process.
"""

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fedgraft.backbones import load_backbone
from fedgraft.backbones.clip.family import ClipBackbone
from fedgraft.backbones.kept_images import kept_shape
from fedgraft.backbones.loading import mini_folder
from fedgraft.config.registry import METHODS
from fedgraft.methods.vocabulary import Vocabulary

TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
IMAGE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
NAMES = ("cat", "dog", "car")


def random_vit_b16() -> tuple[ClipBackbone, CLIPModel]:
    """A CLIP of ViT-B/16's sizes with random weights and mini's tokenizer."""
    config = CLIPConfig.from_pretrained(mini_folder())
    config.text_config.update(TEXT | {"max_position_embeddings": 77})
    config.vision_config.update(IMAGE | {"image_size": 224, "patch_size": 16})
    config.projection_dim = 512
    torch.manual_seed(0)
    model = CLIPModel(config).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(mini_folder())
    return ClipBackbone("random ViT-B/16", model, tokenizer, CLIPImageProcessorPil()), model


def tower_step(model: CLIPModel, batch: int) -> Callable[[], None]:
    """Forward and backward of the image tower alone, from its embeddings on."""
    side = int(model.config.vision_config.image_size)
    with torch.no_grad():
        embedded = model.vision_model.embeddings(torch.randn(batch, 3, side, side))
    embedded.requires_grad_()

    def step() -> None:
        tower = model.vision_model
        states = tower.encoder(inputs_embeds=tower.pre_layrnorm(embedded)).last_hidden_state
        features = F.normalize(model.visual_projection(tower.post_layernorm(states[:, 0])), dim=-1)
        torch.autograd.grad(features.sum(), embedded)

    return step


def method_step(name: str, backbone: ClipBackbone, batch: int) -> Callable[[], None]:
    """A training step of a method on what it caches, with its default options."""
    method = METHODS.load(name)
    options = method.parse_options({})
    adapter = method.adapter(Vocabulary(backbone, NAMES, ("a {}.",)), options, torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1e-3)
    form = adapter.representation(backbone, options)
    images = torch.randn(batch, *kept_shape(backbone, form))
    labels = torch.arange(batch) % len(NAMES)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        adapter.loss(images, labels, tuple(range(len(NAMES)))).backward()
        optimizer.step()

    return step


def measure(names: list[str], folder: str | None, batch: int, repeat: int) -> list[dict[str, Any]]:
    """Medians of wall and processor time of each method and of the tower, all in turn."""
    if folder is None:
        backbone, model = random_vit_b16()
    else:
        loaded = load_backbone(folder)
        assert isinstance(loaded, ClipBackbone), "the image tower alone is measured for CLIP"
        backbone, model = loaded, CLIPModel.from_pretrained(folder).eval().requires_grad_(False)
    steps = {"": tower_step(model, batch), **{name: method_step(name, backbone, batch) for name in names}}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(repeat + 1):
        for name, step in steps.items():
            wall, processor = time.perf_counter(), time.process_time()
            step()
            if turn:  # the first warms up
                times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    medians = {
        name: [statistics.median(pair[which] for pair in own) for which in (0, 1)] for name, own in times.items()
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        {
            "method": name,
            "batch": batch,
            "step_seconds": medians[name][0],
            "tower_seconds": medians[""][0],
            "ratio": medians[name][0] / medians[""][0],
            "processor_ratio": medians[name][1] / medians[""][1],
            "peak_gib": peak,
        }
        for name in names
    ]
