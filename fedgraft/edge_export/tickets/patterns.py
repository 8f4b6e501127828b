"""What a ticket removes: single weights, weights in groups of four, rows of matrices, or heads, units and channels.

Every pattern splits the tower's matrices into groups, scores them, and keeps the best groups of each matrix (or of each
layer's heads, units or channels): one threshold over the whole tower can empty a layer (MULTIFLOW, CVPR 2024).
Embeddings, layer norms, biases, the projection and the width of the residual stream stay. What a tower has of these, it
says itself, see `fedgraft.backbones.prunable`.
"""

from abc import ABC, abstractmethod
from copy import deepcopy

import torch
from torch import Tensor

from fedgraft.backbones.prunable import PrunableTower
from fedgraft.core.errors import UserError
from fedgraft.edge_export.tickets.structured import remove
from fedgraft.edge_export.tickets.ticket_config import PatternName

Groups = dict[str, Tensor]
"""One number per group, by the name of the matrix or layer part that the groups belong to."""


class Pattern(ABC):
    """How the tower's matrices are split into groups that are kept or removed together."""

    @abstractmethod
    def magnitudes(self, tower: PrunableTower) -> Groups:
        """The score of every group: the L2 norm of its weights."""

    @abstractmethod
    def check(self, tower: PrunableTower, sparsity: float) -> None:
        """Check that the pattern allows a sparsity; raises UserError if it does not."""

    def kept(self, scores: Groups, sparsity: float) -> Groups:
        """1 for the highest-scoring groups under each name, 0 for the others; ties go to the first."""
        return {name: _best(score, score.numel() - _removed(score.numel(), sparsity)) for name, score in scores.items()}

    @abstractmethod
    def masks(self, tower: PrunableTower, kept: Groups) -> dict[str, Tensor]:
        """A factor for each parameter that the pattern cuts, of the same shape, differentiable in `kept`."""

    def ladder(self, sparsity: float, rounds: int) -> list[float]:
        """Increasing sparsities up to the given one; each keeps the same fraction of what the previous one kept."""
        return [1 - (1 - sparsity) ** (number / rounds) for number in range(1, rounds)] + [sparsity]

    @torch.no_grad()
    def cut(self, tower: PrunableTower, kept: Groups) -> PrunableTower:
        """A tower without the removed groups; here their weights become zero."""
        return masked(tower, self.masks(tower, kept))

    def held(self, tower: PrunableTower, kept: Groups) -> dict[str, Tensor]:
        """The masks that training after the cut must respect."""
        return self.masks(tower, kept)


class Unstructured(Pattern):
    """Each weight is a group."""

    def magnitudes(self, tower: PrunableTower) -> Groups:
        """|w|, in the matrix's shape."""
        return {name: matrix.detach().abs() for name, matrix in tower.matrices()}

    def check(self, tower: PrunableTower, sparsity: float) -> None:
        """Every sparsity is possible."""

    def masks(self, tower: PrunableTower, kept: Groups) -> dict[str, Tensor]:
        """The groups are the weights."""
        return {name: kept[name].view_as(tower.get_parameter(name)) for name, _ in tower.matrices()}


class NOfM(Unstructured):
    """N of every M=4 neighbours in a row stay: at a sparsity of 0.5 the 2:4 pattern of NVIDIA's sparse tensor cores."""

    m = 4

    def check(self, tower: PrunableTower, sparsity: float) -> None:
        """N must be whole, and rows divisible by M."""
        stays = self.m * (1 - sparsity)
        if abs(stays - round(stays)) > 1e-9 or round(stays) < 1:
            raise UserError(
                f"The pattern n:m keeps whole weights of every {self.m}: the sparsity is 0.25, 0.5 or 0.75, "
                f"not {sparsity}."
            )
        for name, matrix in tower.matrices():
            if matrix.shape[1] % self.m:
                raise UserError(
                    f"The pattern n:m needs rows of a multiple of {self.m} weights; {name} has {matrix.shape[1]}."
                )

    def ladder(self, sparsity: float, rounds: int) -> list[float]:
        """One more weight of each M at every step."""
        return [number / self.m for number in range(1, round(sparsity * self.m) + 1)] or [sparsity]

    def kept(self, scores: Groups, sparsity: float) -> Groups:
        """The best N of each M."""
        stays = round(self.m * (1 - sparsity))
        return {
            name: _best_of_rows(score.view(len(score), -1, self.m), stays).flatten(1) for name, score in scores.items()
        }


