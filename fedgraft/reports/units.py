"""Numbers as a reader wants them: bytes, durations, counts, percentages, and the names of the metrics."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

METRICS = {
    "local": ("Local", "a site's own classes, among all base classes; mean over sites"),
    "base": ("Base", "base classes that other sites hold, among all base classes; mean over sites"),
    "novel": ("Novel", "classes that no site trained on, among the novel classes; mean over sites"),
    "hm": ("HM", "harmonic mean of local, base and novel"),
    "hm2": ("HM2", "harmonic mean of base and novel"),
    "cm": ("CM", "mean of local and HM2"),
    "accuracy": ("Accuracy", "each site on its own test images"),
    "worst_site": ("Worst site", "the lowest accuracy of a site"),
    "std": ("Std", "standard deviation over sites, in percentage points"),
    "mean": ("Mean", "over the held-out domains"),
}


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a summary in one level: `per_domain` becomes a key `domain:NAME` for each domain."""
    domains = {f"domain:{name}": value for name, value in metrics.get("per_domain", {}).items()}
    return domains | {key: value for key, value in metrics.items() if key != "per_domain"}


def metric_label(key: str) -> str:
    """How a metric is called in a table or legend."""
    return key.removeprefix("domain:") if key.startswith("domain:") else METRICS.get(key, (key, ""))[0]


def metric_meaning(key: str) -> str:
    """What a metric measures, in half a sentence."""
    return "this domain held out from training" if key.startswith("domain:") else METRICS.get(key, ("", ""))[1]


def number(value: float | None, decimals: int = 2) -> str:
    """A number, or "n/a" for one that is missing or not finite."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:,.{decimals}f}"


def count(value: float | None) -> str:
    """A whole number with separators between thousands."""
    return number(value, 0)


def byte_size(value: float | None) -> str:
    """Bytes in the unit that leaves one to three digits, powers of 1000."""
    if value is None or not math.isfinite(value):
        return "n/a"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def duration(seconds: float | None) -> str:
    """Seconds as seconds, minutes or hours."""
    if seconds is None or not math.isfinite(seconds):
        return "n/a"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def spans(numbers: Iterable[int]) -> str:
    """Whole numbers with consecutive ones joined: "1-3, 7"."""
    runs: list[list[int]] = []
    for value in sorted(set(numbers)):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def plural(value: int, noun: str) -> str:
    """A count and its noun: "1 site", "3 sites"."""
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"
