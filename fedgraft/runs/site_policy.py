"""A site's policy: which runs it takes part in, what they may cost, and what may leave the site.

It is the table [policy] of site.toml. It is checked before an image is read or a backbone is loaded, against the
configuration and the fingerprint that the server sends.
"""

from collections.abc import Iterator
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedgraft.config.notation import parse_terms
from fedgraft.config.registry import METHODS, STRATEGIES
from fedgraft.config.run_config import RunConfig
from fedgraft.core.refusals import Refusal


class SitePolicy(BaseModel):
    """The table [policy]; the default accepts every installed method, within generous bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    methods: list[str] = Field(default=[], description="accepted methods; empty accepts all that are installed")
    strategies: list[str] = Field(default=[], description="accepted components of strategies; empty accepts all")
    backbones: list[str] = Field(default=[], description="fingerprints of accepted backbones; empty accepts all")
    max_rounds: int = Field(default=1000, ge=1, description="largest number of rounds")
    max_local_epochs: int = Field(default=100, ge=1, description="largest number of epochs per round")
    max_views: int = Field(default=16, ge=1, description="largest number of views of an image, which fill the cache")
    max_measurements: int = Field(default=2000, ge=1, description="largest number of evaluations per run")
    min_test_fraction: float = Field(default=0.1, gt=0, lt=1, description="smallest test fraction")
    max_test_fraction: float = Field(default=0.9, gt=0, lt=1, description="largest test fraction")
    run_seconds: float = Field(default=604800.0, gt=0, description="seconds that the site works for one run")
    round_bytes: int = Field(default=2**28, ge=1, description="bytes that leave the site per round")
    run_bytes: int = Field(default=10**11, ge=1, description="bytes that leave the site per run")
    new_runs_per_day: int = Field(default=100, ge=1, description="new runs that the site considers in a day")
    share_counts: bool = Field(default=True, description="whether counts per class leave the site")
    smallest_group: int = Field(default=1, ge=1, description="counts below it do not leave the site; 1 tells all")
    smallest_sum: int = Field(default=3, ge=2, description="the fewest sites in a masked sum, and to mask with")
    smallest_threshold: float = Field(
        default=0.5, ge=0.5, le=1, description="smallest fraction of share holders that may recover a site's secrets"
    )
    require_known_peers: bool = Field(
        default=False, description="whether updates leave only in masked sums with the sites in the file peers"
    )
    approve: bool = Field(default=False, description="whether a run waits for `fedgraft site approve`")

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, names: list[str]) -> list[str]:
        return [METHODS.check(name) for name in names]

    @field_validator("strategies")
    @classmethod
    def _known_strategies(cls, names: list[str]) -> list[str]:
        return [STRATEGIES.check(name) for name in names]

    @field_validator("backbones")
    @classmethod
    def _are_fingerprints(cls, values: list[str]) -> list[str]:
        for value in values:
            if len(value) != 64 or set(value) - set("0123456789abcdef"):
                raise ValueError(f"{value!r} is not a fingerprint of 64 hexadecimal digits, see `fedgraft site check`")
        return values

    @model_validator(mode="after")
    def _fractions_in_order(self) -> Self:
        if self.min_test_fraction > self.max_test_fraction:
            raise ValueError(
                f"min_test_fraction = {self.min_test_fraction} exceeds max_test_fraction = {self.max_test_fraction}"
            )
        return self

    def check(self, config: RunConfig, fingerprint: str) -> None:
        """Raise `Refusal` with the first objection to a run of a server whose backbone has the fingerprint."""
        for objection in self._objections(config, fingerprint):
            raise Refusal("policy", f"the site's policy {objection}")

    def _objections(self, config: RunConfig, fingerprint: str) -> Iterator[str]:
        if self.methods and config.method not in self.methods:
            yield f"does not accept the method {config.method!r}"
        for term in parse_terms(config.strategy):
            if self.strategies and term.name not in self.strategies:
                yield f"does not accept the strategy {term.name!r}"
        if self.backbones and fingerprint not in self.backbones:
            yield f"does not accept the backbone with the fingerprint {fingerprint[:16]}..."
        planned = planned_measurements(config)
        for asked, most, what in (
            (config.rounds, self.max_rounds, "rounds"),
            (config.local_epochs, self.max_local_epochs, "local epochs"),
            (config.views, self.max_views, "views"),
            (planned, self.max_measurements, "evaluations"),
        ):
            if asked > most:
                yield f"accepts at most {most} {what}, not {asked}"
        least, most_tested = self.min_test_fraction, self.max_test_fraction
        if not least <= config.test_fraction <= most_tested:
            yield f"accepts a test fraction from {least} to {most_tested}, not {config.test_fraction}"


def planned_measurements(config: RunConfig) -> int:
    """How often a run evaluates at most: before the first round, as configured, and after the last round."""
    return config.rounds // config.eval_every + 2
