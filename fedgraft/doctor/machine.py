"""The machine: processors, torch's threads, GPUs, room on disk, ports, open files, and what its kernel offers."""

import os
import resource
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedgraft.core.files import cache_root
from fedgraft.core.ports import DEFAULTS
from fedgraft.doctor.finding import Finding
from fedgraft.flower.confinement import landlock_version, shortcoming

_PROCESSORS, _DISK, _PORTS, _DEPLOYMENT = "processors", "disk", "ports", "deployment"
_NO_ROOM, _LITTLE_ROOM = 200 * 2**20, 2 * 2**30
_FEW_FILES = 1024


def processors() -> Iterator[Finding]:
    """Cores, threads and GPUs, as torch sees them."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    text = f"{usable} usable, torch {torch.get_num_threads()} threads, OMP_NUM_THREADS {chosen or 'not set'}"
    if torch.get_num_threads() > usable:
        yield Finding(_PROCESSORS, "cores", "note", text, f"export OMP_NUM_THREADS={usable}")
    else:
        yield Finding(_PROCESSORS, "cores", "fine", text)
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        yield Finding(_PROCESSORS, "GPU", "fine", names)
    else:
        yield Finding(_PROCESSORS, "GPU", "fine", "none; everything runs on processors")


def disk(folders: Mapping[str, Path] | None = None) -> Iterator[Finding]:
    """Room where runs and features are written.

    Args:
        folders: by what they are for; by default the current folder and the cache.
    """
    for name, folder in (folders or {"current folder": Path.cwd(), "cache": cache_root()}).items():
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        if not os.access(there, os.W_OK) or not there.is_dir():
            yield Finding(_DISK, name, "fails", f"{there} cannot be written to", _ELSEWHERE[name == "cache"])
            continue
        free = shutil.disk_usage(there).free
        text = f"{free / 1e9:.1f} GB free in {there}"
        if free < _NO_ROOM:
            yield Finding(_DISK, name, "fails", text, "make room, for example with fedgraft cache clear")
        elif free < _LITTLE_ROOM:
            yield Finding(_DISK, name, "note", text, "features of large data sets may not fit")
        else:
            yield Finding(_DISK, name, "fine", text)


_ELSEWHERE = {True: "set FEDGRAFT_CACHE to a folder of yours", False: "work in another folder, or give --out"}


def ports(defaults: Mapping[str, int] = DEFAULTS) -> Iterator[Finding]:
    """Whether the default ports are free; a taken one may be taken by fedgraft itself."""
    for command, port in defaults.items():
        with socket.socket() as tried:
            taken = tried.connect_ex(("127.0.0.1", port)) == 0
        if taken:
            yield Finding(_PORTS, command, "note", f"{port} is taken, perhaps by this command", "give another --port")
        else:
            yield Finding(_PORTS, command, "fine", f"{port} is free")


def deployment() -> Iterator[Finding]:
    """What a deployed server or site needs of the kernel."""
    lacking = shortcoming()
    version = landlock_version()
    if lacking:
        yield Finding(_DEPLOYMENT, "Landlock", "note", lacking, "Linux 6.7 or later confines files and connections")
    else:
        text = f"version {version}: the process that handles a message is confined to its files and one port"
        yield Finding(_DEPLOYMENT, "Landlock", "fine", text)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FEW_FILES:
        yield Finding(_DEPLOYMENT, "open files", "note", f"at most {soft}", f"ulimit -n {min(hard, 4096)}")
    else:
        yield Finding(_DEPLOYMENT, "open files", "fine", f"at most {soft:,}")
