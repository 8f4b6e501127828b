"""Optimizer steps that a kill does not change: every draw comes from the step, and a checkpoint holds all state."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fedgraft.core.files import write_bytes
from fedgraft.core.randomness import generator

Module = Callable[[Tensor], Tensor]
"""Pixels (B, 3, side, side) to embeddings (B, dim) of unit norm."""
StageProgress = Callable[[str, int, int], None]
"""Called with the stage's name, the steps done and the steps in all."""
_EVERY = 50


@dataclass(frozen=True)
class StageStore:
    """Where stages keep their checkpoints; a stage that is finished there is read instead of computed again.

    Attributes:
        folder: None keeps nothing.
        progress: called after every step.
    """

    folder: Path | None = None
    progress: StageProgress = lambda stage, done, total: None


@dataclass(frozen=True)
class Stage:
    """A named sequence of optimizer steps.

    Attributes:
        name: shown to the user, and the first part of the checkpoint's name.
        steps: their number.
        seed: of the batches and all other draws.
        lr: peak learning rate of Adam, after a short warm-up and before half a cosine to zero.
        decided_by: everything else that decides the result, as plain JSON; equal stages share a checkpoint.
    """

    name: str
    steps: int
    seed: int
    lr: float
    decided_by: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """SHA-256 over all of these, in hexadecimal."""
        content = [self.name, self.steps, self.seed, self.lr, dict(self.decided_by)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def optimize(
    parameters: dict[str, Tensor],
    loss: Callable[[np.random.Generator], Tensor],
    stage: Stage,
    store: StageStore,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Change parameters in place with Adam, continuing from the stage's checkpoint if there is one.

    Args:
        parameters: leaves that require gradients, by name.
        loss: the loss of one step, from that step's random generator.
        stage: the steps, and what decides them.
        store: keeps the checkpoint.
        after: called after every step, to restore what must not change.
    """
    names = sorted(parameters)
    leaves = [parameters[name] for name in names]
    adam = torch.optim.Adam(leaves, lr=stage.lr)
    path = None if store.folder is None else store.folder / f"{stage.name}-{stage.identity[:16]}.safetensors"
    first = _restore(path, parameters, adam)
    for step in range(first, stage.steps):
        for group in adam.param_groups:
            group["lr"] = stage.lr * _pace(step, stage.steps)
        gradients = torch.autograd.grad(loss(generator(stage.seed, stage.name, step)), leaves)
        torch._foreach_mul_(list(gradients), min(1.0, 1.0 / (_norm(gradients) + 1e-12)))
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        adam.step()
        after()
        if path is not None and ((step + 1) % _EVERY == 0 or step + 1 == stage.steps):
            _save(path, parameters, adam, step + 1)
        store.progress(stage.name, step + 1, stage.steps)
    for leaf in leaves:
        leaf.grad = None


def at_tenths(tell: Callable[[str], None]) -> StageProgress:
    """Progress as a sentence at every tenth of a stage."""

    def progress(stage: str, done: int, total: int) -> None:
        if done == total or done * 10 // total != (done - 1) * 10 // total:
            tell(f"{stage}: {done}/{total}")

    return progress


def _pace(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _norm(gradients: tuple[Tensor, ...]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))


def _save(path: Path, parameters: dict[str, Tensor], adam: torch.optim.Adam, step: int) -> None:
    tensors = {}
    for name, leaf in parameters.items():
        tensors[f"value.{name}"] = leaf.detach().contiguous()
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key}.{name}"] = adam.state[leaf][key].contiguous()
    write_bytes(path, save(tensors, {"step": str(step)}))


def _restore(path: Path | None, parameters: dict[str, Tensor], adam: torch.optim.Adam) -> int:
    if path is None or not path.exists():
        return 0
    with safe_open(path, framework="pt") as file, torch.no_grad():
        step = int(file.metadata()["step"])
        for name, leaf in parameters.items():
            leaf.copy_(file.get_tensor(f"value.{name}"))
            adam.state[leaf] = {key: file.get_tensor(f"{key}.{name}") for key in ("exp_avg", "exp_avg_sq")}
            adam.state[leaf]["step"] = torch.tensor(float(step))
    return step
