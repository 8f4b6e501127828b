"""Keys and certificates are exchanged without a gap, and what is not valid says so in one sentence."""

import datetime
import os
from pathlib import Path

import pytest
from cryptography import x509

from fedgraft import UserError
from fedgraft.deployment.local import admit_here
from fedgraft.deployment.running_site import RunningSite
from fedgraft.runs.certificates import certificate_hosts, certificate_serial, validity
from fedgraft.runs.key_rotation import adopt_certificate, new_key_pair
from fedgraft.runs.server_folder import ServerFolder, admitted_key_files, admitted_names
from fedgraft.runs.site_folder import SiteFolder


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    return ServerFolder.create(tmp_path / "server", ["fed.example", "10.0.0.7"], 9092)


@pytest.fixture
def north(tmp_path: Path, server: ServerFolder) -> SiteFolder:
    """A site that is admitted."""
    site = SiteFolder.create(tmp_path / "north", "north")
    admit_here(server, site)
    return site


def _revoked(server: ServerFolder) -> set[int]:
    listed = x509.load_pem_x509_crl(server.revocation_list.read_bytes())
    return {entry.serial_number for entry in listed}


def test_a_new_certificate_of_the_server_is_for_its_hosts_and_of_its_authority(server: ServerFolder) -> None:
    before = certificate_serial(server.certificate), server.authority.read_bytes(), server.private_key.read_bytes()
    server.rotate([])
    assert certificate_hosts(server.certificate) == ["fed.example", "10.0.0.7"]
    assert certificate_serial(server.certificate) != before[0]
    assert server.authority.read_bytes() == before[1]
    assert server.private_key.read_bytes() != before[2]
    authority = x509.load_pem_x509_certificate(server.authority.read_bytes())
    x509.load_pem_x509_certificate(server.certificate.read_bytes()).verify_directly_issued_by(authority)
    server.rotate(["other.example"])
    assert certificate_hosts(server.certificate) == ["other.example"]


def test_a_renewed_certificate_leaves_the_old_one_valid_until_the_site_is_revoked(
    server: ServerFolder, north: SiteFolder
) -> None:
    old = certificate_serial(north.certificate)
    new = certificate_serial(server.renew("north"))
    assert new != old
    assert _revoked(server) == set()
    server.revoke("north")
    assert _revoked(server) == {old, new}
    assert admitted_names(server.path / "admitted") == set()


def test_a_sites_new_key_needs_a_word_and_counts_beside_the_old_one(server: ServerFolder, north: SiteFolder) -> None:
    old_key, old = north.private_key.read_bytes(), certificate_serial(north.certificate)
    key = new_key_pair(north)
    assert new_key_pair(north) == key
    assert north.private_key.read_bytes() == old_key
    with pytest.raises(UserError, match="--replace says that this is a new key of the same site"):
        server.admit(key)
    assert server.admit(key, replace=True) == "north"
    assert [name for name, _ in server.replaced()] == ["north"]
    assert _revoked(server) == set()
    adopt_certificate(north)
    assert north.private_key.read_bytes() == old_key, "the old key is used until the certificate is there"
    north.certificate.write_bytes(server.certificate_of("north").read_bytes())
    adopt_certificate(north)
    assert north.private_key.read_bytes() != old_key
    assert not key.exists()
    adopt_certificate(north)
    server.retire("north")
    assert _revoked(server) == {old}
    assert server.replaced() == []


def test_a_run_knows_a_site_by_both_keys_while_both_count(server: ServerFolder, north: SiteFolder) -> None:
    admitted, own = server.path / "admitted", north.public_key.read_text()
    new = new_key_pair(north)
    server.admit(new, replace=True)
    assert [path.read_text() for path in admitted_key_files(admitted, "north")] == [new.read_text(), own]
    assert admitted_key_files(admitted, "nor") == []
    server.retire("north")
    assert [path.read_text() for path in admitted_key_files(admitted, "north")] == [new.read_text()]


