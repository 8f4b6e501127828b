"""A registry on loopback over real TLS, bundles of a few kilobytes, and devices that are folders."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgraft.device.agent.device_folder import DeviceFolder
from fedgraft.device.agent.registry_client import RegistryClient, connected
from fedgraft.device.agent.service import cycle, enrol
from fedgraft.device.agent.update import Looked
from fedgraft.edge_export.signing import public_bytes
from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.fleet.publishing import Published, publish
from fedgraft.fleet.rollout import RolloutPlan
from fedgraft.fleet.serving import RunningRegistry
from fedgraft.fleet.simulated_bundle import bank_contents, bundle_contents, encoder, signed, write_files
from fedgraft.fleet.tokens import new_token

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
CONTENTS = bundle_contents()
ENCODER = hashlib.sha256(encoder()).hexdigest()


@dataclass
class Device:
    """A device with its connection."""

    folder: DeviceFolder
    client: RegistryClient

    def cycle(self, clock: Callable[[], float] | None = None) -> Looked:
        """Look and report once."""
        return cycle(self.folder, self.client, clock) if clock else cycle(self.folder, self.client)

    @property
    def version(self) -> int | None:
        """What the state says that runs."""
        state = self.folder.state()
        if not state.current:
            return None
        import json

        part = self.folder.bank(state.current) or self.folder.bundle(state.current)
        return int(json.loads((part / "manifest.json").read_text())["version"])


class Fleet:
    """A registry's folder in a temporary place, its process, and its devices."""

    def __init__(self, path: Path, publisher: bytes = public_bytes(KEY)) -> None:
        self.path = path
        self.folder = FleetFolder.create(path / "fleet", ["localhost"], 1, publisher)
        self.registry: RunningRegistry | None = None
        self.clients: list[RegistryClient] = []

    def start(self) -> None:
        """Serve, at the port of before if there was one."""
        port = 0 if self.registry is None else self.registry.port
        self.registry = RunningRegistry(self.folder, port, "127.0.0.1")

    def stop(self) -> None:
        """Stop serving."""
        assert self.registry is not None
        self.registry.stop()

    def token(self, **settings: object) -> str:
        """A token."""
        with self.folder.database() as database:
            return new_token(database, **settings)

    def client(self, patience: float = 20.0) -> RegistryClient:
        """A connection."""
        assert self.registry is not None
        client = connected(f"localhost:{self.registry.port}", self.folder.authority, patience)
        self.clients.append(client)
        return client

    def device(self, name: str = "device", **settings: object) -> Device:
        """A new device that has enrolled."""
        device = Device(DeviceFolder(self.path / name), self.client())
        enrol(device.folder, device.client, self.token(**settings))
        return device

    def bundle(self, version: int, key: Ed25519PrivateKey = KEY, **changes: object) -> Path:
        """A bundle; `changes` are of its manifest."""
        folder = self.path / f"bundle-{version}-{len(list(self.path.iterdir()))}"
        return write_files(folder, signed(CONTENTS, version, key, changes=changes))

    def bank(self, version: int, labels: tuple[str, ...], key: Ed25519PrivateKey = KEY) -> Path:
        """A class bank alone."""
        folder = self.path / f"bank-{version}-{len(list(self.path.iterdir()))}"
        return write_files(folder, signed(bank_contents(labels), version, key, ENCODER))

    def publish(self, version: int, channel: str = "stable", plan: RolloutPlan | None = None) -> Published:
        """Publish a new bundle."""
        return publish(self.folder, self.bundle(version), channel, KEY, plan)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet that is served."""
    fleet = Fleet(tmp_path)
    fleet.start()
    yield fleet
    for client in fleet.clients:
        client.close()
    fleet.stop()
