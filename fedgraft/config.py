"""A run's typed configuration: everything that decides its result, from the command line, a TOML file or Python."""

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedgraft.errors import UserError, unknown
from fedgraft.methods import check_method
from fedgraft.registry import STRATEGIES
from fedgraft.terms import parse_terms, read_value

DEALT_PROTOCOLS = ("base-to-novel", "leave-one-domain-out", "dirichlet")
PROTOCOLS = (*DEALT_PROTOCOLS, "own-data")
OptionValue = bool | int | float | str


class RunConfig(BaseModel):
    """One federated run. `method_options` are checked by the method itself when the run starts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    method: str = "fedpgp"
    data: str = "digits"
    protocol: Literal["base-to-novel", "leave-one-domain-out", "dirichlet", "own-data"] = "base-to-novel"
    backbone: str = "mini"
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="of the frozen weights")
    sites: int = Field(default=10, ge=1)
    rounds: int = Field(default=25, ge=1)
    seed: int = Field(default=0, ge=0)

    shots: int = Field(default=16, ge=0, description="training images a class; 0 takes all")
    views: int = Field(default=1, ge=1, description="augmented views of each training image, computed once")
    test_fraction: float = Field(
        default=0.3, gt=0, lt=1, description="of each class, where the source has no split of its own"
    )
    participation: float = Field(default=1.0, gt=0, le=1, description="fraction of the sites that train in a round")
    quorum: float = Field(
        default=0.5, gt=0, le=1, description="fraction of the asked sites whose answers a round needs"
    )
    class_names: list[str] = Field(default_factory=list, description="of own-data: the classes of the federation")
    answer_seconds: float = Field(default=3600.0, gt=0, description="how long the server waits for a site's answer")
    resend_seconds: float = Field(
        default=120.0, gt=0, description="of own-data: when a message without an answer is sent again, then doubled"
    )
    domains: bool = Field(default=False, description="read a folder as domain/class/image whatever its depth suggests")
    partition: Literal["dirichlet", "pathological", "iid"] = "dirichlet"
    alpha: float = Field(default=0.5, gt=0, description="concentration of the Dirichlet partition")
    classes_per_site: int = Field(default=2, ge=1, description="classes a site of the pathological partition")

    strategy: str = Field(default="", description="what the server does instead of, or after, the method's own rule")
    local_epochs: int = Field(default=2, ge=1)
    batch_size: int = Field(default=32, ge=1)
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = Field(default=0.003, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd; the other optimizer has none")
    weight_decay: float = Field(default=0.0, ge=0)
    eval_every: int = Field(default=1, ge=1, description="rounds between evaluations; the last round always has one")

    method_options: dict[str, OptionValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _classes_are_named(self) -> Self:
        names = self.class_names
        if (self.protocol == "own-data") != bool(names):
            raise ValueError("the protocol own-data, and no other, takes the classes of the federation as class_names")
        if names and (len(set(names)) < max(2, len(names)) or names != sorted(names)):
            raise ValueError("class_names are at least two different names, sorted")
        return self

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        return check_method(name)

    @field_validator("strategy")
    @classmethod
    def _known_strategy(cls, text: str) -> str:
        for term in parse_terms(text):
            STRATEGIES.check(term.name)
        return text

    def to_toml(self) -> str:
        """The complete configuration as TOML."""
        return tomli_w.dumps(self.model_dump())

    @classmethod
    def build(cls, settings: dict[str, Any]) -> Self:
        """Check settings, with clear sentences for mistakes.

        Raises:
            UserError: an unknown key or method, or a value of the wrong type or out of range.
        """
        for key in settings:
            if key not in cls.model_fields:
                raise unknown("configuration key", key, cls.model_fields)
        if (protocol := settings.get("protocol")) is not None and protocol not in PROTOCOLS:
            raise unknown("protocol", str(protocol), PROTOCOLS)
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:
                raise UserError(f"The configuration does not go together: {first['ctx']['error']}.") from error
            place = ".".join(str(part) for part in first["loc"][:2])
            raise UserError(
                f"The configuration key {place!r} has the value {first['input']!r}: {first['msg']}."
            ) from error


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file.

    Raises:
        UserError: it does not exist or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"The configuration file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"The configuration file {path} is not TOML: {error}.") from error


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Settings from `key=value` words; values are read as TOML, and as text where they are not.

    A key that is none of the run's own is taken as an option of the method.

    Raises:
        UserError: a word without "=".
    """
    settings: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes key=value, not {assignment!r}; for example --set lr=0.01.")
        target = settings if key in RunConfig.model_fields else options
        target[key] = read_value(text)
    return {**settings, "method_options": options} if options else settings


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Settings with later layers over earlier ones; method options merge key by key.

    Raises:
        UserError: method options are not a table.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        if not isinstance(layer.get("method_options", {}), dict):
            raise UserError(f"method_options is a table of options, not {layer['method_options']!r}.")
        options = {**result.get("method_options", {}), **layer.get("method_options", {})}
        result.update(layer)
        if options:
            result["method_options"] = options
    return result
