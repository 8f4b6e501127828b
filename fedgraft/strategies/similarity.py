"""Every site receives a mean of its own, weighted by how alike changes are: HeurFedAMP (Huang et al., AAAI 2021).

    u_i = xi w_i + (1 - xi) sum_(j != i) a_ij w_j,    a_ij = exp(sigma cos_ij) / sum_(h != i) exp(sigma cos_ih),

with w_j the parameters that site j answers with. The paper takes the cosine of the parameters themselves, but those of
small adapters that began alike hardly differ in direction; so cos_ij is that of the changes since the run's start, as
in pFedGraph (Ye et al., ICML 2023).

A site that did not answer keeps the mean that it has, and one that never did has the mean of all, weighted by examples,
which is also the model of all sites, `global`. The server remembers the mean of every site.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Outcome, Round, Rule, State, StrategyComponent, Update, updates
from fedgraft.strategies.weighted_average import weighted_average


class SimilarityOptions(Options):
    """How much a site keeps of its own, and how choosy it is."""

    self_weight: float = Field(0.5, ge=0, le=1, description="xi, the weight of a site's own parameters", examples=[0.8])
    sharpness: float = Field(10.0, ge=0, description="sigma, of the cosines; 0 has all others alike", examples=[100.0])


class Similarity(Rule):
    """The mean of all, and in the state the mean of every site that has ever answered."""

    options: SimilarityOptions
    sends_each_its_own = True
    takes_no_steps = "every site receives a mean of its own, and steps change the mean of all"

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The means, and as `similarity` the mean cosine of two sites' changes."""
        cosines = alike(updates(answers, now.initial))
        weights = weights_of(cosines, self.options.self_weight, self.options.sharpness)
        means = dict(state)
        for row, answer in zip(weights, answers, strict=True):
            for name, array in answer.arrays.items():
                mixed = sum(w * other.arrays[name].astype(np.float64) for w, other in zip(row, answers, strict=True))
                means[f"{answer.site}/{name}"] = np.asarray(mixed).astype(array.dtype)
        pairs = cosines[~np.eye(len(answers), dtype=bool)]
        figures = {"similarity": float(pairs.mean())} if pairs.size else {}
        return Outcome(weighted_average(answers), means, figures)

    def common(self, shared: Arrays) -> Arrays:
        """Nothing."""
        return {}

    def own(self, site: int, shared: Arrays, state: State) -> Arrays:
        """The site's mean."""
        return {name: state.get(f"{site}/{name}", array) for name, array in shared.items()}


def alike(changes: Sequence[Update]) -> NDArray[np.float64]:
    """The cosine of every two changes, (n, n); 0 where a site has changed nothing."""
    rows = np.stack([np.concatenate([change[name].ravel() for name in sorted(change)]) for change in changes])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    cosines: NDArray[np.float64] = units @ units.T
    return cosines


def weights_of(cosines: NDArray[np.float64], self_weight: float, sharpness: float) -> NDArray[np.float64]:
    """What every site takes of each, (n, n); a site that is alone takes itself."""
    if len(cosines) == 1:
        return np.ones((1, 1))
    logits = sharpness * cosines
    np.fill_diagonal(logits, -np.inf)
    others = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights: NDArray[np.float64] = (1 - self_weight) * others / others.sum(axis=1, keepdims=True)
    return weights + self_weight * np.eye(len(cosines))


STRATEGY = StrategyComponent(
    "similarity",
    "each site receives a mean weighted by how alike the others' changes are to its own",
    Similarity,
    options=SimilarityOptions,
)
