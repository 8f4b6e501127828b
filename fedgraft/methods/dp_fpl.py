"""DP-FPL (Tran et al., ICLR 2025): a shared prompt noised at the server, a personal one noised through its factors.

Site k's prompt is p_G + p_k. In every step p_k, of full rank, is u v + r with orthonormal u (n_ctx, rank) and
v (rank, width) from one power iteration; the loss is cross-entropy, and with G its gradient

    dU = clip(G v^T, C_k) + N(0, (z_k C_k)^2),    dV = clip(u^T G, C_k) + N(0, (z_k C_k)^2)
    gradient of p_k = dU v + u dV - u u^T dU v

The server's rule is p_G <- p_G + (sum_k clip(update_k, C) + N(0, (z C)^2)) / sites asked, as under `central-dp`.

Where ours departs: a round has any number of local steps, and the update of p_G that they lead to is clipped; the
authors clip and send a gradient after every step. Noise is given as multipliers z, and what it promises is counted from
them: for the shared prompt that a site takes part, for the personal one whatever data its site has, which changes a
clipped gradient by up to 2 C_k. (The authors' code clips the gradient of a batch, takes C / batch size for its
sensitivity, and divides the gradients of u and v by 10; nothing here does.) As there, nothing is clipped without noise.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedgraft.core.randomness import keyed_normal, public_key
from fedgraft.methods.method import Method
from fedgraft.methods.prompts import ContextOptions, PromptAdapter, initial_context
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.central_dp import private_mean
from fedgraft.strategies.components import Outcome, Round, Rule, State, updates
from fedgraft.strategies.privacy import Participation, Privacy
from fedgraft.strategies.weighted_average import EqualAverage

_MOST = "most_examples"


class DPFPLOptions(ContextOptions):
    """Rank, clipping and noise."""

    rank: int = Field(8, ge=1, description="of u v, at most the length of the context", examples=[4])
    noise_multiplier: float = Field(
        1.0, ge=0, description="z, the noise on the sum of updates over clipping_norm; 0 for none", examples=[8.0]
    )
    clipping_norm: float = Field(1.0, gt=0, description="C, maximum norm of a site's update", examples=[0.001])
    local_noise_multiplier: float = Field(
        0.1, ge=0, description="z_k, the noise on gradients of u and v; 0 for none", examples=[0.2]
    )
    local_clipping_norm: float = Field(0.1, gt=0, description="C_k, maximum norm of these", examples=[0.01])
    delta: float = Field(1e-5, gt=0, lt=1, description="the delta at which epsilon is reported", examples=[1e-6])

    @model_validator(mode="after")
    def _noise_at_the_server_too(self) -> Self:
        if self.local_noise_multiplier and not self.noise_multiplier:
            raise ValueError(
                "local_noise_multiplier needs a noise_multiplier above 0: without it the shared prompt tells what the "
                "personal one hides; set both to 0 for no noise at all"
            )
        return self


class DPFPL(PromptAdapter):
    """p_G (1, n_ctx, width) shared, p_k of the same shape personal."""

    options: DPFPLOptions
    personal_names = frozenset({"local"})

    def build(self, generator: torch.Generator) -> None:
        """Both from Normal(0, 0.02^2)."""
        both = initial_context(self.vocabulary, self.options, generator)
        self.context = nn.Parameter(both)
        self.local = nn.Parameter(0.02 * torch.randn(both.shape, generator=generator))
        self.on_training_begin()

    @torch.no_grad()
    def on_training_begin(self) -> None:
        """The noise of a round is keyed by what it begins with, and that of a step by how many went before."""
        parts = [value.detach().cpu().numpy().tobytes() for value in (self.context, self.local)]
        self._begun = hashlib.sha256(b"".join(parts)).digest()
        self._step, self._last = 0, self.local.detach().clone()

    def prompts(self) -> Tensor:
        """The site's prompt."""
        return self.context + self.local

    def training_prompts(self) -> Tensor:
        """The same, whose personal part gets the gradient through its factors."""
        local = self.local.clone()
        if local.requires_grad:
            local.register_hook(self._through_factors)  # type: ignore[no-untyped-call]
        return self.context + local

    @torch.no_grad()
    def _through_factors(self, gradient: Tensor) -> Tensor:
        """The gradient (1, n_ctx, width) of p_k from the clipped and noised ones of u and v."""
        if not torch.equal(self._last, self.local):
            self._step, self._last = self._step + 1, self.local.detach().clone()
        left, right = self._factors()
        slopes = self._noised(gradient[0] @ right.T, "u"), self._noised(left.T @ gradient[0], "v")
        through = slopes[0] @ right
        return (through + left @ slopes[1] - left @ (left.T @ through))[None]

    def _factors(self) -> tuple[Tensor, Tensor]:
        """u (n_ctx, rank) and v (rank, width) of a power iteration from a random start."""
        prompt = self.local.detach()[0]
        rank = min(self.options.rank, *prompt.shape)
        start = self._normal("start", (prompt.shape[1], rank))
        left = torch.linalg.qr(prompt @ start)[0]
        return left, torch.linalg.qr(prompt.T @ left)[0].T

    def _noised(self, slope: Tensor, purpose: str) -> Tensor:
        """A gradient, clipped and noised."""
        multiplier, bound = self.options.local_noise_multiplier, self.options.local_clipping_norm
        if not multiplier:
            return slope
        short = slope * min(1.0, bound / max(float(slope.norm()), torch.finfo(slope.dtype).tiny))
        return short + multiplier * bound * self._normal(purpose, tuple(slope.shape))

    def _normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal values of the site, the round and the step."""
        where = self.adapter_context
        key = public_key(where.seed) if where.noise_key is None else where.noise_key()
        place = (where.fold, -1 if where.site is None else where.site, where.round, self._begun, self._step)
        drawn = keyed_normal(key, prod(shape), f"dp-fpl {purpose}", *place).reshape(shape)
        return torch.from_numpy(drawn).to(self.local)


@dataclass(frozen=True)
class PromptPrivacy(Privacy):
    """The account of both prompts; `local` is that of every site's own.

    Attributes:
        local_noise_multiplier, local_clipping_norm: as in `DPFPLOptions`.
    """

    local_noise_multiplier: float = 0.0
    local_clipping_norm: float = 1.0

    def spent(self, rounds: Sequence[Participation], values: int) -> dict[str, Any]:
        """That of the shared prompt, and under `local` that of the personal one of the site that trained most."""
        account = super().spent(rounds, values)
        multiplier, bound = account.pop("local_noise_multiplier"), account.pop("local_clipping_norm")
        if not multiplier:
            return account
        steps: dict[int, int] = {}
        for entry in rounds:
            for site in entry.asked:
                steps[site] = steps.get(site, 0) + entry.steps
        releases = 2 * max(steps.values(), default=0)
        local = Privacy("gradients of u and v", "other data of a site", multiplier, 2.0, bound, self.delta)
        return {
            **account,
            "local": {
                **asdict(local),
                "epsilon": local.epsilon(releases),
                "releases": releases,
                "covers": "a site's personal prompt",
            },
        }


class NoisedMean(Rule):
    """The mean of clipped updates with noise, or the plain mean without."""

    options: DPFPLOptions

    def __init__(self, options: DPFPLOptions) -> None:
        super().__init__(options)
        self.bounds_updates = options.noise_multiplier > 0

    def privacy(self) -> Privacy | None:
        """Per round: one site changes the sum by at most the clipping norm."""
        options = self.options
        if not options.noise_multiplier:
            return None
        return PromptPrivacy(
            "dp-fpl",
            "one site more or less",
            options.noise_multiplier,
            1.0,
            options.clipping_norm,
            options.delta,
            options.local_noise_multiplier,
            options.local_clipping_norm,
        )

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The next shared prompt, and how many examples the largest site has, for the account."""
        options, figures = self.options, {_MOST: float(max(answer.num_examples for answer in answers))}
        if not options.noise_multiplier:
            return Outcome(EqualAverage().aggregate(answers, now, state).arrays, figures=figures)
        changes = updates(answers, now.previous)
        mean = private_mean(changes, now.previous, options.clipping_norm, options.noise_multiplier, now)
        return Outcome(mean, figures=figures)


METHOD = Method(
    "dp-fpl",
    "a shared prompt noised at the server, a personal one that learns through noised factors",
    DPFPL,
    options=DPFPLOptions,
    rule=NoisedMean,
    paper="Tran et al., ICLR 2025",
    shared="the shared prompt",
    personal="a prompt of full rank",
    takes_no_strategy="its privacy account covers its own training and rule alone",
)
