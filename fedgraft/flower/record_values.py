"""Values of records that another machine wrote: each is read as what it must be, or refused with a sentence."""

import math
from collections.abc import Sequence

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedgraft.core.plain_text import plain

Values = MetricRecord | ConfigRecord


def metrics_in(content: RecordDict, name: str) -> MetricRecord:
    """A record of metrics; raises ValueError if there is none of the name."""
    record = content.get(name)
    if not isinstance(record, MetricRecord):
        raise ValueError(f"it has no record of metrics {name!r}")
    return record


def config_in(content: RecordDict, name: str) -> ConfigRecord:
    """A record of settings; raises ValueError if there is none of the name."""
    record = content.get(name)
    if not isinstance(record, ConfigRecord):
        raise ValueError(f"it has no record of settings {name!r}")
    return record


def arrays_in(content: RecordDict, name: str) -> ArrayRecord:
    """A record of arrays; raises ValueError if there is none of the name."""
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        raise ValueError(f"it has no record of arrays {name!r}")
    return record


def whole_number(record: Values, key: str, least: int, most: int) -> int:
    """A whole number from `least` to `most`; raises ValueError for anything else."""
    return _whole(record.get(key), repr(key), least, most)


def real_number(record: Values, key: str) -> float:
    """A finite number; raises ValueError for anything else."""
    value = record.get(key)
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{key!r} is {_shown(value)}, not a finite number")
    return float(value)  # type: ignore[arg-type]


def right_of_total(record: Values, key: str, most: int) -> tuple[int, int]:
    """Two whole numbers, 0 <= right <= total <= `most`; raises ValueError for anything else."""
    value, name = record.get(key), plain(key)
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{name!r} is {_shown(value)}, not a pair of counts")
    total = _whole(value[1], f"the total of {name!r}", 0, most)
    return _whole(value[0], f"the right ones of {name!r}", 0, total), total


def text(record: Values, key: str) -> str:
    """A text, made plain; raises ValueError for anything else."""
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is {_shown(value)}, not a text")
    return plain(value)


def _whole(value: object, name: str, least: int, most: int) -> int:
    if type(value) is not int:
        raise ValueError(f"{name} is {_shown(value)}, not a whole number")
    if not least <= value <= most:
        raise ValueError(f"{name} is {_shown(value)}, not from {least} to {most}")
    return value


def _shown(value: object) -> str:
    """A value in an error, without anything that a stranger could write into it."""
    if value is None:
        return "missing"
    if type(value) in (int, float):
        return f"{value:.6g}" if abs(value) >= 1e9 else f"{value}"  # type: ignore[arg-type]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"a list of {len(value)}"
    return f"of the type {type(value).__name__}"
