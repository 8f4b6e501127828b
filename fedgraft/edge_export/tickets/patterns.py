"""What a ticket removes: single weights, weights in groups of four, rows of matrices, or heads and MLP units.

Every pattern splits the tower's matrices into groups, scores them, and keeps the best groups of each matrix (or of each
layer's heads and units): one threshold over the whole tower can empty a layer (MULTIFLOW, CVPR 2024). Embeddings, layer
norms, biases, the projection and the width of the residual stream stay.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from fedgraft.backbones.vision_tower import TowerLayer, VisionTower
from fedgraft.core.errors import UserError
from fedgraft.edge_export.tickets.structured import remove
from fedgraft.edge_export.tickets.ticket_config import PatternName

Groups = dict[str, Tensor]
"""One number per group, by the name of the matrix or layer part that the groups belong to."""
_MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")


class Pattern(ABC):
    """How the tower's matrices are split into groups that are kept or removed together."""

    @abstractmethod
    def magnitudes(self, tower: VisionTower) -> Groups:
        """The score of every group: the L2 norm of its weights."""

    @abstractmethod
    def check(self, tower: VisionTower, sparsity: float) -> None:
        """Check that the pattern allows a sparsity; raises UserError if it does not."""

    def kept(self, scores: Groups, sparsity: float) -> Groups:
        """1 for the highest-scoring groups under each name, 0 for the others; ties go to the first."""
        return {name: _best(score, score.numel() - _removed(score.numel(), sparsity)) for name, score in scores.items()}

    @abstractmethod
    def masks(self, tower: VisionTower, kept: Groups) -> dict[str, Tensor]:
        """A factor for each parameter that the pattern cuts, of the same shape, differentiable in `kept`."""

    def ladder(self, sparsity: float, rounds: int) -> list[float]:
        """Increasing sparsities up to the given one; each keeps the same fraction of what the previous one kept."""
        return [1 - (1 - sparsity) ** (number / rounds) for number in range(1, rounds)] + [sparsity]

    @torch.no_grad()
    def cut(self, tower: VisionTower, kept: Groups) -> VisionTower:
        """A tower without the removed groups; here their weights become zero."""
        return masked(tower, self.masks(tower, kept))

    def held(self, tower: VisionTower, kept: Groups) -> dict[str, Tensor]:
        """The masks that training after the cut must respect."""
        return self.masks(tower, kept)


class Unstructured(Pattern):
    """Each weight is a group."""

    def magnitudes(self, tower: VisionTower) -> Groups:
        """|w|, in the matrix's shape."""
        return {name: matrix.detach().abs() for name, matrix in matrices(tower)}

    def check(self, tower: VisionTower, sparsity: float) -> None:
        """Every sparsity is possible."""

    def masks(self, tower: VisionTower, kept: Groups) -> dict[str, Tensor]:
        """The groups are the weights."""
        return kept


class NOfM(Unstructured):
    """N of every M=4 neighbours in a row stay: at a sparsity of 0.5 the 2:4 pattern of NVIDIA's sparse tensor cores."""

    m = 4

    def check(self, tower: VisionTower, sparsity: float) -> None:
        """N must be whole, and rows divisible by M."""
        stays = self.m * (1 - sparsity)
        if abs(stays - round(stays)) > 1e-9 or round(stays) < 1:
            raise UserError(
                f"The pattern n:m keeps whole weights of every {self.m}: the sparsity is 0.25, 0.5 or 0.75, "
                f"not {sparsity}."
            )
        for name, matrix in matrices(tower):
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

    def magnitudes(self, tower: VisionTower) -> Groups:
        """(rows,) for each matrix."""
        return {name: matrix.detach().norm(dim=1) for name, matrix in matrices(tower)}

    def check(self, tower: VisionTower, sparsity: float) -> None:
        """No matrix may lose every row."""
        for name, matrix in matrices(tower):
            if _removed(len(matrix), sparsity) >= len(matrix):
                raise UserError(f"A sparsity of {sparsity} would remove all {len(matrix)} rows of {name}; give less.")

    def masks(self, tower: VisionTower, kept: Groups) -> dict[str, Tensor]:
        """Each row's factor along the row."""
        return {name: kept[name][:, None].expand_as(matrix) for name, matrix in matrices(tower)}


