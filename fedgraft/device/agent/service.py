"""`fedgraft-device agent`: enrol once, then look at the registry and report, now or every few minutes."""

import fcntl
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedgraft.device.agent.device_folder import DeviceFolder, open_lock
from fedgraft.device.agent.registry_client import Registry, RegistryClient, Unreachable, connected
from fedgraft.device.agent.report import send_report
from fedgraft.device.agent.update import Looked, first_state, look
from fedgraft.device.ed25519 import read_public_key
from fedgraft.device.errors import DeviceError

INTERVAL_SECONDS = 300.0
_FINGERPRINT = 32
"""The digits of a fingerprint in a token."""


def run_agent(
    server: str,
    ca: Path | None,
    token: str | None,
    dir: Path,
    once: bool = False,
    interval: float = INTERVAL_SECONDS,
    key: str | None = None,
    share_embeddings: bool = False,
) -> None:
    """Keep the device in a folder at the version that its fleet's registry names, until SIGTERM or Ctrl-C.

    Args:
        server: HOST:PORT of the registry.
        ca: the fleet's ca.pem; kept in the folder when the device enrols.
        token: needed until the device is enrolled.
        once: whether to look and report a single time.
        interval: seconds between two looks, unless the registry asks for others.
        key: a publisher's public key that must be among the fleet's.
        share_embeddings: whether reports have embeddings of some of the images that were called unknown.

    Raises:
        DeviceError: the device cannot enrol; with `once`, what keeps it from the version that its channel names.
    """
    folder = DeviceFolder(dir)
    with _only_agent(folder):
        client = connected(server, ca if ca is not None else folder.path / "ca.pem")
        stop = threading.Event()
        for number in () if once else (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        try:
            while True:
                try:
                    enrol(folder, client, token, None if key is None else read_public_key(key))
                    _keep_authority(folder, ca)
                    share(folder, share_embeddings)
                    looked = cycle(folder, client)
                    if once and looked.problem:
                        raise DeviceError(looked.problem)
                    _say(folder, looked, once)
                    pause = looked.next_seconds or interval
                except DeviceError as error:
                    enrolled = bool(folder.state().device)
                    if once or not (enrolled or isinstance(error, Unreachable)):
                        raise
                    print(f"fedgraft-device: {error} The device goes on with what it has.", file=sys.stderr, flush=True)
                    pause = interval
                if once or stop.wait(pause * random.uniform(0.8, 1.2)):
                    return
        finally:
            client.close()


def enrol(folder: DeviceFolder, registry: Registry, token: str | None, pinned: bytes | None = None) -> None:
    """Enrol the device unless it is; raises DeviceError if it cannot be."""
    if folder.state().device:
        return
    if token is None:
        raise DeviceError(
            f"The device in {folder.path} is not enrolled; give --token, from `fedgraft fleet token` at the registry."
        )
    secret, _, fingerprint = token.partition(".")
    if not secret or len(fingerprint) != _FINGERPRINT:
        raise DeviceError("The token is incomplete; `fedgraft fleet token` prints it as one word of two parts.")
    state = first_state(registry.enrol(secret, folder.key), fingerprint)
    if pinned is not None and pinned.hex() not in state.trust["publishers"]:
        raise DeviceError(f"The fleet's publishers are {', '.join(state.trust['publishers'])}, not the required key.")
    with folder.locked():
        folder.write_state(state)


def share(folder: DeviceFolder, embeddings: bool) -> None:
    """Let embeddings of unknown images be reported from now on, or no more; raises DeviceError on a full disk."""
    if folder.state().share_embeddings != embeddings:
        folder.change(share_embeddings=embeddings)


def cycle(folder: DeviceFolder, registry: RegistryClient, clock: Callable[[], float] = time.time) -> Looked:
    """Look once and report; raises DeviceError if the registry does not answer, or does not know the device."""
    state = folder.state()
    first = not registry.has_session
    if first:
        registry.open_session(state.fleet, state.device, folder.key)
    looked = look(folder, registry, clock, thorough=first)
    send_report(folder, registry, clock(), looked.problem)
    return looked


def _say(folder: DeviceFolder, looked: Looked, always: bool) -> None:
    state = folder.state()
    if looked.problem:
        print(f"fedgraft-device: {looked.problem}", file=sys.stderr, flush=True)
    elif looked.installed is not None:
        print(f"Version {looked.installed} runs now; {looked.moved:,} bytes were fetched.", flush=True)
    elif not state.current:
        print(f"Enrolled as {state.device}; the channel {state.channel!r} has nothing for this device yet.", flush=True)
    elif always:
        went_back = "" if state.current == state.floor_id else ", after a later one had failed"
        print(f"The device is up to date with the channel {state.channel!r}{went_back}.", flush=True)


def _keep_authority(folder: DeviceFolder, ca: Path | None) -> None:
    kept = folder.path / "ca.pem"
    if ca is not None and ca.absolute() != kept.absolute():
        shutil.copyfile(ca, kept)


@contextmanager
def _only_agent(folder: DeviceFolder) -> Iterator[None]:
    with open_lock(folder.path / ".agent.lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DeviceError(f"Another agent runs in {folder.path}; stop it first.") from error
        yield
