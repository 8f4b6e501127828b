"""The plain forward of CLIP's image tower through transformers' own modules, with visual prompts put in by hooks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_features(model: Any, pixels: Tensor) -> Tensor:
    """What the library computes, unit rows (B, dim)."""
    pooled = model.vision_model(pixel_values=pixels).pooler_output
    return F.normalize(model.visual_projection(pooled), dim=-1)


@contextmanager
def prompts_in(model: Any, prompts: Sequence[Tensor | None], between: bool = False) -> Iterator[None]:
    """The library's own layers with prompts (B, n, width) put before each by hooks; None leaves a layer alone.

    Before the first layer they are put behind the embeddings, before the tower's first layer norm.

    Args:
        between: put them between class token and patches, as Jia et al. have it, in place of behind all tokens.
    """
    tower = model.vision_model
    at = 1 if between else tower.embeddings.position_embedding.weight.shape[0]

    def inserted(states: Tensor, own: Tensor) -> Tensor:
        return torch.cat([states[:, :at], own, states[:, at:]], dim=1)

    def replaced(states: Tensor, own: Tensor) -> Tensor:
        return torch.cat([states[:, :at], own, states[:, at + own.shape[1] :]], dim=1)

    def before_layer(own: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
        return lambda module, args, kwargs: ((change(args[0], own), *args[1:]), kwargs)

    handles = []
    first = True
    for index, own in enumerate(prompts):
        if own is None:
            continue
        if index == 0:
            handles.append(
                tower.embeddings.register_forward_hook(lambda module, args, out, own=own: inserted(out, own))
            )
        else:
            hook = before_layer(own, inserted if first else replaced)
            handles.append(tower.encoder.layers[index].register_forward_pre_hook(hook, with_kwargs=True))
        first = False
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
