"""A run's typed configuration: everything that decides its result, from the command line, a TOML file or Python."""

from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedgraft.config.notation import parse_terms
from fedgraft.config.options import OptionValue
from fedgraft.config.registry import METHODS, PROTOCOLS, SOURCES, STRATEGIES
from fedgraft.core.errors import UserError, unknown

DEPLOYED_PROTOCOL = "own-data"
"""The default protocol of a deployment."""
OptionTable = dict[str, OptionValue]
Augment = Literal["none", "flip", "crop-flip"]


class RunConfig(BaseModel):
    """One federated run.

    The command line's options are generated from these fields. The tables of options are validated when a run is
    planned, by their owners.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    method: str = Field(default="fedpgp", description="what a site trains; see `fedgraft methods`")
    strategy: str = Field(default="", description="replaces or follows the method's rule; see `fedgraft strategies`")
    data: str = Field(default="digits", description="where the images come from; see `fedgraft data`")
    protocol: str = Field(default="base-to-novel", description="which site holds what; see `fedgraft protocols`")
    backbone: str = Field(
        default="mini", description="the frozen encoder: mini, photo, a folder or an ID; see `fedgraft backbones`"
    )
    loss: Literal["softmax", "sigmoid"] = Field(
        default="softmax", description="of the training; sigmoid where the backbone's checkpoint has a bias for it"
    )
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="precision of the frozen weights")
    sites: int = Field(default=10, ge=1, description="number of sites")
    rounds: int = Field(default=25, ge=1, description="number of rounds")
    seed: int = Field(default=0, ge=0, description="seed of every random draw")
    participation: float = Field(default=1.0, gt=0, le=1, description="fraction of the sites that train in a round")
    quorum: float = Field(default=0.5, gt=0, le=1, description="fraction of the asked sites that must answer")
    answer_seconds: float = Field(default=3600.0, gt=0, description="how long the server waits for a site's answer")
    resend_seconds: float = Field(
        default=120.0, gt=0, description="how long before an unanswered message is resent to a deployed site; doubles"
    )
    max_site_images: int = Field(
        default=1_000_000, ge=1, description="the most images that a deployed site may count in an answer"
    )
    max_site_share: float = Field(
        default=1.0, gt=0, le=1, description="the most that one site may weigh in a weighted mean; 1 for no limit"
    )
    norm_bound: float = Field(
        default=10.0, ge=0, description="times the usual norm at which a deployed site's update is cut; 0 for never"
    )
    eval_every: int = Field(
        default=1, ge=1, description="rounds between evaluations; the last round is always evaluated"
    )

    shots: int = Field(default=16, ge=0, description="training images per class; 0 takes all")
    views: int = Field(default=1, ge=1, description="augmented views of each training image, computed once")
    test_fraction: float = Field(
        default=0.3, gt=0, lt=1, description="fraction of each class held out for testing, where the data has no splits"
    )
    evaluate_on: Literal["test", "val"] = Field(
        default="test", description="which split of the data is measured, where it has splits of its own"
    )

    local_epochs: int = Field(default=2, ge=1, description="epochs that a site trains per round")
    batch_size: int = Field(default=32, ge=1, description="images per step")
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="optimizer of the sites")
    lr: float = Field(default=0.003, gt=0, description="learning rate of the sites")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd; adam has none")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of the sites' optimizer")

    schedule: Literal["constant", "cosine", "step"] = Field(
        default="constant", description="learning rate over all epochs of the run"
    )
    step_epochs: int = Field(default=10, ge=1, description="epochs between two steps of the schedule step")
    step_factor: float = Field(default=0.1, gt=0, description="what a step of the schedule step multiplies by")
    warmup_epochs: int = Field(default=0, ge=0, description="first epochs of the run, trained at warmup_lr")
    warmup_lr: float = Field(default=1e-5, gt=0, description="learning rate of the warm-up epochs")
    drop_last: bool = Field(default=False, description="whether an epoch leaves out a last batch that is not full")
    augment: Augment = Field(
        default="none", description="draw every training image anew in every step, which encodes it anew"
    )

    method_options: OptionTable = Field(default_factory=dict, description="options of the method")
    protocol_options: OptionTable = Field(default_factory=dict, description="options of the protocol")
    data_options: OptionTable = Field(default_factory=dict, description="options of the data source")
    backbone_options: OptionTable = Field(default_factory=dict, description="options of the backbone family")

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        return METHODS.check(name)

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, name: str) -> str:
        return PROTOCOLS.check(name)

    @field_validator("data")
    @classmethod
    def _known_source(cls, spec: str) -> str:
        SOURCES.check(spec.partition(":")[0])
        return spec

    @field_validator("strategy")
    @classmethod
    def _known_strategy(cls, text: str) -> str:
        for term in parse_terms(text):
            STRATEGIES.check(term.name)
        return text

    def training_steps(self, examples: int) -> int:
        """The steps of a site with so many training images in a round."""
        full, rest = divmod(examples, self.batch_size)
        return self.local_epochs * (full + (rest > 0 and not (self.drop_last and full > 0)))

    def to_toml(self) -> str:
        """The complete configuration as TOML."""
        return tomli_w.dumps(self.model_dump())

    @classmethod
    def build(cls, settings: dict[str, Any]) -> Self:
        """Validate settings, with a clear sentence for every mistake.

        Raises:
            UserError: a key or name is unknown, or a value has the wrong type or is out of range.
        """
        for key in settings:
            if key not in cls.model_fields:
                raise unknown("configuration key", key, cls.model_fields)
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"][:2])
            raise UserError(
                f"The configuration key {key!r} has the value {first['input']!r}: {first['msg']}."
            ) from error