class Rows(Pattern):
    """Each row of a matrix is a group: the weights of an output channel become zero."""

    def magnitudes(self, tower: PrunableTower) -> Groups:
        """(rows,) for each matrix."""
        return {name: matrix.detach().norm(dim=1) for name, matrix in tower.matrices()}

    def check(self, tower: PrunableTower, sparsity: float) -> None:
        """No matrix may lose every row."""
        for name, matrix in tower.matrices():
            if _removed(len(matrix), sparsity) >= len(matrix):
                raise UserError(f"A sparsity of {sparsity} would remove all {len(matrix)} rows of {name}; give less.")

    def masks(self, tower: PrunableTower, kept: Groups) -> dict[str, Tensor]:
        """Each row's factor along the row."""
        return {name: _along(kept[name], tower.get_parameter(name), 0) for name, _ in tower.matrices()}


class Structured(Pattern):
    """Heads, MLP units and hidden channels are removed whole: smaller matrices, and every device is faster."""

    def magnitudes(self, tower: PrunableTower) -> Groups:
        """(count,) for each part."""
        groups: Groups = {}
        for part in tower.parts():
            owned = [tower.get_parameter(name).flatten(1) for name in part.rows]
            owned += [tower.get_parameter(name).transpose(0, 1).flatten(1) for name in part.columns]
            positions = torch.cat(owned, 1).detach()
            groups[part.name] = positions.reshape(part.count, -1).norm(dim=1)
        return groups

    def check(self, tower: PrunableTower, sparsity: float) -> None:
        """No layer may lose every head, unit or channel."""
        for part in tower.parts():
            if _removed(part.count, sparsity) >= part.count:
                most = (part.count - 1) / part.count
                raise UserError(
                    f"A sparsity of {sparsity} would remove all {part.count} {part.what} of {part.place}; "
                    f"give at most {int(most * 1000) / 1000}."
                )

    def masks(self, tower: PrunableTower, kept: Groups) -> dict[str, Tensor]:
        """The rows and columns of each part."""
        factors: dict[str, Tensor] = {}
        for part in tower.parts():
            factor = kept[part.name].repeat_interleave(part.width)
            for dimension, names in enumerate((part.rows, part.columns)):
                factors |= {name: _along(factor, tower.get_parameter(name), dimension) for name in names}
        return factors

    @torch.no_grad()
    def cut(self, tower: PrunableTower, kept: Groups) -> PrunableTower:
        """Smaller matrices, without the removed rows and columns."""
        return remove(tower, {name: stays.nonzero()[:, 0] for name, stays in kept.items()})

    def held(self, tower: PrunableTower, kept: Groups) -> dict[str, Tensor]:
        """Nothing: no removed weight is left."""
        return {}


PATTERNS: dict[PatternName, Pattern] = {
    "unstructured": Unstructured(),
    "n:m": NOfM(),
    "rows": Rows(),
    "structured": Structured(),
}


def checked_pattern(name: PatternName, tower: PrunableTower, sparsity: float) -> Pattern:
    """The pattern of a name, if it allows the sparsity.

    Raises:
        UserError: a sparsity outside [0, 1), or one that the pattern does not allow.
    """
    if not 0 <= sparsity < 1:
        raise UserError(f"The sparsity is the fraction to remove, at least 0 and less than 1, not {sparsity}.")
    pattern = PATTERNS[name]
    pattern.check(tower, sparsity)
    return pattern


def masked(tower: PrunableTower, masks: dict[str, Tensor]) -> PrunableTower:
    """A copy with some parameters multiplied by masks."""
    copy = deepcopy(tower)
    for name, mask in masks.items():
        copy.get_parameter(name).data.mul_(mask)
    return copy.eval().requires_grad_(False)


def _along(factors: Tensor, parameter: Tensor, dimension: int) -> Tensor:
    """One factor for each position of a dimension, in the parameter's shape."""
    shape = [-1 if number == dimension else 1 for number in range(parameter.ndim)]
    return factors.view(shape).expand_as(parameter)


def _removed(count: int, sparsity: float) -> int:
    return int(count * sparsity + 0.5)


def _best(scores: Tensor, stays: int) -> Tensor:
    return _best_of_rows(scores.reshape(1, -1), stays).view(scores.shape)


def _best_of_rows(scores: Tensor, stays: int) -> Tensor:
    """1 at the `stays` highest of the last dimension."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(scores).scatter(-1, order[..., :stays], 1.0)