class Structured(Pattern):
    """Heads and MLP units are removed whole, which makes the matrices smaller and every device faster."""

    def magnitudes(self, tower: VisionTower) -> Groups:
        """(heads,) and (units,) for each layer."""
        groups: Groups = {}
        for number, layer in enumerate(tower.blocks):
            attention, mlp = layer.self_attn, layer.mlp
            inner = torch.cat([p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)], 1)
            channels = torch.cat([inner, attention.out_proj.weight.T], 1).detach()
            groups[f"{number}.heads"] = channels.view(-1, attention.head_width * channels.shape[1]).norm(dim=1)
            groups[f"{number}.units"] = torch.cat([mlp.fc1.weight, mlp.fc2.weight.T], 1).detach().norm(dim=1)
        return groups

    def check(self, tower: VisionTower, sparsity: float) -> None:
        """No layer may lose every head or every unit."""
        for number, (heads, units) in enumerate(zip(tower.shape.heads, tower.shape.units, strict=True)):
            for what, count in (("heads", heads), ("MLP units", units)):
                if _removed(count, sparsity) >= count:
                    most = (count - 1) / count
                    raise UserError(
                        f"A sparsity of {sparsity} would remove all {count} {what} of layer {number}; "
                        f"give at most {int(most * 1000) / 1000}."
                    )

    def masks(self, tower: VisionTower, kept: Groups) -> dict[str, Tensor]:
        """Rows of q, k, v and fc1, columns of out_proj and fc2."""
        factors: dict[str, Tensor] = {}
        for number, layer in enumerate(tower.blocks):
            channels = kept[f"{number}.heads"].repeat_interleave(tower.shape.head_width)
            units = kept[f"{number}.units"]
            for name, matrix in _matrices_of(number, layer):
                factor = units if ".mlp." in name else channels
                column = name.endswith(("out_proj.weight", "fc2.weight"))
                factors[name] = (factor[None] if column else factor[:, None]).expand_as(matrix)
        return factors

    @torch.no_grad()
    def cut(self, tower: VisionTower, kept: Groups) -> VisionTower:
        """Smaller matrices, without the removed rows and columns."""
        numbers = range(len(tower.layers))
        return remove(
            tower,
            [kept[f"{number}.heads"].nonzero()[:, 0] for number in numbers],
            [kept[f"{number}.units"].nonzero()[:, 0] for number in numbers],
        )

    def held(self, tower: VisionTower, kept: Groups) -> dict[str, Tensor]:
        """Nothing: no removed weight is left."""
        return {}


PATTERNS: dict[PatternName, Pattern] = {
    "unstructured": Unstructured(),
    "n:m": NOfM(),
    "rows": Rows(),
    "structured": Structured(),
}


def checked_pattern(name: PatternName, tower: VisionTower, sparsity: float) -> Pattern:
    """The pattern of a name, if it allows the sparsity.

    Raises:
        UserError: a sparsity outside [0, 1), or one that the pattern does not allow.
    """
    if not 0 <= sparsity < 1:
        raise UserError(f"The sparsity is the fraction to remove, at least 0 and less than 1, not {sparsity}.")
    pattern = PATTERNS[name]
    pattern.check(tower, sparsity)
    return pattern


def matrices(tower: VisionTower) -> Iterator[tuple[str, Tensor]]:
    """The matrices that tickets are cut from, by parameter name."""
    for number, layer in enumerate(tower.blocks):
        yield from _matrices_of(number, layer)


def masked(tower: VisionTower, masks: dict[str, Tensor]) -> VisionTower:
    """A copy with some parameters multiplied by masks."""
    copy = VisionTower(tower.shape)
    weights = {name: tensor * masks[name] if name in masks else tensor for name, tensor in tower.state_dict().items()}
    copy.load_state_dict(weights)
    return copy.eval().requires_grad_(False)


def _matrices_of(number: int, layer: TowerLayer) -> Iterator[tuple[str, Tensor]]:
    for path in _MATRICES:
        yield f"layers.{number}.{path}.weight", layer.get_parameter(f"{path}.weight")


def _removed(count: int, sparsity: float) -> int:
    return int(count * sparsity + 0.5)


def _best(scores: Tensor, stays: int) -> Tensor:
    return _best_of_rows(scores.reshape(1, -1), stays).view(scores.shape)


def _best_of_rows(scores: Tensor, stays: int) -> Tensor:
    """1 at the `stays` highest of the last dimension."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(scores).scatter(-1, order[..., :stays], 1.0)
