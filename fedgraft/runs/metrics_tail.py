"""Following a metrics.jsonl that another process writes: only what was added is read and parsed."""

import os
from pathlib import Path
from typing import BinaryIO

from fedgraft.core.errors import UserError
from fedgraft.data.results import Row
from fedgraft.runs.run_files import parsed, require_row

_MARK_BYTES = 256


class MetricsTail:
    """The rows of a metrics.jsonl as they come. A line that is not complete yet is left for later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._offset, self._lines, self._mark = 0, 0, b""

    def read(self) -> tuple[bool, list[Row]]:
        """Whether the file was written anew, so that rows given before count no more, and the rows since then.

        Raises:
            UserError: a line is no row.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                seen = (status.st_ino, status.st_size, status.st_mtime_ns)
                if seen == self._seen:
                    return False, []
                anew = self._offset > 0 and not self._goes_on(file)
                if anew:
                    self._begin()
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            anew = self._offset > 0
            self._begin()
            return anew, []
        except OSError as error:
            raise UserError(f"{self._path} cannot be read: {error}.") from error
        whole = content[: content.rfind(b"\n") + 1]
        rows = self._rows(whole)
        self._offset += len(whole)
        self._mark = (self._mark + whole)[-_MARK_BYTES:]
        self._seen = seen
        return anew, rows

    def _begin(self) -> None:
        self._offset, self._lines, self._mark = 0, 0, b""

    def _goes_on(self, file: BinaryIO) -> bool:
        """Whether what was read before still stands there: a resumed run replaces its rows."""
        file.seek(self._offset - len(self._mark))
        return bool(file.read(len(self._mark)) == self._mark)

    def _rows(self, content: bytes) -> list[Row]:
        rows, lines = [], content.split(b"\n")[:-1]
        for number, line in enumerate(lines, start=self._lines + 1):
            if not line.strip():
                continue
            where = f"Line {number} of {self._path}"
            row = parsed(line.decode(errors="replace"), where)
            require_row(row, where)
            rows.append(row)
        self._lines += len(lines)
        return rows
