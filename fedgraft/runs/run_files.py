"""What the files of a run directory hold, and reading them: a wrong value is one sentence that names file and key.

What is read is returned as it is in the file. Keys that a model does not name are left to whoever wrote them, so that
a run of another version can be read.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from fedgraft.core.errors import UserError
from fedgraft.core.plain_text import plain
from fedgraft.data.results import Row

Figures = dict[str, float | None]


class _Content(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class PrivacyAccount(_Content):
    """The privacy that a run has spent; `local` is that of each site's personal parameters, where they have noise."""

    mechanism: str
    relation: str
    noise_multiplier: float
    clipping_norm: float
    delta: float
    epsilon: float
    releases: int
    local: "PrivacyAccount | None" = None


class OftenLeftOut(_Content):
    """A site that was left out of several rounds; reasons with how often each was given."""

    site: int
    name: str | None = None
    times: int
    reasons: dict[str, int] = Field(min_length=1)


class RetainedNames(_Content):
    """What is still known of a probe's class names."""

    names: float
    cosine: float
    centred: float
    nearest: float


class RetainedImages(_Content):
    """Accuracy on images of classes that nobody holds."""

    zero_shot: float
    adapted: float


class Retention(_Content):
    """What a model still knows of classes that nobody holds."""

    names: dict[str, RetainedNames] = {}
    images: dict[str, RetainedImages] = {}


class Summary(_Content):
    """summary.json; what only the report shows may be missing."""

    method: str
    data: str
    protocol: str
    backbone: str
    sites: int
    rounds: int
    seed: int
    metrics: dict[str, float | Figures | None]
    strategy: str | None = None
    metrics_last5: dict[str, float | Figures | None] | None = None
    fingerprint: str | None = None
    uplink_bytes_per_site_round: float | None = None
    downlink_bytes_per_site_round: float | None = None
    trainable_parameters: int | None = None
    shared_parameters: int | None = None
    wall_seconds: float | None = None
    privacy: PrivacyAccount | None = None
    retention: Retention | None = None
    versions: dict[str, str] | None = None
    often_left_out: list[OftenLeftOut] = []


class CompleteSummary(Summary):
    """summary.json with all that commands print."""

    metrics_last5: dict[str, float | Figures | None]
    fingerprint: str
    uplink_bytes_per_site_round: float
    downlink_bytes_per_site_round: float
    trainable_parameters: int
    shared_parameters: int
    wall_seconds: float


class Statistics(_Content):
    """A metric over the seeds."""

    mean: float | None = None
    std: float | None = None
    values: list[float | None] = []


class ComparedMethod(_Content):
    """A method of a comparison."""

    method: str
    metrics: dict[str, Statistics]
    retention: dict[str, Statistics] = {}
    uplink_bytes_per_site_round: float | None = None
    trainable_parameters: int | None = None
    shared_parameters: int | None = None
    wall_seconds: float | None = None


class Comparison(_Content):
    """comparison.json."""

    data: str
    protocol: str
    sites: int
    rounds: int
    seeds: list[int]
    methods: list[ComparedMethod] = Field(min_length=1)
    runs: list[str] = []


class ConfusionCounts(_Content):
    """The classes of a scope and its counts, a row for each true class."""

    classes: list[str]
    counts: list[list[int]]

    @model_validator(mode="after")
    def _is_square(self) -> Self:
        size = len(self.classes)
        if [len(row) for row in self.counts] != [size] * size or min(map(min, self.counts), default=0) < 0:
            raise ValueError(f"there must be {size} x {size} counts, none below 0, for the {size} classes")
        return self


class Confusion(_Content):
    """confusion.json."""

    scopes: dict[str, ConfusionCounts]


class KnownSite(_Content):
    """A site in sites.json."""

    number: int = Field(ge=0)
    images: dict[str, int] = {}


class Sites(RootModel[dict[str, KnownSite]]):
    """sites.json: the deployed sites by name."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="after")
    def _are_different(self) -> Self:
        if len({site.number for site in self.root.values()}) < len(self.root):
            raise ValueError("two sites have the same number")
        return self


class Attempts(_Content):
    """attempts.json."""

    run: str = Field(pattern=r"^\w[\w.-]{0,99}$")
    attempts: int = Field(ge=0)


class _Row(_Content):
    round: int = Field(ge=0)
    fold: str | None = None
    scope: str


class TrainingRow(_Row):
    """A line of metrics.jsonl: a round of training."""

    sites: list[int]
    loss: float | None = None
    drift: float | None = None
    unused: str | None = None
    uplink_bytes_per_site: int = 0
    downlink_bytes_per_site: int = 0


class EvaluationRow(_Row):
    """A line of metrics.jsonl: the accuracy of a scope, as a mean over sites and of each."""

    accuracy: float | None
    sites: Figures = {}


class LeftOutRow(_Row):
    """A line of metrics.jsonl: a site whose answer does not count."""

    site: int
    reason: str


_ROWS: dict[str, type[_Row]] = {"train": TrainingRow, "left_out": LeftOutRow}


class JsonObject(_Content):
    """A file whose keys are checked by whoever reads it."""


KINDS: dict[str, type[BaseModel]] = {
    "summary.json": CompleteSummary,
    "comparison.json": Comparison,
    "confusion.json": Confusion,
    "sites.json": Sites,
    "attempts.json": Attempts,
}


def read_text(path: Path) -> str:
    """A file's text; raises UserError if it is missing or no text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def read_json(path: Path, kind: type[BaseModel]) -> Any:
    """A file's content; raises UserError if it is missing, no JSON, or has a value that is not of its kind."""
    content = parsed(read_text(path), str(path))
    require(kind, content, str(path))
    return content


def rows_of(path: Path, torn: bool = False) -> Iterator[Row]:
    """The rows of a metrics.jsonl.

    Args:
        torn: whether the last line may have been torn by a kill, and is then skipped.

    Raises:
        UserError: a line is no JSON or no row.
    """
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"Line {number} of {path}"
        try:
            row = parsed(line, where)
        except UserError:
            if torn and number == len(lines):
                continue
            raise
        require_row(row, where)
        yield row


def require_row(row: Any, where: str) -> None:
    """Raise UserError unless it is a row of metrics."""
    scope = row.get("scope") if isinstance(row, dict) else None
    require(_ROWS.get(scope, EvaluationRow) if isinstance(scope, str) else _Row, row, where)


def require(kind: type[BaseModel], content: Any, where: str) -> None:
    """Raise UserError unless a content is of a kind; `where` begins the sentence."""
    try:
        kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = plain(".".join(map(str, first["loc"])), 100) if first["loc"] else ""
        if first["type"] == "missing":
            raise UserError(f"{where} lacks {key}.") from error
        found = plain(repr(first["input"])[:200], 80)
        named = f"has the value {found} for {key}" if key else f"holds {found}"
        raise UserError(f"{where} {named}: {plain(first['msg'], 200).rstrip('.')}.") from error


def parsed(text: str, where: str) -> Any:
    """What a JSON text holds; raises UserError if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {plain(str(error), 200)}.") from error