def test_a_site_is_admitted_at_every_moment_of_an_exchange_of_keys(
    server: ServerFolder, north: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that looks in between would take it for a site that has left, and ask it no more."""
    admitted, old, new = server.path / "admitted", north.public_key.read_text(), new_key_pair(north)
    seen = []

    def look(*_: object) -> None:
        names, keys = admitted_names(admitted), [path.read_text() for path in admitted_key_files(admitted, "north")]
        counting = [path.read_text() for _, path in server.replaced()]
        seen.append((names, set(keys), counting))

    for step in ("utime", "replace", "rename"):
        done = getattr(os, step)
        monkeypatch.setattr(os, step, lambda *args, done=done, **kw: (look(), done(*args, **kw), look())[1])
    moved = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: (look(), moved(path, target), look())[1])
    server.admit(new, replace=True)
    assert len(seen) > 6
    for names, keys, counting in seen:
        assert names == {"north"}
        assert keys <= {old, new.read_text()}
        assert keys
        assert counting in ([], [old]), "the old key is a replaced one only when the new one is there"
        assert counting == [] or new.read_text() in keys
    assert server.replaced()[0][1].read_text() == old


def test_a_key_whose_successor_never_came_stays_the_admitted_one(
    server: ServerFolder, north: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command was killed in between, or the disk was full."""
    own, new = north.public_key.read_text(), new_key_pair(north)
    with monkeypatch.context() as patch:
        patch.setattr("fedgraft.runs.server_folder.write_text", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            server.admit(new, replace=True)
    assert server.replaced() == []
    assert [path.read_text() for path in server.admitted()] == [own]
    server.admit(new, replace=True)
    assert [path.read_text() for path in server.admitted()] == [new.read_text()]
    assert [path.read_text() for _, path in server.replaced()] == [own]
    assert _revoked(server) == set(), "the site still connects with its old certificate"


def test_an_interrupted_exchange_of_keys_is_finished(server: ServerFolder, north: SiteFolder) -> None:
    _ = north.tls_key
    server.admit(new_key_pair(north), replace=True)
    north.certificate.write_bytes(server.certificate_of("north").read_bytes())
    (north.path / "keys" / "new" / "site").replace(north.private_key)  # and here the machine lost its power
    adopt_certificate(north)
    assert not (north.path / "keys" / "site.pem").exists()
    adopt_certificate(north)


def test_a_certificate_for_another_key_is_refused(tmp_path: Path, server: ServerFolder, north: SiteFolder) -> None:
    other = SiteFolder.create(tmp_path / "other", "other")
    admit_here(server, other)
    north.certificate.write_bytes(other.certificate.read_bytes())
    with pytest.raises(UserError, match=r"site\.pem is for another key than"):
        adopt_certificate(north)
    north.certificate.write_text("not a certificate")
    with pytest.raises(UserError, match=r"site\.pem cannot be read"):
        adopt_certificate(north)


def test_a_revoked_key_never_comes_back_and_a_new_one_does(server: ServerFolder, north: SiteFolder) -> None:
    server.revoke("north")
    with pytest.raises(UserError, match="was revoked or replaced; `fedgraft site rotate` makes the site a new one"):
        server.admit(north.public_key)
    assert server.admit(new_key_pair(north)) == "north"
    with pytest.raises(UserError, match="No site named 'south' is admitted; admitted: north"):
        server.revoke("south")


def test_revoking_one_site_leaves_those_with_similar_names(tmp_path: Path, server: ServerFolder) -> None:
    for name in ("north", "north-2", "north-2-a"):
        server.admit(SiteFolder.create(tmp_path / name, name).public_key)
        server.renew(name)
    server.revoke("north")
    assert len(_revoked(server)) == 2
    server.revoke("north-2")
    assert len(_revoked(server)) == 4


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (0, ""),
        (800, "C expires in 25 days, on "),
        (824.5, "C expires in 12 hours, on "),
        (900, "C expired 75 days ago, on "),
        (-1.5, "C is valid only 12 hours from now by this machine's clock; the clock is behind, set it right."),
    ],
)
def test_a_certificate_that_is_not_valid_or_not_for_long_is_told(server: ServerFolder, days: float, said: str) -> None:
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days, minutes=-1)
    found = validity(server.certificate, now)
    assert found.complaint("C").startswith(said)
    assert bool(found.complaint("C")) == bool(said)
    assert found.valid == (0 <= days < 825)


def test_a_site_with_an_expired_certificate_says_so_and_starts_nothing(
    server: ServerFolder, north: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedgraft.runs.certificates._VALID_DAYS", -0.25)
    north.certificate.write_bytes(server.renew("north").read_bytes())
    with pytest.raises(UserError, match=r"site\.pem expired 6 hours ago, on .* `fedgraft server renew` on the server"):
        RunningSite(north, "127.0.0.1:1", server.authority)
    assert server.complaints() == [
        said
        for said in server.complaints()
        if said.startswith("The certificate of the site 'north' expired 6 hours ago")
    ]
    assert len(server.complaints()) == 1


def test_replaced_keys_are_as_old_as_their_replacement(server: ServerFolder, north: SiteFolder) -> None:
    """Not as old as the key: it would be retired at once."""
    os.utime(server.path / "admitted" / "north.pub", (0, 0))
    server.admit(new_key_pair(north), replace=True)
    ((_, key),) = server.replaced()
    assert key.stat().st_mtime > 0
