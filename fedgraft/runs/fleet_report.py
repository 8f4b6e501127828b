"""The report of a fleet as a site reads it: a small TOML or JSON file that `fedgraft fleet export-report` wrote.

Its writer owns the registry of the devices, not the site, so that everything in it is checked: its size, its types, and
that its numbers are finite. Text of it is shown on one line without markup.
"""

import json
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedgraft.core.errors import UserError
from fedgraft.core.plain_text import plain

MOST_BYTES = 1 << 20
"""Size of a report at most; a class of a group takes some 20 bytes."""
_CLOCK_SKEW = timedelta(minutes=10)


def _time(value: Any) -> Any:
    """A text as a point in time; others stay, and are refused by the type."""
    made = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(made, datetime):
        return made
    if made.tzinfo is None:
        raise ValueError("a time has an offset from UTC, as in 2026-01-31T12:00:00+00:00")
    try:
        return made.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the year is out of range") from error


def _on_one_line(text: str) -> str:
    return plain(text)


PlainText = Annotated[str, AfterValidator(_on_one_line)]
"""A text as it is shown."""


class ReportLine(BaseModel):
    """What the devices of a group report of a version; see `fedgraft.fleet.status.TelemetryLine`."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    version: int = Field(ge=0, lt=2**63)
    group: PlainText
    unknown: float = Field(ge=0, le=100)
    drift: float | None = Field(default=None, ge=-1, le=1)


class FleetReport(BaseModel):
    """A report: when it was made, whether it asks for a federation by its own thresholds, why, and the telemetry."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    fleet: PlainText
    made: Annotated[datetime, BeforeValidator(_time)]
    federate: bool
    reasons: list[PlainText]
    telemetry: list[ReportLine] = []


def read_report(path: Path, now: datetime) -> FleetReport:
    """The report in a file.

    Raises:
        UserError: it cannot be read, is too large, is no report, or was made after `now`.
    """
    try:
        report = FleetReport.model_validate(_content(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        found = "" if first["type"] == "missing" else f" has the value {plain(repr(first['input']), 80)}"
        raise UserError(f"{_no_report(path)}: {where!r}{found}: {plain(first['msg'])}.") from error
    if report.made > now + _CLOCK_SKEW:
        raise UserError(
            f"{path} says that it was made at {report.made.isoformat()}, which is still to come; "
            f"set the clock of the registry's machine or of this one."
        )
    return report


def _content(path: Path) -> Any:
    """The values in a file; raises UserError."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{_no_report(path)}: it is not a file.")
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"The fleet's report {path} cannot be read ({error.strerror}).") from error
    if len(raw) > MOST_BYTES:
        raise UserError(f"{_no_report(path)}: it has more than {MOST_BYTES:,} bytes.")
    try:
        text = raw.decode()
        return json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{_no_report(path)}: it is neither TOML nor JSON ({plain(str(error), 120)}).") from error


def _no_report(path: Path) -> str:
    return f"{path} is not a report of `fedgraft fleet export-report`"
