"""Logs of fedgraft's own processes: a JSON object per line, in files of bounded size.

A line has `time` (UTC), `level`, `part` (which process), `message` and, for an exception, `traceback`. JSON escapes
line ends and control characters, so that a text from another machine can neither add a line nor reach a terminal.
"""

import json
import logging
import shutil
import sys
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

LARGEST_BYTES, KEPT = 8 * 1024 * 1024, 3
"""The size at which a log is rotated, and how many older ones are kept."""

_TALKATIVE = ("httpx", "matplotlib")
"""Libraries that have a line for every request and for every font."""


class JsonLines(logging.Formatter):
    """Formats a record as one line."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "part": self._part,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_for_people() -> None:
    """Log as plain lines to standard error."""
    _log_to_stderr(logging.Formatter("%(asctime)s %(message)s"))


def log_lines_to_stderr(part: str) -> None:
    """Log to standard error, which a supervising process appends to the part's file."""
    _log_to_stderr(JsonLines(part))


def _log_to_stderr(formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def log_lines_to(path: Path, part: str) -> None:
    """Log to a file, beside what is logged already; it is rotated by size."""
    handler = RotatingFileHandler(path, maxBytes=LARGEST_BYTES, backupCount=KEPT, delay=True)
    handler.setFormatter(JsonLines(part))
    logging.getLogger().addHandler(handler)


def rotate_in_place(path: Path) -> None:
    """Move a log's content to `.1`, that to `.2`, and so on, while another process appends to it.

    A line that is written between the copy and the cut is lost.
    """
    for number in range(KEPT, 1, -1):
        older, newer = (path.with_name(f"{path.name}.{n}") for n in (number, number - 1))
        if newer.exists():
            newer.replace(older)
    shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    with path.open("r+b") as log:
        log.truncate(0)
