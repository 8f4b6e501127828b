"""The server's rounds: who trains, which answers count, and how they are aggregated.

Flower's `Strategy` interface is not used: its `start` loop can neither resume nor be stopped, and nothing else calls
its methods; see docs/design.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.plain_text import plain
from fedgraft.core.randomness import generator, keyed_normal
from fedgraft.flower.messages import METRICS, NUM_EXAMPLES, SHARED, Arrays, from_array_record
from fedgraft.flower.record_values import arrays_in, metrics_in, real_number, whole_number
from fedgraft.methods.plan import Plan, asked_sites
from fedgraft.server.router import Reply
from fedgraft.server.secure_round import MaskedSum
from fedgraft.server.site_bounds import SiteBounds, ToldBounds
from fedgraft.strategies.answers import Answer, LeftOut
from fedgraft.strategies.components import Drift, Knowledge, Outcome, Round, State
from fedgraft.strategies.masked_sum import SummedAnswers
from fedgraft.strategies.norm_bound import Bounded, bounded
from fedgraft.strategies.site_share import capped

_USUAL = "usual norm"
"""The name of the norm bound's memory in the strategy's state."""
_UNUSED = "unused sums"
"""The name of the number of rounds in a row, up to now, whose sums could not be used; a third one ends the run."""


@dataclass(frozen=True)
class RoundResult:
    """The outcome of a round of training.

    Attributes:
        arrays: the next shared parameters.
        state: the strategy's state.
        figures: loss, example count, and the metrics of rule and steps, for the round's row; none without an aggregate.
        counted: the sites whose answers count.
        left_out: the other sites that were asked, and why.
        shortened: how many times the norm bound a site's update was, where it was longer.
        seconds: that the sites whose answers can be read have trained, together, as they report it.
        more_downlink, more_uplink: bytes per site of messages after the training.
        unused: why there is no aggregate of the answers, and the parameters are those of the round before.
    """

    arrays: Arrays
    state: State
    figures: dict[str, float]
    counted: list[int]
    left_out: list[LeftOut]
    shortened: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    more_downlink: int = 0
    more_uplink: int = 0
    unused: str = ""


class RoundDriver:
    """Samples sites from the seed, checks their answers, and aggregates them in site order.

    Args:
        fold: name of the fold, on which the draws depend.
        initial: the shared parameters of round 0.
        noise_key: keys the server's noise; secret if the noise is to protect anything.
        drift: measures the drift of shared parameters.
        bounds: on what sites may count; by default those of the configuration alone.
        knowledge: what class names show of shared parameters, for a strategy that needs it.
    """

    def __init__(
        self,
        plan: Plan,
        fold: str,
        initial: Arrays,
        noise_key: bytes,
        drift: Drift,
        bounds: SiteBounds | None = None,
        knowledge: Knowledge | None = None,
    ) -> None:
        self._plan, self._fold, self._initial = plan, fold, initial
        self._noise_key, self._drift, self._knowledge = noise_key, drift, knowledge
        self._bounds = bounds or ToldBounds(plan.config)

    def participants(self, server_round: int) -> list[int]:
        """The sites that train in a round, sorted."""
        config = self._plan.config
        count = asked_sites(config.sites, config.participation)
        rng = generator(config.seed, "participation", self._fold, server_round)
        return sorted(int(site) for site in rng.permutation(list(range(config.sites)))[:count])

    def conclude(self, server_round: int, previous: Arrays, replies: Sequence[Reply], state: State) -> RoundResult:
        """Check the replies of a round's participants, leave out invalid ones and aggregate the rest.

        Args:
            previous: the shared parameters that the sites began with.
            state: the strategy's state after the round before.

        Raises:
            RunFailed: fewer valid answers than the quorum or the strategy requires.
        """
        asked, composition = self.participants(server_round), self._plan.composition
        answers, silent = _answers(replies, asked, self._bounds)
        kept, bad = composition.rule.check_answers(answers, previous, server_round)
        left_out = sorted([*silent, *bad], key=lambda entry: entry.site)
        self.require_quorum(server_round, len(kept), left_out)
        examples = sum(answer.num_examples for answer in kept)
        weighted = capped(kept, self._plan.config.max_site_share)
        total = sum(answer.num_examples for answer in weighted)
        loss = sum(answer.loss * answer.num_examples for answer in weighted) / total
        within = self._within_bound(weighted, previous, state)
        outcome = composition.aggregate(within.answers, self._round(server_round, previous, len(asked)), state)
        return RoundResult(
            outcome.arrays,
            {**outcome.state, **({_USUAL: np.asarray(within.usual)} if within.usual else {})},
            {"loss": loss, "num_examples": examples, **outcome.figures},
            [answer.site for answer in kept],
            left_out,
            shortened=within.shortened,
            seconds=sum(answer.seconds for answer in answers),
        )

    def require_memory(self, state: State) -> None:
        """Raise UserError if a run cannot go on from a checkpoint's state."""
        self._plan.composition.require_memory(state, {name: array.shape for name, array in self._initial.items()})
        for name in (_USUAL, _UNUSED):
            value = state.get(name, np.asarray(0))
            if value.shape != () or not 0 <= float(value) < np.inf:
                raise UserError(f"The checkpoint's {name!r} is {plain(str(value))}, but must be at least 0.")

    def _within_bound(self, answers: list[Answer], previous: Arrays, state: State) -> Bounded:
        """The answers under the norm bound, which holds in deployments whose rule does not clip every update itself."""
        rule, multiple = self._plan.composition.rule, self._plan.config.norm_bound
        if not (self._plan.protocol.deployed and multiple) or rule.bounds_updates:
            return Bounded(answers, 0.0, {})
        received = self._plan.composition.received
        starts = [rule.start(answer, received(answer.site, previous, state)) for answer in answers]
        return bounded(answers, starts, float(state.get(_USUAL, 0.0)), multiple)

    def conclude_sum(
        self, server_round: int, previous: Arrays, rule: SummedAnswers, total: MaskedSum, state: State
    ) -> RoundResult:
        """Go on from the sum of answers that were masked, or from `previous` if that sum cannot be used.

        One site is enough to spoil a sum, and nobody can tell which: so a round without an aggregate does not end the
        run, but several in a row do.

        Args:
            previous, state: as in `conclude`.
            rule: the one that the answers were summed for.

        Raises:
            RunFailed: the sums of several rounds in a row cannot be used.
        """
        composition, asked = self._plan.composition, len(self.participants(server_round))
        now = self._round(server_round, previous, asked)
        unused, figures = "", dict[str, float]()
        try:
            outcome, told = rule.mean(total.unmasked(), len(total.counted), now)
        except ValueError as error:
            unused = str(error)
            outcome = Outcome(previous, _with_unused(server_round, unused, total.counted, state))
        else:
            outcome = composition.followed(outcome, now, state)
            figures = {"loss": told.loss, "num_examples": told.num_examples, **outcome.figures}
        return RoundResult(
            outcome.arrays,
            outcome.state,
            figures,
            total.counted,
            total.left_out,
            seconds=total.seconds,
            more_downlink=total.downlink,
            more_uplink=total.uplink,
            unused=unused,
        )

    def require_quorum(self, server_round: int, sound: int, left_out: Sequence[LeftOut]) -> None:
        """Raise RunFailed, with the reasons, if a round has too few sites left."""
        asked = len(self.participants(server_round))
        quorum = max(1, round(self._plan.config.quorum * asked))
        least = self._plan.composition.rule.needed_answers(asked)
        if sound < max(quorum, least):
            reasons = "; ".join(f"site {entry.site}: {entry.reason}" for entry in left_out)
            needed = f"the quorum is {quorum}" if quorum >= least else f"the strategy needs {least}"
            raise RunFailed(f"Round {server_round} has {sound} valid answers of {asked}, but {needed}. {reasons}")

    def _round(self, server_round: int, previous: Arrays, asked: int) -> Round:
        place = (self._fold, server_round)
        return Round(
            number=server_round,
            previous=previous,
            initial=self._initial,
            asked=asked,
            noise=lambda count, content: keyed_normal(self._noise_key, count, "server noise", *place, content),
            rounds=self._plan.config.rounds,
            drift=self._drift,
            knowledge=self._knowledge,
        )


