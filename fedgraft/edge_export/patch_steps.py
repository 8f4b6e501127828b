"""Where the patches of an image tower become fewer, in the notation of `--keep-patches`. Imports no torch."""

import math
from dataclasses import dataclass

from fedgraft.core.errors import UserError

LEAST = 0.5
"""Merging pairs patches, so that one step halves them at most."""


@dataclass(frozen=True)
class PatchStep:
    """One reduction.

    Attributes:
        keep: the fraction of the patches that is left, from 0.5 to 1.
        layer: in which it happens, counted from 1, between attention and MLP.
    """

    keep: float
    layer: int

    def __str__(self) -> str:
        return f"{self.keep:g}@{self.layer}"

    def left(self, patches: int) -> int:
        """How many patches are left; a part of one counts as a whole."""
        return math.ceil(patches * self.keep - 1e-9)


def parse_steps(text: str) -> tuple[PatchStep, ...]:
    """Steps such as "0.5@4,0.75@8", those that keep everything left out; none for an empty text.

    Raises:
        UserError: another notation, a fraction below a half or above one, or layers that do not ascend.
    """
    steps = [_step(part.strip()) for part in text.split(",")] if text.strip() else []
    layers = [step.layer for step in steps]
    if layers != sorted(set(layers)):
        raise UserError(f"--keep-patches {text!r} names layers out of order or twice; give each once, ascending.")
    return tuple(step for step in steps if step.keep < 1)


def _step(text: str) -> PatchStep:
    keep, at, layer = text.partition("@")
    try:
        step = PatchStep(float(keep), int(layer))
    except ValueError:
        at = ""
    if not at or step.layer < 1:
        raise UserError(f"--keep-patches has {text!r}; write a fraction and a layer counted from 1, such as 0.5@4.")
    if not LEAST <= step.keep <= 1:
        raise UserError(
            f"--keep-patches has {text!r}; patches are merged in pairs, so give a fraction from {LEAST:g} to 1 and "
            "further layers to keep fewer."
        )
    return step
