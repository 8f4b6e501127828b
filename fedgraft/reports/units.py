"""Numbers formatted for readers: bytes, durations, counts, percentages."""

import math
from collections.abc import Iterable


def number(value: float | None, decimals: int = 2) -> str:
    """A number, or "n/a" for one that is missing or not finite."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:,.{decimals}f}"


def count(value: float | None) -> str:
    """A whole number with separators between thousands."""
    return number(value, 0)


def byte_size(value: float | None) -> str:
    """Bytes in the decimal unit that leaves one to three digits."""
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
