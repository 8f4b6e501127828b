"""The life of a federation in processes: a site joins late, one changes its key, one is revoked, and runs queue."""

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed
from fedgraft.core.files import free_port, write_bytes
from fedgraft.data.sources.folder import readable
from fedgraft.deployment.local import admit_here, started
from fedgraft.deployment.registration import reconcile, register_key, registry, unregister_keys
from fedgraft.deployment.running_server import RunningServer
from fedgraft.deployment.running_site import RunningSite
from fedgraft.deployment.submitted import SubmittedRun
from fedgraft.flower.run_state import RunState, Wanted
from fedgraft.runs.certificates import certificate_serial
from fedgraft.runs.key_rotation import new_key_pair
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NORTH, SOUTH, EAST = 0, 1, 2


class Federation:
    """A server, sites and runs that are all looked after by one loop.

    Attributes:
        refused: why a site's processes gave up, by its name.
    """

    def __init__(self, server: RunningServer, sites: list[RunningSite], runs: list[SubmittedRun]) -> None:
        self.server, self.sites, self.runs = server, {site.folder.settings.name: site for site in sites}, runs
        self.refused: dict[str, str] = {}

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 900
        while not happened():
            assert time.monotonic() < deadline, "it has not happened; this only ends a test that would hang"
            self.server.supervise()
            self.runs = [run for run in self.runs if run.supervise() or run.stop()]
            for name, site in list(self.sites.items()):
                try:
                    site.supervise()
                except RunFailed as error:
                    self.refused[name] = str(error)
                    self.sites.pop(name).stop()
            time.sleep(0.2)


def _trained(out: Path) -> list[list[int]]:
    """The sites that trained, round by round."""
    return [row["sites"] for row in RunDirectory(out).rows() if row["scope"] == "train"]


def _shown_serial(folder: ServerFolder, site: SiteFolder) -> int:
    """The serial number of the certificate that the exposed port shows."""
    context = ssl.create_default_context(cafile=str(folder.authority))
    context.load_cert_chain(site.certificate, site.tls_key)
    with (
        socket.create_connection(("127.0.0.1", folder.port), 60) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        shown = connection.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def _pem(key: Path) -> bytes:
    public = serialization.load_ssh_public_key(key.read_bytes())
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_a_federation_lives_on_while_sites_join_change_keys_and_are_revoked(images: Path, tmp_path: Path) -> None:
    folder = ServerFolder.create(tmp_path / "server", ["127.0.0.1"], free_port())
    north, south, east = (SiteFolder.create(tmp_path / name, name, images) for name in ("north", "south", "east"))
    config = RunConfig(
        method="fedpgp", data="folder:own", protocol="own-data", sites=3, rounds=1000, local_epochs=1,
        protocol_options={"class_names": sorted(readable(path.name) for path in images.iterdir())},
        method_options={"n_ctx": 2, "rank": 2}, resend_seconds=10.0,
    )  # fmt: skip
    first, second = tmp_path / "first", tmp_path / "second"

    def site(own: SiteFolder) -> RunningSite:
        return RunningSite(own, f"127.0.0.1:{folder.port}", folder.authority)

    with started(folder, [north, south], site) as (server, sites):
        one_round = config.model_copy(update={"rounds": 1})
        runs = [SubmittedRun(folder, config, first), SubmittedRun(folder, one_round, second)]
        life = Federation(server, sites, runs)
        try:
            life.until(lambda: [NORTH, SOUTH] in _trained(first))

            admit_here(folder, east)
            register_key(folder, folder.path / "admitted" / "east.pub")
            life.sites["east"] = site(east)
            life.sites["east"].start()
            life.until(lambda: [NORTH, SOUTH, EAST] in _trained(first))
            assert runs[1].waits_for == f"The run waits for 1 before it, first {first}."

            old_key, old_certificate = _pem(north.public_key), certificate_serial(north.certificate)
            folder.admit(new_key_pair(north), replace=True)
            register_key(folder, folder.path / "admitted" / "north.pub")
            folder.rotate([])
            write_bytes(north.certificate, folder.certificate_of("north").read_bytes())
            life.until(lambda: not folder.replaced())
            rounds = len(_trained(first))
            life.until(lambda: [NORTH, SOUTH, EAST] in _trained(first)[rounds + 1 :])
            revoked = x509.load_pem_x509_crl(folder.revocation_list.read_bytes())
            assert [entry.serial_number for entry in revoked] == [old_certificate]
            assert _shown_serial(folder, north) == certificate_serial(folder.certificate)

            unregister_keys(folder, folder.revoke("south"))
            life.until(lambda: _trained(first)[-1] == [NORTH, EAST] and "south" in life.refused)
            assert "has been revoked" in life.refused["south"]

            RunState(first).want(Wanted.STOP)
            life.until(lambda: not life.runs)
        finally:
            for run in runs:
                run.stop()
            for running in life.sites.values():
                running.stop()

        stranger = SiteFolder.create(tmp_path / "stranger", "stranger")
        with registry(folder) as nodes:
            nodes.register(_pem(stranger.public_key), "stranger")
            assert {node.name for node in nodes.nodes()} == {"north", "east", "stranger"}
            assert old_key not in {node.key for node in nodes.nodes()}
            (line,) = reconcile(folder)
            assert "with the name 'stranger': its key is not among the admitted ones" in line
            assert {node.name for node in nodes.nodes()} == {"north", "east"}
            with pytest.raises(RunFailed, match="The SuperLink refuses"):
                nodes.register(old_key, "north")

    summary = RunDirectory(first).summary()
    assert summary["stopped_after"] == len(_trained(first))
    numbers = {name: entry["number"] for name, entry in RunDirectory(first).read_json("sites.json").items()}
    assert numbers == {"north": NORTH, "south": SOUTH, "east": EAST}
    assert _trained(second) == [[0, 1]]
    assert RunDirectory(second).read_json("sites.json").keys() == {"north", "east"}
    assert [run.state() for run in folder.queue.runs()] == [
        f"stopped after round {summary['stopped_after']}",
        "finished",
    ]
