"""From what a user wrote to the parts that the server and the sites use, refused before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedgraft.config import RunConfig
from fedgraft.errors import UserError
from fedgraft.messages import Arrays
from fedgraft.registry import STRATEGIES
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.parts import Drift, Outcome, Round, Rule, SitePart, State, Step, StrategyPart
from fedgraft.strategies.privacy import Privacy
from fedgraft.terms import parse_terms


@dataclass(frozen=True)
class Composition:
    """The parts of a user's strategy; without any the method's own rule decides alone."""

    site: SitePart | None = None
    rule: Rule | None = None
    steps: tuple[Step, ...] = ()

    def after(self, outcome: Outcome, now: Round, state: State) -> Outcome:
        """What the steps make of an aggregate, with the state of all parts and the figures of all parts."""
        kept = _named(0, outcome.state)
        for number, step in enumerate(self.steps, 1):
            following = step.next(outcome.arrays, now, own_state(number, state))
            kept.update(_named(number, following.state))
            outcome = replace(following, figures={**outcome.figures, **following.figures})
        return replace(outcome, state=kept)

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome | None:
        """What the rule makes of the answers, or None where the method's own decides."""
        return self.rule.aggregate(answers, now, own_state(0, state)) if self.rule else None

    def least(self) -> int:
        """How many answers a round needs."""
        return self.rule.least() if self.rule else 1

    def needs_drift(self) -> bool:
        """Whether a step measures drift."""
        return any(step.needs_drift for step in self.steps)

    def privacy(self) -> Privacy | None:
        """What is promised of each round, or None where nothing is."""
        promises = [part.privacy() for part in (self.site, self.rule) if part is not None]
        return next(filter(None, promises), None)


@dataclass(frozen=True)
class Addition:
    """What the server adds to the method's own rule.

    Attributes:
        composition: the user's strategy.
        initial: the shared parameters of round 0.
        rounds: of the run.
        noise_key: of the server's noise, secret where the noise is to protect anything.
        drift: of shared parameters.
    """

    composition: Composition
    initial: Arrays
    rounds: int
    noise_key: bytes
    drift: Drift


def own_state(number: int, state: State) -> State:
    """The state of one part out of that of all: the rule is part 0, the steps are numbered from 1."""
    prefix = f"{number}/"
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _named(number: int, state: State) -> State:
    return {f"{number}/{name}": value for name, value in state.items()}


def compose(config: RunConfig) -> Composition:
    """The parts of a configuration's strategy.

    Raises:
        UserError: an option is wrong, or the parts do not go together.
    """
    text = config.strategy
    parts = []
    for term in parse_terms(text):
        registered: StrategyPart = STRATEGIES.load(term.name)
        parts.append(registered.make(term.options))
    kinds = [next(kind for kind in (SitePart, Rule, Step) if isinstance(part, kind)) for part in parts]
    if kinds != sorted(kinds, key=[SitePart, Rule, Step].index):
        raise UserError(
            f"The strategy {text!r} is out of order: what a site does comes first, then the rule that aggregates, "
            "then the steps behind it."
        )
    sites = [part for part in parts if isinstance(part, SitePart)]
    rules = [part for part in parts if isinstance(part, Rule)]
    steps = tuple(part for part in parts if isinstance(part, Step))
    for kind, found in (("part at the site", sites), ("rule", rules)):
        if len(found) > 1:
            raise UserError(f"The strategy {text!r} has more than one {kind}; keep one.")
    site, rule = next(iter(sites), None), next(iter(rules), None)
    if site is not None and rule is not None and site.privacy() and rule.privacy():
        raise UserError(f"The strategy {text!r} promises privacy twice, and would add noise twice; keep one.")
    return Composition(site, rule, steps)


def check_strategy(config: RunConfig, takes_no_strategy: str, keeps_its_rule: str, asked: int) -> None:
    """Refuse a strategy that cannot work.

    Args:
        takes_no_strategy: why the method can be combined with none, if so.
        keeps_its_rule: why it can be combined with steps alone, if so.
        asked: how many sites are asked to train in a round.

    Raises:
        UserError: it is mistaken, the method takes none, or a round has too few sites for the rule.
    """
    composition = compose(config)
    if composition == Composition():
        return
    if takes_no_strategy:
        raise UserError(
            f"The method {config.method!r} takes no strategy, because {takes_no_strategy}; leave out "
            f"{config.strategy!r}."
        )
    if keeps_its_rule and (composition.site or composition.rule):
        raise UserError(
            f"The method {config.method!r} keeps its own rule, because {keeps_its_rule}; leave out of "
            f"{config.strategy!r} what is no step. Steps such as 'anchored' may follow the rule."
        )
    if asked < composition.least():
        raise UserError(
            f"The strategy {config.strategy!r} needs the answers of {composition.least()} sites in a round, and the "
            f"run asks {asked} of its {config.sites} sites; take more sites, or ask less of the rule."
        )
    if composition.rule is not None:
        composition.rule.check(asked)
