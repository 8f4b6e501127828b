"""Where the tokens of prompted class names stand in a bidirectional text tower, and which of them differ."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fedgraft.backbones.abilities import Placement
from fedgraft.backbones.backbone import ClassTokens


@dataclass(frozen=True, eq=False)
class Frame:
    """What stands around class names.

    Attributes:
        start: ID of the start token.
        length: positions that every sequence is padded to, where padding is read; None where it is left out.
        padding: ID of the padding that is read.
    """

    start: int
    length: int | None = None
    padding: int = 0


@dataclass(frozen=True, eq=False)
class PromptLayout:
    """The sequences [start; context; name; "."; end] of C classes, as rows before the first layer and packed behind it.

    The rows of the first layer are those that differ: a token at a position once, however many classes have it there,
    and a vector of the context once, if every class has it at the same position. Behind the first layer all sequences
    differ; they are packed one after another without padding, T tokens in all, the longest with L.

    Attributes:
        ids: (F,) token IDs of the fixed rows.
        positions: (F,) their positions.
        context_positions: (S,) positions of the context's rows, which follow the fixed ones.
        rows: (T,) the row of each packed token.
        padded_rows: (C, L) the same for each position of the padded sequences; any row for padding.
        kept: (T,) positions of the packed tokens in the flattened padded sequences.
        first: (C,) the start tokens among the packed tokens.
        ends: (C,) the end tokens among them.
        places: (C, n_ctx) the context among them.
        visible: (C, L) which positions are not left out.
    """

    ids: Tensor
    positions: Tensor
    context_positions: Tensor
    rows: Tensor
    padded_rows: Tensor
    kept: Tensor
    first: Tensor
    ends: Tensor
    places: Tensor
    visible: Tensor

    @property
    def padding(self) -> bool:
        """Whether any sequence is shorter than the longest."""
        return self.visible.numel() > len(self.kept)

    def padded(self, states: Tensor) -> Tensor:
        """(N, T, width) to (N, C, L, width), zero where there is padding."""
        count, length = self.visible.shape
        if self.padding:
            prompts, _, width = states.shape
            states = states.new_zeros(prompts, count * length, width).index_copy(1, self.kept, states)
        return states.view(len(states), count, length, -1)

    def packed(self, states: Tensor) -> Tensor:
        """(N, C, L, width) to (N, T, width)."""
        flat = states.flatten(1, 2)
        return flat.index_select(1, self.kept) if self.padding else flat


@lru_cache(maxsize=32)
def prompt_layout(
    classes: ClassTokens, frame: Frame, n_ctx: int, placement: Placement, each_class: bool
) -> PromptLayout:
    """The layout of class names around a context.

    Args:
        n_ctx: length of the context.
        placement: of the context; at the "middle" its smaller half stands before the name.
        each_class: whether each class has a context of its own.
    """
    count, device = len(classes.ids), classes.ids.device
    front = {"before": n_ctx, "middle": n_ctx // 2, "behind": 0}[placement]
    ends = classes.ends[:, None] + 1 + n_ctx  # positions of the end tokens
    column = torch.arange(frame.length or int(ends.max()) + 1, device=device).expand(count, -1)
    stop = ends - 1 - (n_ctx - front)  # the full stop and the end token follow the context
    before, behind = (column >= 1) & (column < 1 + front), (column >= stop) & (column < ends - 1)
    context = before | behind
    name = (column > 0) & (column <= ends) & ~context

    within = column - 1 - torch.where(column >= stop, n_ctx, front)  # a position among the name's own tokens
    longest = classes.ids.shape[1] - 1
    token = torch.where(name, classes.ids.gather(1, within.clamp(0, longest)), frame.padding)
    token[:, 0] = frame.start
    visible = column <= (ends if frame.length is None else column)
    fixed = visible & ~context
    size = column.shape[1]
    pairs, which = torch.unique(token[fixed] * size + column[fixed], return_inverse=True)

    shared = placement == "before" and not each_class
    number = torch.where(before, column - 1, column - stop + front)  # of a context vector
    own = 0 if shared else n_ctx * torch.arange(count, device=device)[:, None]
    row = torch.where(context, len(pairs) + own + number, 0)
    row[fixed] = which
    kept = visible.flatten().nonzero()[:, 0]
    rank = torch.zeros_like(row).flatten().index_copy(0, kept, torch.arange(len(kept), device=device)).view_as(row)
    positions = column[context].view(count, n_ctx)
    return PromptLayout(
        ids=pairs // size,
        positions=pairs % size,
        context_positions=positions[0] if shared else positions.flatten(),
        rows=row.flatten()[kept],
        padded_rows=row,
        kept=kept,
        first=rank[:, 0],
        ends=rank.gather(1, ends)[:, 0],
        places=rank[context].view(count, n_ctx),
        visible=visible,
    )
