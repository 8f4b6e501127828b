"""A simulated fleet: one real registry, devices that are real agents in few processes, releases good and bad, faults.

The play: version 1 for all; version 2 in stages, and version 3, which is the same with another class bank, before that
has ended; version 4, bad on every device, until its rollout halts and the publisher rolls back. At the end every device
must run version 3, and the registry must have counted every prediction once.
"""

import hashlib
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgraft.core.errors import RunFailed
from fedgraft.core.files import free_port, new_private_folder, write_text
from fedgraft.core.observer import Observer
from fedgraft.device.agent.device_folder import DeviceFolder
from fedgraft.device.bundle import open_bundle
from fedgraft.device.manifest import MODEL
from fedgraft.edge_export.signing import public_bytes
from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.fleet.publishing import publish, release_of, rollback
from fedgraft.fleet.rollout import RolloutPlan
from fedgraft.fleet.rollouts import rollouts
from fedgraft.fleet.simulated_bundle import COLOURS, bank_contents, bundle_contents, signed, write_files
from fedgraft.fleet.simulated_devices import Outcome, Work, counted, look_after, together
from fedgraft.fleet.simulated_registry import SimulatedRegistry
from fedgraft.fleet.tokens import new_token

_CHANNEL = "stable"
_LAST = 3
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class FleetSimulation:
    """The settings of a simulation.

    Attributes:
        fault_rate: of the looks of a device in which something fails.
        kills: how often the registry is killed.
        stage_seconds: how long a stage of a rollout lasts at least.
        timeout: seconds after which the simulation has failed.
    """

    devices: int = 1000
    seed: int = 0
    processes: int = 2
    fault_rate: float = 0.05
    kills: int = 0
    stage_seconds: float = 2.0
    pause: float = 0.0
    timeout: float = 1800.0


@dataclass(frozen=True)
class Simulated:
    """What came of a simulation.

    Attributes:
        versions: devices by the version that they run at the end.
        astray: devices that do not run what their channel names.
        lost: predictions that the registry has not counted, or counted twice.
        registry_mb: the most memory that the registry has had.
    """

    devices: int
    seconds: float
    looks: int
    faults: dict[str, int]
    kills: int
    versions: dict[str, int]
    astray: list[str]
    lost: int
    registry_mb: float

    @property
    def whole(self) -> bool:
        """Whether nothing was lost and no device is astray."""
        return not self.astray and self.lost == 0


def simulate_fleet(out: Path, settings: FleetSimulation, observer: Observer | None = None) -> Simulated:
    """Play it in a new folder.

    Raises:
        UserError: the folder is not empty.
        RunFailed: it did not end in time.
    """
    observer = observer or Observer()
    new_private_folder(out, "a simulation", ("devices", "bundles"))
    key = Ed25519PrivateKey.generate()
    folder = FleetFolder.create(out / "fleet", ["localhost"], free_port(), public_bytes(key))
    with folder.database() as database, database.transaction():
        tokens = [new_token(database, group=f"group-{number % 3}") for number in range(settings.devices)]
    began = time.monotonic()
    with (
        SimulatedRegistry(folder, settings.kills, settings.seed) as registry,
        _Workers(out, folder, tokens, settings) as workers,
    ):
        play = _Play(out, folder, key, settings, registry, observer)
        play.run(workers)
        outcome = workers.finish()
        peak = registry.peak_mb
    seconds = time.monotonic() - began
    return _judged(out, folder, settings, outcome, seconds, registry.killed, peak)


