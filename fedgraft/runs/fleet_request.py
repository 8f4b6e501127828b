"""Whether a site's devices ask for the next federation: the table [fleet] of site.toml, applied to a fleet's report.

A report asks for nothing once it is old, and for nothing that a run has answered: it must have been made some days
after the site last trained, in which the result reaches the devices.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedgraft.core.errors import RunFailed, UserError
from fedgraft.runs.audit_log import AuditLog
from fedgraft.runs.fleet_report import FleetReport, read_report
from fedgraft.runs.retrain_rule import RetrainRule

if TYPE_CHECKING:
    from fedgraft.runs.site_folder import SiteFolder

_SHOWN = 10


class FleetSettings(BaseModel):
    """The table [fleet] of site.toml; by default the site has no devices."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    report: str = Field(default="", description="the file that `fedgraft fleet export-report --out` writes")
    retrain_if: str = Field(default="", description="the site's own thresholds; empty: the report's")
    report_days: float = Field(default=7.0, gt=0, le=3650, description="days after which a report asks for nothing")
    pause_days: float = Field(default=7.0, ge=0, le=3650, description="days after a training before a report counts")

    @field_validator("retrain_if")
    @classmethod
    def _is_a_rule(cls, text: str) -> str:
        if text:
            try:
                RetrainRule.parse(text, "retrain_if")
            except UserError as error:
                raise ValueError(str(error).rstrip(".")) from error
        return text

    @model_validator(mode="after")
    def _has_a_report_to_judge(self) -> Self:
        if self.retrain_if and not self.report:
            raise ValueError("retrain_if needs a report; give the file of `fedgraft fleet export-report` in report")
        return self


@dataclass(frozen=True)
class FleetRequest:
    """What a fleet's report asks of a site.

    Attributes:
        asks: for the next federation.
        why: it does or does not, in sentences without their full stops.
        stale: whether the report is older than it may be.
        fleet: its identifier.
        made: when the report was made, UTC.
    """

    asks: bool
    why: list[str]
    stale: bool
    fleet: str
    made: str

    @property
    def in_words(self) -> str:
        """One sentence."""
        answer = "ask" if self.asks else "do not ask"
        return f"The devices {answer} for the next federation: {'; '.join(self.why)}."


def fleet_request(site: "SiteFolder", now: datetime | None = None) -> FleetRequest | None:
    """What the devices of a site ask for; None if its site.toml names no report.

    Raises:
        UserError: the report cannot be read or is none.
        RunFailed: the site's audit log, which tells when it last trained, is damaged.
    """
    settings = site.settings.fleet
    if not settings.report:
        return None
    now = now or datetime.now(UTC)
    report = read_report(site.path / Path(settings.report).expanduser(), now)
    made, stale = report.made.isoformat(timespec="seconds"), now - report.made > timedelta(days=settings.report_days)
    if stale:
        why = f"their report of {made} is stale, older than {settings.report_days:g} days; export a new one"
        return FleetRequest(False, [why], True, report.fleet, made)
    trained = _last_trained(AuditLog(site.audit_log))
    if trained is not None and report.made <= trained + timedelta(days=settings.pause_days):
        last, pause = trained.isoformat(timespec="seconds"), f"{settings.pause_days:g} days"
        why = f"the site trained on {last}, and their report of {made} is not from {pause} later"
        return FleetRequest(False, [why], False, report.fleet, made)
    asks, reasons = _judged(report, settings.retrain_if)
    return FleetRequest(asks, reasons, False, report.fleet, made)


def _judged(report: FleetReport, retrain_if: str) -> tuple[bool, list[str]]:
    """Whether a report asks for a federation, by the site's own rule where it has one, and why."""
    if not retrain_if:
        asks, reasons = report.federate, report.reasons if report.federate else []
        calm = "by its own thresholds, their report calls for none"
    else:
        reasons = RetrainRule.parse(retrain_if, "retrain_if").reasons(report.telemetry)
        asks, calm = bool(reasons), f"no group has {retrain_if}"
        if not report.telemetry:
            calm = "no group of enough devices has reported predictions"
    if not reasons:
        return asks, ["their report says so"] if asks else [calm]
    more = [f"and {len(reasons) - _SHOWN} more"] if len(reasons) > _SHOWN else []
    return asks, [*reasons[:_SHOWN], *more]


def _last_trained(log: AuditLog) -> datetime | None:
    """When the site last answered a training, of any run; None if it has not yet."""
    times = list[datetime]()
    for entry in log.fresh():
        try:
            if entry["event"] == "sent" and entry["kind"] == "train":
                times.append(datetime.fromisoformat(entry["time"]).astimezone(UTC))
        except (KeyError, TypeError, ValueError) as error:
            raise RunFailed(f"An entry of the audit log cannot be read: {entry}; see `fedgraft site log`.") from error
    return max(times, default=None)
