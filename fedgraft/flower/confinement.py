"""Confine a process to a few files, and to connections to one port, by Landlock.

Landlock is part of Linux (5.13 or later, switched on in Debian 12) and needs neither privileges nor another account. A
process gives up its rights for good, and its children have no more than it. How much can be given up depends on the
kernel: files from version 1 on, TCP ports from 4 (Linux 6.7), signals to processes outside from 6 (Linux 6.12).
"""

import ctypes
import os
import struct
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_BENEATH, _PORT, _ASK_VERSION = 1, 2, 1
_NO_NEW_PRIVILEGES, _CAPABILITY_VERSION = 38, 0x20080522
_EXECUTE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 2, 1 << 3
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
"""The rights that a rule for a single file may name: execute, write, read, truncate, and control of devices."""
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights to files a version of Landlock knows; later ones know as many as the last."""
_CONNECT, _BIND = 1 << 1, 1 << 0
_ABSTRACT_SOCKETS, _SIGNALS = 1 << 0, 1 << 1
NETWORK_SINCE, SIGNALS_SINCE = 4, 6
"""The versions of Landlock that can restrict TCP, and signals to processes outside."""
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/bin", "/proc", "/sys/devices/system", "/sys/fs/cgroup",
    *(f"/etc/{name}" for name in (
        "ld.so.cache", "ssl/certs", "ssl/openssl.cnf", "localtime", "resolv.conf", "hosts", "host.conf", "gai.conf",
        "nsswitch.conf", "passwd", "group", "services", "protocols", "mime.types", "fonts",
    )),
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def landlock_version() -> int:
    """The version of Landlock that the running kernel offers, 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)))


def shortcoming(secret: Iterable[Path] = ()) -> str:
    """What a confined process can still do on this machine, as a sentence for the operator; empty if nothing.

    Args:
        secret: files and folders that it must not be able to read.
    """
    version = landlock_version()
    if version == 0:
        return (
            "This kernel has no Landlock, so the process that handles a message is not confined: it runs as this "
            "account and can read what this account can read. Only the one known app is run in it."
        )
    readable = [*python_paths(), *map(Path, _SYSTEM)]
    for path in secret:
        if inside := [folder for folder in readable if path.resolve().is_relative_to(folder.resolve())]:
            return (
                f"{path} lies in {inside[0]}, which every Python process must read, so the process that handles a "
                "message can read it too; move it."
            )
    if version < NETWORK_SINCE:
        return (
            "This kernel confines the process that handles a message to its files, but not its TCP connections "
            f"(Landlock {version}; Linux 6.7 has {NETWORK_SINCE})."
        )
    return ""


def python_paths() -> list[Path]:
    """What Python, its libraries, fedgraft and the packages that extend it are read from."""
    imported = sys.path if sys.flags.safe_path else sys.path[1:]  # not the folder of the script, or the current one
    paths = {*imported, *sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])}
    installed = entry_points()
    for group in installed.groups:
        for entry in installed.select(group=group) if group.startswith("fedgraft.") else ():
            found = find_spec(entry.module.partition(".")[0])
            paths.update(found.submodule_search_locations or [] if found else [])
    return [Path(path) for path in sorted(paths) if path]


def confine(readable: Iterable[Path], writable: Iterable[Path], port: int | None = None) -> None:
    """Give up, for this thread and those it starts, all files and folders but the given ones; needs Landlock.

    Root also loses its capabilities. Call it before other threads exist. Open files stay open. Paths that do not exist
    are passed over.

    Args:
        readable: may be read and executed, with all that is in them.
        writable: may be read and changed, with all that is in them.
        port: the one TCP port that may be connected to, if the kernel can restrict that; None leaves TCP as it is.

    Raises:
        OSError: the kernel refuses.
    """
    version = landlock_version()
    rights = (1 << _FILE_RIGHTS.get(version, _FILE_RIGHTS[5])) - 1
    network = _CONNECT | _BIND if version >= NETWORK_SINCE and port is not None else 0
    scope = _ABSTRACT_SOCKETS | _SIGNALS if version >= SIGNALS_SINCE else 0
    attributes = struct.pack("=QQQ", rights, network, scope)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        system, devices = map(Path, _SYSTEM), map(Path, _DEVICES)
        for path in (*system, *readable):
            _allow(ruleset, path, (_EXECUTE | _READ_FILE | _READ_FOLDER) & rights)
        for path in (*devices, *writable):
            _allow(ruleset, path, rights & ~_EXECUTE)
        if network:
            _call(_ADD_RULE, ruleset, _PORT, struct.pack("=QQ", _CONNECT, port), 0)
        if _libc().prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "The kernel does not let the process give up privileges.")
        _call(_RESTRICT_SELF, ruleset, 0)
        _drop_capabilities()
    finally:
        os.close(ruleset)


def _drop_capabilities() -> None:
    """Give up what root may do beyond other accounts, such as reading the memory of processes outside."""
    header, nothing = struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)
    if _libc().capset(header, nothing):
        raise OSError(ctypes.get_errno(), "The kernel does not let the process drop its capabilities.")


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights &= -1 if path.is_dir() else _OF_FILES
        _call(_ADD_RULE, ruleset, _BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: int | bytes | ctypes.c_size_t) -> int:
    result = _libc().syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return int(result)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
