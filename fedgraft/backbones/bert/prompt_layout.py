"""Where the tokens of prompted class names stand: which rows differ, and how sequences are made of them."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fedgraft.backbones.backbone import ClassTokens, Placement


@dataclass(frozen=True, eq=False)
class PromptLayout:
    """The sequences [start; context; name; "."; end] of C classes, as rows before the first layer and packed behind it.

    The rows of the first layer are those that differ: the start token once, the tokens of all names one after another,
    and the context's vectors, once if every class has them at the same positions. Behind the first layer all sequences
    differ; they are packed one after another without padding, T tokens in all, the longest with L.

    Attributes:
        ids: (F,) token IDs of the fixed rows: the start token and the names.
        positions: (F,) their positions.
        context_positions: (S,) positions of the context's rows, which follow the fixed ones.
        rows: (T,) the row of each packed token.
        padded_rows: (C, L) the same for each position of the padded sequences; the start token's row for padding.
        kept: (T,) positions of the packed tokens in the flattened padded sequences.
        first: (C,) the start tokens among the packed tokens.
        places: (C, n_ctx) the context among the packed tokens.
        visible: (C, L) which positions are not padding.
    """

    ids: Tensor
    positions: Tensor
    context_positions: Tensor
    rows: Tensor
    padded_rows: Tensor
    kept: Tensor
    first: Tensor
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
def prompt_layout(classes: ClassTokens, start: int, n_ctx: int, placement: Placement, each_class: bool) -> PromptLayout:
    """The layout of class names around a context.

    Args:
        start: ID of the start token.
        n_ctx: length of the context.
        placement: of the context; at the "middle" its smaller half stands before the name.
        each_class: whether each class has a context of its own.
    """
    count, device = len(classes.ids), classes.ids.device
    lengths = classes.ends + 1
    front = {"before": n_ctx, "middle": n_ctx // 2, "behind": 0}[placement]
    column = torch.arange(1 + n_ctx + int(lengths.max()), device=device).expand(count, -1)
    visible = column < 1 + n_ctx + lengths[:, None]
    stop = 1 + front + classes.ends[:, None] - 1  # of the name; the full stop and the end token follow the context
    before, behind = (column >= 1) & (column < 1 + front), (column >= stop) & (column < stop + n_ctx - front)
    name = visible & (column > 0) & ~before & ~behind
    within = column - 1 - front - torch.where(column >= stop, n_ctx - front, 0)  # a position in the name's tokens
    begins = 1 + lengths.cumsum(0) - lengths
    fixed = 1 + int(lengths.sum())
    number = torch.where(before, column - 1, column - stop + front)  # of a context vector
    shared = placement == "before" and not each_class
    own = 0 if shared else n_ctx * torch.arange(count, device=device)[:, None]
    row = torch.where(name, begins[:, None] + within, 0)
    row = torch.where(visible & (before | behind), fixed + own + number, row)
    kept = visible.flatten().nonzero()[:, 0]
    rank = torch.zeros_like(row).flatten().index_copy(0, kept, torch.arange(len(kept), device=device)).view_as(row)
    context = visible & (before | behind)
    context_columns = column[context].view(count, n_ctx)
    return PromptLayout(
        ids=torch.cat([classes.ids.new_tensor([start]), classes.ids.flatten()[classes.kept]]),
        positions=torch.cat([column.new_zeros(1), column[name]]),
        context_positions=context_columns[0] if shared else context_columns.flatten(),
        rows=row.flatten()[kept],
        padded_rows=row,
        kept=kept,
        first=rank[:, 0],
        places=rank[context].view(count, n_ctx),
        visible=visible,
    )
