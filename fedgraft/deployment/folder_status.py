"""What `status` says of a server and of a site alike: whether it runs, its processes, disk space and certificates."""

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from fedgraft.deployment.folder_lock import running_pid
from fedgraft.deployment.status_file import STALE_SECONDS, read_status

_LEAST_DAYS = 30
_LEAST_BYTES = 1 << 30


@dataclass(frozen=True)
class ProcessStatus:
    """A process of a running server or site."""

    name: str
    pid: int
    restarts: int
    running: bool


@dataclass(frozen=True)
class FolderStatus:
    """What is common to servers and sites.

    Attributes:
        pid: of the process that runs the folder, None if it is stopped.
        began: when that process began, in seconds since the epoch.
        version: of the fedgraft that runs, or ran last.
        shortcoming: what the processes of apps are not kept from on this machine.
        certificate_days: days left of each certificate, by its file's name.
        problems: sentences; monitoring reports an error if there are any.
    """

    pid: int | None
    began: float | None
    version: str
    shortcoming: str
    processes: list[ProcessStatus]
    disk_free_bytes: int
    certificate_days: dict[str, int]
    problems: list[str]


def folder_status(folder: Path, certificates: Iterable[Path]) -> tuple[FolderStatus, dict[str, Any]]:
    """The status of a server's or site's folder, and the rest of what its status.json says."""
    said, pid = read_status(folder), running_pid(folder)
    days = {path.name: _days_left(path) for path in certificates if path.exists()}
    free = shutil.disk_usage(folder).free
    problems = []
    if pid is None:
        problems.append("It is not running.")
    elif said.get("pid") != pid:
        said = {}
        problems.append("It is starting.")
    elif time.time() - said.get("written", 0.0) > STALE_SECONDS:
        problems.append(f"Process {pid} has not written its status for more than {STALE_SECONDS:.0f} seconds.")
    problems += [
        f"The certificate {name} {'has expired' if left < 0 else f'expires in {left} days'}."
        for name, left in days.items()
        if left < _LEAST_DAYS
    ]
    if free < _LEAST_BYTES:
        problems.append(f"Only {free / 2**20:.0f} MB are free on the disk of {folder}.")
    processes = _processes(said.get("processes", {})) if pid is not None else []
    problems += [f"The {process.name} has ended." for process in processes if not process.running]
    began = said.get("began") if pid is not None else None
    version, shortcoming = str(said.get("version", "")), str(said.get("shortcoming", ""))
    return FolderStatus(pid, began, version, shortcoming, processes, free, days, problems), said


def _processes(said: Mapping[str, Mapping[str, Any]]) -> list[ProcessStatus]:
    return [ProcessStatus(name, **entry) for name, entry in said.items()]


def _days_left(certificate: Path) -> int:
    """Whole days until a certificate expires, negative afterwards."""
    expiry = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return (expiry - datetime.now(UTC)).days