def _with_unused(server_round: int, reason: str, counted: Sequence[int], state: State) -> State:
    """The state after one more round whose sum cannot be used; raises RunFailed if it is one too many."""
    unused = int(state.get(_UNUSED, 0)) + 1
    if unused == 3:
        sites = ", ".join(map(str, counted))
        raise RunFailed(
            f"Round {server_round} is the third in a row whose sum cannot be used: {reason}. Sums do not tell which "
            f"of the sites {sites} spoils them; resume the run without the one that you suspect."
        )
    return {**state, _UNUSED: np.asarray(unused)}


def _answers(replies: Sequence[Reply], asked: Sequence[int], bounds: SiteBounds) -> tuple[list[Answer], list[LeftOut]]:
    """The readable answers, and the asked sites without one."""
    answers: dict[int, Answer] = {}
    failed = dict.fromkeys(asked, "it did not answer in time")
    for reply in replies:
        if reply.site not in failed:
            continue
        try:
            answers[reply.site] = read_answer(reply, bounds)
        except ValueError as error:
            failed[reply.site] = reply.error or f"its answer cannot be read: {error}"
    left_out = [LeftOut(site, reason) for site, reason in failed.items() if site not in answers]
    return list(answers.values()), left_out


def read_answer(reply: Reply, bounds: SiteBounds) -> Answer:
    """The answer in a reply; raises ValueError if there is none, or it holds anything that an answer cannot hold."""
    if reply.content is None:
        raise ValueError(reply.error)
    metrics = metrics_in(reply.content, METRICS)
    examples = whole_number(metrics, NUM_EXAMPLES, 1, bounds.training(reply.site))
    seconds = real_number(metrics, "seconds") if "seconds" in metrics else 0.0
    arrays = from_array_record(arrays_in(reply.content, SHARED))
    return Answer(reply.site, arrays, examples, real_number(metrics, "loss"), max(0.0, seconds))
