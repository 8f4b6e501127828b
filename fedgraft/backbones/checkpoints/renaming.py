"""Weights under other names: rules, what is missing and left over, and whether shapes fit a configuration."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from fedgraft.backbones.checkpoints.quiet import quietly
from fedgraft.backbones.checkpoints.weights import Weight, Weights, some
from fedgraft.core.errors import UserError

Change = Callable[[Weight], Weight]


@dataclass(frozen=True)
class Rule:
    """One weight of a checkpoint and what it becomes.

    Attributes:
        source: its name.
        targets: the names of what is made of it, each with how; none where it is not needed.
    """

    source: str
    targets: dict[str, Change] = field(default_factory=dict)


def same(source: str, target: str, change: Change = lambda weight: weight) -> Rule:
    """One weight that becomes one."""
    return Rule(source, {target: change})


def thirds(source: str, targets: Iterable[str]) -> Rule:
    """A joint projection that becomes three."""
    return Rule(source, {target: partial(_third, number) for number, target in enumerate(targets)})


def renamed(weights: Weights, rules: Iterable[Rule]) -> Weights:
    """The weights under the names of a model.

    Raises:
        UserError: a rule's weight is missing, or a weight has no rule.
    """
    made: Weights = {}
    missing, left = [], dict(weights)
    for rule in rules:
        if rule.source not in weights:
            missing.append(rule.source)
            continue
        weight = left.pop(rule.source)
        made |= {target: change(weight) for target, change in rule.targets.items()}
    if missing:
        raise UserError(f"The checkpoint lacks {len(missing)} weights: {some(missing)}.")
    if left:
        raise UserError(f"The checkpoint has {len(left)} weights that its model has not: {some(list(left))}.")
    return made


def require_fit(weights: Weights, config: dict[str, Any]) -> None:
    """Raise UserError unless weights have the names and shapes of the model that a `config.json` describes."""
    from transformers import AutoConfig, AutoModel

    kind = config["model_type"]
    settings = {key: value for key, value in config.items() if key != "model_type"}
    try:
        with quietly(), torch.device("meta"):
            model = AutoModel.from_config(AutoConfig.for_model(kind, **settings))
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"The configuration describes no {kind} model: {str(error).splitlines()[0]}.") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if missing := [name for name in expected if name not in weights]:
        raise UserError(f"The checkpoint lacks {len(missing)} weights of its configuration: {some(missing)}.")
    if extra := [weight.name for name, weight in weights.items() if name not in expected]:
        raise UserError(f"The checkpoint has {len(extra)} weights that its configuration has not: {some(extra)}.")
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise UserError(
                f"The weight {weights[name].name} does not fit the configuration: as {name} it is "
                f"{weights[name].shape}, expected {shape}."
            )


def _third(number: int, weight: Weight) -> Weight:
    return weight.third(number)
