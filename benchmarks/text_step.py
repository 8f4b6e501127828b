"""A step of methods that train prompts of the text tower, against PromptFL's, for `benchmarks.step --method`.

PromptFL's side has as many prompts, of the same length, as the method's step encodes: they are counted at the text
tower, once the features that stay the same for a whole round are there. Both sides run in turn on cached features of a
ViT-B/16 with random weights, which do not matter to the time. `apart_ratio` is against as many steps of PromptFL with
one prompt each.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from fedgraft.backbones import Backbone
from fedgraft.backbones.kept_images import kept_shape
from fedgraft.config.registry import METHODS
from fedgraft.methods.adapter import Adapter, AdapterContext, Batch
from fedgraft.methods.vocabulary import Vocabulary

SITES = 100
"""Of the run, from which a method that uses other sites' prompts takes as many as it does by default."""


class Encoded(NamedTuple):
    """What a step gives to the text tower: prompts, and the context vectors of each."""

    prompts: int
    n_ctx: int


def adapter_of(name: str, vocabulary: Vocabulary, n_ctx: int) -> Adapter:
    """With its default options but for the length of the context."""
    method = METHODS.load(name)
    options = method.parse_options({"n_ctx": n_ctx})
    return method.adapter(vocabulary, options, torch.Generator().manual_seed(0), AdapterContext(site=0, sites=SITES))


def step_of(adapter: Adapter, batch: int, classes: tuple[int, ...]) -> Callable[[], None]:
    """A training step on the images that the method caches."""
    shape = kept_shape(
        adapter.vocabulary.backbone, adapter.representation(adapter.vocabulary.backbone, adapter.options)
    )
    images = F.normalize(torch.randn(batch, *shape), dim=-1)
    labels = torch.arange(batch) % len(classes)
    optimizer = torch.optim.SGD([p for p in adapter.parameters() if p.requires_grad], lr=1e-3)
    adapter.on_training_begin()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.stack(type(adapter).losses([adapter], [Batch(images, labels)], classes)).sum().backward()
        optimizer.step()

    return step


@contextmanager
def watched(vocabulary: Vocabulary) -> Iterator[list[Encoded]]:
    """A list that grows by what the text tower is asked to encode."""
    seen: list[Encoded] = []
    text = vocabulary.backbone.text
    encode = text.encode_prompts

    def spy(prompts: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        seen.append(Encoded(len(prompts), prompts.shape[-2]))
        return encode(prompts, *rest, **options)

    with mock.patch.object(text, "encode_prompts", spy):
        yield seen


def promptfl_with(passes: list[Encoded], vocabulary: Vocabulary, batch: int) -> Callable[[], None]:
    """A step of PromptFL for each pass, with as many prompts of the same length."""
    classes = tuple(range(len(vocabulary.class_names)))
    steps = []
    for prompts, n_ctx in passes:
        adapter: Any = adapter_of("promptfl", vocabulary, n_ctx)
        adapter.context = nn.Parameter(0.02 * torch.randn(prompts, n_ctx, vocabulary.backbone.text.width))
        steps.append(step_of(adapter, batch, classes))
    return lambda: [step() for step in steps] and None


def measure(
    names: list[str], backbone: Backbone, class_names: list[str], batch: int, n_ctx: int, repeat: int
) -> Iterator[dict[str, Any]]:
    """Medians of each method and of its two counterparts, in turn."""
    vocabulary = Vocabulary(backbone, class_names, ("a photo of a {}.",))
    classes = tuple(range(len(class_names)))
    for name in names:
        step = step_of(adapter_of(name, vocabulary, n_ctx), batch, classes)
        step()
        with watched(vocabulary) as passes:
            step()
        single = [Encoded(1, own.n_ctx) for own in passes for _ in range(own.prompts)]
        sides = (step, promptfl_with(passes, vocabulary, batch), promptfl_with(single, vocabulary, batch))
        times: list[list[float]] = [[], [], []]
        for turn in range(repeat + 1):
            for side, own in zip(sides, times, strict=True):
                began = time.perf_counter()
                side()
                if turn:  # the first warms up
                    own.append(time.perf_counter() - began)
        ours, theirs, apart = map(statistics.median, times)
        yield {
            "method": name,
            "classes": len(classes),
            "batch": batch,
            "prompts": "+".join(f"{own.prompts}x{own.n_ctx}" for own in passes),
            "step_seconds": ours,
            "promptfl_seconds": theirs,
            "ratio": ours / theirs,
            "apart_ratio": ours / apart,
        }
