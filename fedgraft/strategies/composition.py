"""From a strategy's text to the components that server and sites use; mistakes are refused before training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedgraft.config.notation import parse_terms
from fedgraft.config.registry import STRATEGIES
from fedgraft.core.errors import UserError
from fedgraft.core.plain_text import plain
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Component, Outcome, Round, Rule, Shapes, SiteTransform, State, Step, Training
from fedgraft.strategies.joint_training import joint_training
from fedgraft.strategies.privacy import Privacy

_ORDER = (Training, SiteTransform, Rule, Step)


@dataclass(frozen=True)
class Composition:
    """What happens to a round's answers: at the site, in the rule (the method's own or the user's), in later steps."""

    rule: Rule
    transform: SiteTransform | None = None
    steps: tuple[Step, ...] = ()
    training: Training | None = None

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The result of rule and steps, with the state and metrics of all of them."""
        return self.followed(self.rule.aggregate(answers, now, _own_state(0, state)), now, state)

    def followed(self, outcome: Outcome, now: Round, state: State) -> Outcome:
        """The result of the steps after the rule's outcome, with the state and metrics of all of them."""
        kept = _named(0, outcome.state)
        for number, step in enumerate(self.steps, 1):
            following = step.next(outcome.arrays, now, _own_state(number, state))
            kept.update(_named(number, following.state))
            outcome = replace(following, figures={**outcome.figures, **following.figures})
        return replace(outcome, state=kept)

    def own(self, site: int, shared: Arrays, state: State) -> Arrays:
        """What one site receives beside what all receive; `state` is that of the whole composition."""
        return self.rule.own(site, shared, _own_state(0, state))

    def received(self, site: int, shared: Arrays, state: State) -> Arrays:
        """All that a site receives."""
        return {**self.rule.common(shared), **self.own(site, shared, state)}

    def require_memory(self, state: State, shared: Shapes) -> None:
        """Raise UserError if a checkpoint's state is not what these components remember of such parameters."""
        for number, component in enumerate((self.rule, *self.steps)):
            expected, known = component.memory(shared), _own_state(number, state)
            found = {name: array.shape for name, array in known.items() if np.isfinite(array).all()}
            if expected is not None and known and found != dict(expected):
                raise UserError(
                    f"The checkpoint's memory of the strategy's component {number} has the arrays {plain(str(found))}, "
                    f"but the strategy needs {plain(str(dict(expected)))}, all finite."
                )

    @property
    def needs_drift(self) -> bool:
        """Whether the rule or a step measures drift."""
        return any(component.needs_drift for component in (self.rule, *self.steps))

    @property
    def needs_slope(self) -> bool:
        """Whether the rule or a step follows a gradient of what class names show."""
        return any(component.needs_slope for component in (self.rule, *self.steps))

    def privacy(self) -> Privacy | None:
        """The guarantee for each round, or None."""
        promises = [component.privacy() for component in (self.transform, self.rule) if component is not None]
        return next(filter(None, promises), None)


def compose(text: str, own_rule: Rule) -> Composition:
    """The composition that a strategy's text describes.

    Args:
        text: as in `RunConfig.strategy`; empty for the method's own rule alone.
        own_rule: the method's.

    Raises:
        UserError: an option is invalid, or the components cannot be combined.
    """
    terms = [term.name for term in parse_terms(text)]
    components = [STRATEGIES.load(term.name).make(term.options) for term in parse_terms(text)]
    kinds = [_kind(component) for component in components]
    if kinds != sorted(kinds):
        raise UserError(
            f"The strategy {text!r} is out of order: a way to train comes first, then a site-side transform, then the "
            "aggregation rule, then the steps."
        )
    trainings = [component for component in components if isinstance(component, Training)]
    transforms = [component for component in components if isinstance(component, SiteTransform)]
    rules = [component for component in components if isinstance(component, Rule)]
    steps = tuple(component for component in components if isinstance(component, Step))
    _require_visible_answers(text, terms, components, own_rule)
    terms_of_loss = [training for training in trainings if training.adds_term]
    gradients = [training for training in trainings if not training.adds_term]
    for kind, found in (
        ("term of the sites' loss", terms_of_loss),
        ("way to take gradients", gradients),
        ("site-side transform", transforms),
        ("rule", rules),
    ):
        if len(found) > 1:
            raise UserError(f"The strategy {text!r} has more than one {kind}; keep one.")
    transform, rule = next(iter(transforms), None), next(iter(rules), None)
    if transform is not None and rule is not None and transform.privacy() and rule.privacy():
        raise UserError(f"The strategy {text!r} has two privacy mechanisms and would add noise twice; keep one.")
    if steps and (reason := (rule or own_rule).takes_no_steps):
        raise UserError(f"The strategy {text!r} has the step {terms[-1]!r} after a rule that takes none: {reason}.")
    training = joint_training(next(iter(terms_of_loss), None), next(iter(gradients), None))
    return Composition(rule or own_rule, transform, steps, training)


def _require_visible_answers(text: str, names: Sequence[str], components: Sequence[Component], own_rule: Rule) -> None:
    """Raise UserError if one rule hides the answers and another one must see them."""
    rules = [(name, rule) for name, rule in zip(names, components, strict=True) if isinstance(rule, Rule)]
    hiding = next((name for name, rule in rules if rule.summed()), None)
    if hiding is None:
        return
    for name, rule in rules:
        if not rule.summed() and not rule.is_weighted_mean:
            raise UserError(
                f"The strategy {text!r} cannot work: {name!r} needs every site's own answer, and {hiding!r} shows the "
                "server only their sum; keep one of them."
            )
    if not own_rule.is_weighted_mean:
        raise UserError(
            f"The strategy {text!r} cannot work with this method: its own rule is not a weighted mean and needs every "
            f"site's own answer, and {hiding!r} shows the server only their sum; choose another method."
        )


def _kind(component: Component) -> int:
    return next(number for number, kind in enumerate(_ORDER) if isinstance(component, kind))


def _own_state(number: int, state: State) -> State:
    """One component's part of the whole state: the rule is number 0, the steps are numbered from 1."""
    prefix = f"{number}/"
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _named(number: int, state: State) -> State:
    return {f"{number}/{name}": value for name, value in state.items()}
