"""How a ticket's groups are chosen: by magnitude at once, by magnitude in turns with training, or by learnt scores.

The three schemes of Robust Tickets Can Transfer Better (Fu et al. 2023), whose ConvNets are here a transformer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.func import functional_call

from fedgraft.backbones.vision_tower import VisionTower
from fedgraft.edge_export.tickets.attack import Disturbance, Nothing
from fedgraft.edge_export.tickets.image_pool import ImagePool
from fedgraft.edge_export.tickets.objective import Matching
from fedgraft.edge_export.tickets.patterns import Groups, Pattern, masked
from fedgraft.edge_export.tickets.training import Stage, Workplace, optimize
from fedgraft.edge_export.tickets.tuning import LR, described, tune

_ROUNDS = 4
_SCORE_LR = 0.02


@dataclass(frozen=True)
class Choice:
    """What a scheme chooses by.

    Attributes:
        pattern: what is removed.
        sparsity: how much of it.
        steps: of all optimizer steps together; one-shot magnitude takes none.
        seed: of their draws.
        pool: the images; only schemes that take steps need them.
        disturbance: what the images of the steps between the cuts undergo: the attack, for a robust ticket.
        place: where checkpoints go.
    """

    pattern: Pattern
    sparsity: float
    steps: int
    seed: int
    pool: ImagePool | None
    disturbance: Disturbance
    place: Workplace


def one_shot(tower: VisionTower, choice: Choice) -> Groups:
    """OMP: the groups with the largest magnitudes."""
    return choice.pattern.kept(choice.pattern.magnitudes(tower), choice.sparsity)


def iterative(tower: VisionTower, choice: Choice) -> Groups:
    """IMP, and A-IMP where images are attacked: train, cut a part, put what stays back to its first values, again."""
    assert choice.pool is not None
    pattern, matching = choice.pattern, Matching(choice.pool, choice.disturbance)
    ladder = pattern.ladder(choice.sparsity, _ROUNDS)
    kept = pattern.kept(pattern.magnitudes(tower), 0.0)
    for number, sparsity in enumerate(ladder):
        masks = pattern.masks(tower, kept)
        rewound = masked(tower, masks)
        words = described(rewound, choice.pool, disturbance=repr(choice.disturbance), round=number)
        stage = Stage("cuts", choice.steps // len(ladder), choice.seed, LR, words)
        trained = tune(rewound, matching, stage, choice.place, masks)
        kept = pattern.kept(pattern.magnitudes(trained), sparsity)
    return kept


def learnt(tower: VisionTower, choice: Choice) -> Groups:
    """LMP: the weights stand still, and each group's score learns by a straight-through gradient of the top ones.

    Scores begin as magnitudes over their mean, and the images are clean ones: the mask is learnt on the task.
    """
    assert choice.pool is not None
    pattern, matching = choice.pattern, Matching(choice.pool, Nothing())
    scores = {name: magnitude / magnitude.mean() for name, magnitude in pattern.magnitudes(tower).items()}
    for score in scores.values():
        score.requires_grad_(True)
    weights = dict(tower.named_parameters())

    def loss(rng: np.random.Generator) -> Tensor:
        kept = {
            name: hard + scores[name] - scores[name].detach()
            for name, hard in pattern.kept({n: s.detach() for n, s in scores.items()}, choice.sparsity).items()
        }
        factors = pattern.masks(tower, kept)
        cut = {name: weight * factors[name] if name in factors else weight for name, weight in weights.items()}
        return matching(lambda pixels: functional_call(tower, cut, (pixels,)), rng)

    words = described(tower, choice.pool, pattern=type(pattern).__name__, sparsity=choice.sparsity)
    optimize(scores, loss, Stage("masks", choice.steps, choice.seed, _SCORE_LR, words), choice.place)
    return pattern.kept({name: score.detach() for name, score in scores.items()}, choice.sparsity)


SCHEMES: dict[str, Callable[[VisionTower, Choice], Groups]] = {"omp": one_shot, "imp": iterative, "lmp": learnt}
STEPLESS = frozenset({"omp"})
"""Schemes that take no optimizer steps."""