class _Play:
    """The publisher's part."""

    def __init__(
        self,
        out: Path,
        folder: FleetFolder,
        key: Ed25519PrivateKey,
        settings: FleetSimulation,
        registry: SimulatedRegistry,
        observer: Observer,
    ) -> None:
        self._out, self._folder, self._key, self._settings = out, folder, key, settings
        self._registry, self._observer = registry, observer
        self._deadline = time.monotonic() + settings.timeout
        self._contents = bundle_contents()

    def run(self, workers: "_Workers") -> None:
        """Publish, wait, roll back."""
        after = f"{self._settings.stage_seconds:g}s"
        self._publish(1, RolloutPlan.build())
        self._wait("every device has version 1", lambda: self._on(1) == self._settings.devices)
        self._publish(2, RolloutPlan.build(5, "25,100", after))
        self._wait("some devices have version 2", lambda: self._on(2) > 0)
        last = self._publish(_LAST, RolloutPlan.build(5, "25,100", after, "failed>20%"))
        self._wait(f"every device has version {_LAST}", lambda: self._on(_LAST) == self._settings.devices)
        # a rollback goes to what all devices may have for good, so not before the last stage has been watched
        self._wait(f"version {_LAST} has passed its last stage", lambda: self._state_of(last) == "done")
        self._wait("the registry was killed as often as asked", lambda: self._registry.left == 0)
        bad = self._publish(_LAST + 1, RolloutPlan.build(5, "25,100", after, "failed>2%"), write=True)
        self._wait("the bad version is halted", lambda: self._state_of(bad) == "halted")
        rollback(self._folder, _CHANNEL, self._key)
        workers.calm()
        self._wait("no device has the bad version", lambda: self._on(_LAST) == self._settings.devices)

    def _publish(self, version: int, plan: RolloutPlan, write: bool = False) -> str:
        if version == _LAST:
            encoder = hashlib.sha256(self._contents[MODEL]).hexdigest()
            files = signed(bank_contents((*COLOURS, "grey")), version, self._key, encoder)
        else:
            files = signed(self._contents, version, self._key)
        path = write_files(self._out / "bundles" / str(version), files)
        if write:  # before any device can have it
            write_text(self._out / "bad", _release_id(self._folder, path))
        return publish(self._folder, path, _CHANNEL, self._key, plan).release

    def _on(self, version: int) -> int:
        with self._folder.database() as database:
            row = database.row("SELECT COUNT(*) AS n FROM devices WHERE version = ? AND health != 'new'", version)
            return 0 if row is None else int(row["n"])

    def _state_of(self, release: str) -> str:
        with self._folder.database() as database:
            return next(each.state for each in rollouts(database, _CHANNEL) if each.release == release)

    def _wait(self, what: str, holds: Callable[[], bool]) -> None:
        while not holds():
            if time.monotonic() > self._deadline:
                raise RunFailed(f"The simulation did not end within {self._settings.timeout:g} s: not {what}.")
            self._registry.step()
            time.sleep(_POLL_SECONDS)
        self._observer.on_notice(f"{what[0].upper()}{what[1:]}.")


class _Workers:
    """The devices' processes."""

    def __init__(self, out: Path, folder: FleetFolder, tokens: list[str], settings: FleetSimulation) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop, self._calm, self._done = context.Event(), context.Event(), context.Queue()
        devices = [(out / "devices" / f"{number:05d}", token) for number, token in enumerate(tokens)]
        self._processes = []
        for number in range(settings.processes):
            work = Work(
                server=f"localhost:{folder.port}",
                authority=folder.authority,
                devices=tuple(devices[number :: settings.processes]),
                bad_release=out / "bad",
                seed=settings.seed,
                fault_rate=settings.fault_rate,
                pause=settings.pause,
            )
            arguments = (work, self._stop, self._calm, self._done)
            self._processes.append(context.Process(target=look_after, args=arguments, daemon=True))

    def __enter__(self) -> "_Workers":
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for process in self._processes:
            process.join(1.0)
            if process.is_alive():
                process.kill()

    def calm(self) -> None:
        """No more faults."""
        self._calm.set()

    def finish(self) -> Outcome:
        """Let every device look once more without faults, and what they all saw."""
        self._stop.set()
        outcomes: list[Outcome] = [self._done.get(timeout=600) for _ in self._processes]
        return together(outcomes)


def _judged(
    out: Path,
    folder: FleetFolder,
    settings: FleetSimulation,
    outcome: Outcome,
    seconds: float,
    kills: int,
    peak_mb: float,
) -> Simulated:
    """Compare the devices' folders with the channel, and the registry's counts with the devices' own."""
    with folder.database() as database:
        known = {each.release: each.version for each in rollouts(database, _CHANNEL)}
        counts = {
            row["device"]: row["n"]
            for row in database.rows("SELECT device, SUM(predictions) AS n FROM telemetry GROUP BY device")
        }
    versions: dict[str, int] = {}
    astray, lost = list(outcome.unfinished), 0
    for path in sorted((out / "devices").iterdir()):
        state = DeviceFolder(path).state()
        version = known.get(state.current)
        versions[str(version)] = versions.get(str(version), 0) + 1
        if version != _LAST:
            astray.append(path.name)
        lost += abs(outcome.predictions[path.name] - counts.get(state.device, 0))
    return Simulated(
        devices=settings.devices,
        seconds=seconds,
        looks=outcome.looks,
        faults=counted(outcome.faults),
        kills=kills,
        versions=versions,
        astray=sorted(set(astray)),
        lost=lost,
        registry_mb=peak_mb,
    )


def _release_id(folder: FleetFolder, path: Path) -> str:
    with folder.database() as database:
        return release_of(database, open_bundle(path), _CHANNEL).id
