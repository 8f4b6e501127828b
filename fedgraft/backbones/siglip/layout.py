"""Where the tokens of prompted class names stand in a text tower that reads every position, padding included.

A position's input is a token's embedding plus the position's. Padding and a context that all classes share are the same
inputs in every class, so the first layer projects the distinct inputs only, and a class refers to them by their rows.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fedgraft.backbones.abilities import Placement
from fedgraft.backbones.backbone import ClassTokens


@dataclass(frozen=True, eq=False)
class Layout:
    """The inputs of C classes with P positions each, in columns: the n_ctx of the context, then all others in order.

    The last column is the last position, which the tower pools.

    Attributes:
        context: (X,) rows of the flattened context that are inputs: n_ctx vectors, or C x n_ctx of them.
        context_positions: (X,) their positions.
        tokens: (F,) token IDs of the other distinct inputs.
        positions: (F,) their positions.
        inputs: (C, P) the row of each column among the X + F distinct inputs.
        replaced: (C, P) the same once the context is replaced by n_ctx vectors that stand before the C x (P - n_ctx)
            states of all other columns.
    """

    context: Tensor
    context_positions: Tensor
    tokens: Tensor
    positions: Tensor
    inputs: Tensor
    replaced: Tensor

    @property
    def count(self) -> int:
        """The number of classes."""
        return len(self.inputs)


def layout(
    classes: ClassTokens, front: int, n_ctx: int, each_class: bool, positions: int, stop: int | None, padding: int
) -> Layout:
    """The layout of a context with `front` vectors before each name and the rest before its full stop or end token.

    Args:
        each_class: whether each class has a context of its own.
        positions: of the text tower; at least n_ctx and the longest name.
        stop: the token of the full stop that follows a name.
        padding: the token behind the end token.
    """
    ids, ends = classes.ids, classes.ends
    device, (count, length) = ids.device, ids.shape
    rest = positions - n_ctx
    before_end = ids.gather(1, (ends - 1).clamp(min=0)[:, None])[:, 0]
    name = ends - ((before_end == stop) & (ends > 0)).long() if stop is not None else ends
    name = name[:, None]

    vector = torch.arange(n_ctx, device=device).expand(count, -1)
    place = torch.where(vector < front, vector, vector + name)
    if each_class:
        source = torch.arange(count * n_ctx, device=device)
        context, context_positions = source, place.flatten()
        context_rows = source.view(count, n_ctx)
    else:
        keys, rows = torch.unique(vector * positions + place, return_inverse=True)
        context, context_positions, context_rows = keys // positions, keys % positions, rows

    column = torch.arange(rest, device=device).expand(count, -1)
    place = torch.where(column < name, column + front, column + n_ctx)
    token = torch.full((count, rest), padding, device=device)
    token[:, :length] = torch.where(torch.arange(length, device=device) <= ends[:, None], ids, padding)
    keys, rows = torch.unique(token * positions + place, return_inverse=True)
    own = n_ctx + torch.arange(count * rest, device=device).view(count, rest)
    return Layout(
        context,
        context_positions,
        keys // positions,
        keys % positions,
        torch.cat([context_rows, len(context) + rows], dim=1),
        torch.cat([vector, own], dim=1),
    )


@lru_cache(maxsize=16)
def layouts(
    classes: ClassTokens,
    placement: Placement,
    n_ctx: int,
    each_class: bool,
    positions: int,
    stop: int | None,
    padding: int,
    size: int,
) -> tuple[Layout, ...]:
    """Layouts of the classes in groups of at most `size`; see `layout`."""
    front = {"before": n_ctx, "middle": n_ctx // 2, "behind": 0}[placement]
    groups = zip(torch.split(classes.ids, size), torch.split(classes.ends, size), strict=True)
    return tuple(
        layout(ClassTokens(ids, ends), front, n_ctx, each_class, positions, stop, padding) for ids, ends in groups
    )
