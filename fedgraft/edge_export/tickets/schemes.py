"""Choosing what a ticket keeps: by one-shot magnitude, by magnitude alternating with training, or by learnt scores.

The three schemes of Robust Tickets Can Transfer Better (Fu et al. 2023), applied to a transformer instead of a ConvNet.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.func import functional_call

from fedgraft.backbones.prunable import PrunableTower
from fedgraft.edge_export.tickets.attack import Disturbance, Nothing
from fedgraft.edge_export.tickets.image_pool import ImagePool
from fedgraft.edge_export.tickets.objective import Matching
from fedgraft.edge_export.tickets.patterns import Groups, Pattern, masked
from fedgraft.edge_export.tickets.ticket_config import Scheme, TicketConfig
from fedgraft.edge_export.tickets.training import Stage, StageStore, optimize
from fedgraft.edge_export.tickets.tuning import described, tune

_ROUNDS = 4
_SCORE_LR = 0.02


@dataclass(frozen=True)
class Choice:
    """What a scheme is given.

    Attributes:
        config: how much is removed, in how many optimizer steps, with which seed.
        pattern: what is removed.
        pool: the images; needed only by schemes that take steps.
        disturbance: applied to the images of the steps between the cuts: the attack, for a robust ticket.
        store: keeps checkpoints.
    """

    config: TicketConfig
    pattern: Pattern
    pool: ImagePool | None
    disturbance: Disturbance
    store: StageStore


def one_shot(tower: PrunableTower, choice: Choice) -> Groups:
    """OMP: the groups with the largest magnitudes."""
    return choice.pattern.kept(choice.pattern.magnitudes(tower), choice.config.sparsity)


def iterative(tower: PrunableTower, choice: Choice) -> Groups:
    """IMP, or A-IMP where images are attacked: train, cut a part, rewind what stays to its first values, repeat."""
    assert choice.pool is not None
    config, pattern = choice.config, choice.pattern
    matching = Matching(choice.pool, choice.disturbance, config.batch_size)
    ladder = pattern.ladder(config.sparsity, _ROUNDS)
    kept = pattern.kept(pattern.magnitudes(tower), 0.0)
    for number, sparsity in enumerate(ladder):
        masks = pattern.masks(tower, kept)
        rewound = masked(tower, masks)
        of_round = {"disturbance": repr(choice.disturbance), "round": number, "batch_size": config.batch_size}
        decided_by = described(rewound, choice.pool, **of_round)
        stage = Stage("cuts", config.scheme_steps // len(ladder), config.seed, tower.learning_rates.whole, decided_by)
        trained = tune(rewound, matching, stage, choice.store, masks)
        kept = pattern.kept(pattern.magnitudes(trained), sparsity)
    return kept


def learnt(tower: PrunableTower, choice: Choice) -> Groups:
    """LMP: weights stay frozen, and each group's score is learnt by a straight-through gradient of the top ones.

    Scores start as magnitudes over their mean; the images are clean, since the mask is learnt on the task.
    """
    assert choice.pool is not None
    config, pattern = choice.config, choice.pattern
    matching = Matching(choice.pool, Nothing(), config.batch_size)
    scores = {name: magnitude / magnitude.mean() for name, magnitude in pattern.magnitudes(tower).items()}
    for score in scores.values():
        score.requires_grad_(True)
    weights = dict(tower.named_parameters())

    def loss(rng: np.random.Generator) -> Tensor:
        kept = {
            name: hard + scores[name] - scores[name].detach()
            for name, hard in pattern.kept({n: s.detach() for n, s in scores.items()}, config.sparsity).items()
        }
        factors = pattern.masks(tower, kept)
        cut = {name: weight * factors[name] if name in factors else weight for name, weight in weights.items()}
        return matching(lambda pixels: functional_call(tower, cut, (pixels,)), rng)

    of_masks = {"pattern": type(pattern).__name__, "sparsity": config.sparsity, "batch_size": config.batch_size}
    decided_by = described(tower, choice.pool, **of_masks)
    optimize(scores, loss, Stage("masks", config.scheme_steps, config.seed, _SCORE_LR, decided_by), choice.store)
    return pattern.kept({name: score.detach() for name, score in scores.items()}, config.sparsity)


SCHEMES: dict[Scheme, Callable[[PrunableTower, Choice], Groups]] = {"omp": one_shot, "imp": iterative, "lmp": learnt}
