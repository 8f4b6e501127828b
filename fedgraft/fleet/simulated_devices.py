"""Many devices in one process, each the real agent on a folder of its own, with faults drawn from a seed.

A worker looks after its devices in turn until it is told to stop, and then once more without faults, so that every
device can end where its channel is and report what it has counted.
"""

import errno
import os
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image

from fedgraft.device.agent.device_folder import PROVING_PREDICTIONS, DeviceFolder
from fedgraft.device.agent.live import opened_release
from fedgraft.device.agent.registry_client import OPTIONS, RegistryClient, Unreachable
from fedgraft.device.agent.service import cycle, enrol
from fedgraft.device.agent.tally import Tally, add_tally
from fedgraft.device.errors import DeviceError

FAULTS = ("kill", "cut", "corrupt", "clock", "disk full")
_PREDICTIONS = 3
_YEAR = 365 * 86400.0
_LAST_TRIES = 200
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Work:
    """What a worker looks after.

    Attributes:
        devices: the folder of each device, and its token.
        bad_release: a release whose predictions fail on every device; "" for none. It is read from this file, since it
            is published later.
        fault_rate: of a device's looks that a fault happens in.
    """

    server: str
    authority: Path
    devices: tuple[tuple[Path, str], ...]
    bad_release: Path
    seed: int
    fault_rate: float
    pause: float


@dataclass
class Outcome:
    """What a worker saw.

    Attributes:
        predictions: of each device, by its folder's name.
    """

    looks: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    predictions: Counter[str] = field(default_factory=Counter)
    unfinished: list[str] = field(default_factory=list)


class _Killed(BaseException):
    """The agent's process ends here."""


class _Faulty:
    """A connection in which one fault happens, at a call that is drawn."""

    def __init__(self, client: RegistryClient, fault: str, rng: random.Random) -> None:
        self._client, self._fault = client, fault
        self._left = rng.randrange(6)

    def fetch(self, sha256: str, offset: int, length: int) -> bytes:
        """A part of a file, or a fault."""
        due = self._due()
        if due and self._fault == "disk full":
            raise OSError(errno.ENOSPC, "No space left on device")
        data = self._client.fetch(sha256, offset, length)
        if due and self._fault == "corrupt":
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    def report(self, content: dict[str, Any]) -> None:
        """Stored, but the answer may be lost."""
        due = self._due()
        self._client.report(content)
        if due and self._fault == "cut":
            raise Unreachable("The registry does not answer: cut.")

    def check(self, content: dict[str, Any]) -> dict[str, Any]:
        """What the registry has."""
        self._due()
        return self._client.check(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def _due(self) -> bool:
        self._left -= 1
        if self._left >= 0:
            return False
        if self._fault == "kill":
            raise _Killed
        if self._fault == "cut" and self._left == -1:
            raise Unreachable("The registry does not answer: cut.")
        return True


class SimulatedDevice:
    """A device.

    Args:
        name: of its folder, from which its faults are drawn.
    """

    def __init__(self, folder: Path, token: str, client: RegistryClient, work: Work) -> None:
        self.name, self._token = folder.name, token
        self.folder = DeviceFolder(folder)
        self._client, self._work = client, work
        self._looks = 0
        self._predicted_with = ""

    def look(self, outcome: Outcome, faults: bool) -> bool:
        """Look once, predict a little with a new release; whether nothing went wrong."""
        self._looks += 1
        outcome.looks += 1
        rng = random.Random(f"{self._work.seed}/{self.name}/{self._looks}")
        fault = rng.choice(FAULTS) if faults and rng.random() < self._work.fault_rate else ""
        client: Any = _Faulty(self._client, fault, rng) if fault else self._client
        skew = rng.choice((-5 * _YEAR, 5 * _YEAR)) if fault == "clock" else 0.0
        if fault:
            outcome.faults[fault] += 1
        try:
            enrol(self.folder, client, self._token)
            cycle(self.folder, client, lambda: time.time() + skew)
            self._predict(outcome)
        except (_Killed, DeviceError):
            return False
        return True

    def _predict(self, outcome: Outcome) -> None:
        state = self.folder.state()
        if state.current in ("", self._predicted_with):
            return
        bad = self._work.bad_release
        if bad.exists() and bad.read_text() == state.current:
            self.folder.refuse(state.current, "a prediction failed: the release is bad on every device")
            return
        predictor, tally = opened_release(self.folder, state, threads=1, spinning=False), Tally()
        for _ in range(_PREDICTIONS):
            began = time.perf_counter()
            answer = predictor.predict(_IMAGE)
            position = predictor.labels.index(answer.label)
            tally.add(answer, position, 1000 * (time.perf_counter() - began))
        add_tally(self.folder, state.current, tally)
        outcome.predictions[self.name] += _PREDICTIONS
        self.folder.prove(state.current, PROVING_PREDICTIONS)
        self._predicted_with = state.current


_IMAGE = Image.fromarray(np.full((16, 16, 3), (200, 30, 30), np.uint8))


def look_after(work: Work, stop: Event, calm: Event, done: Any) -> None:
    """A worker's whole life; its outcome goes into the queue `done`.

    Args:
        stop: ends it, after every device had a look without faults.
        calm: no more faults from now on.
    """
    outcome, parent = Outcome(), os.getppid()
    credentials = grpc.ssl_channel_credentials(work.authority.read_bytes())
    with grpc.secure_channel(work.server, credentials, OPTIONS) as channel:
        devices = [
            SimulatedDevice(folder, token, RegistryClient(channel, work.server, _PATIENCE_SECONDS), work)
            for folder, token in work.devices
        ]
        while not stop.is_set():
            began = time.monotonic()
            for device in devices:
                if os.getppid() != parent:
                    return  # whoever began it was killed
                if stop.is_set():
                    break
                device.look(outcome, faults=not calm.is_set())
            stop.wait(max(0.0, work.pause - (time.monotonic() - began)))
        for device in devices:
            tries = 0
            while not (device.look(outcome, faults=False) and device.look(outcome, faults=False)):
                tries += 1
                if tries == _LAST_TRIES:
                    outcome.unfinished.append(device.name)
                    break
                time.sleep(0.1)
    done.put(outcome)


def together(outcomes: list[Outcome]) -> Outcome:
    """The outcomes of several workers as one."""
    whole = Outcome()
    for each in outcomes:
        whole.looks += each.looks
        whole.faults.update(each.faults)
        whole.predictions.update(each.predictions)
        whole.unfinished += each.unfinished
    return whole


def counted(faults: Mapping[str, int]) -> dict[str, int]:
    """Faults by kind, in a fixed order."""
    return {fault: faults.get(fault, 0) for fault in FAULTS}
