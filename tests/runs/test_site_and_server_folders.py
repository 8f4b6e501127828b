"""The folders of sites and servers: keys that stay private, and mistakes in one sentence."""

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedgraft import UserError
from fedgraft.runs.certificates import require_hosts
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder


def test_private_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    site = SiteFolder.create(tmp_path / "site", "north")
    server = ServerFolder.create(tmp_path / "server", ["localhost"], 9092)
    secrets = [site.private_key, server.path / "keys" / "ca.key", server.path / "keys" / "server.key"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in secrets] == [0o600] * 3
    assert [stat.S_IMODE(path.stat().st_mode) for path in (site.path, server.path, site.state)] == [0o700] * 3


def test_the_servers_certificate_is_of_its_authority_and_names_its_hosts(tmp_path: Path) -> None:
    server = ServerFolder.create(tmp_path / "server", ["fed.example", "10.0.0.7"], 9092)
    authority = x509.load_pem_x509_certificate(server.authority.read_bytes())
    own = x509.load_pem_x509_certificate((server.path / "server.pem").read_bytes())
    own.verify_directly_issued_by(authority)
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]


def test_the_revocation_list_of_a_server_that_runs_for_years_never_expires_and_keeps_who_is_on_it(
    tmp_path: Path,
) -> None:
    server = ServerFolder.create(tmp_path / "server", ["localhost"], 9092)
    server.admit(SiteFolder.create(tmp_path / "a", "north").public_key)
    revoked = x509.load_pem_x509_certificate(server.certificate_of("north").read_bytes()).serial_number
    server.revoke("north")
    began, written = datetime.now(UTC), server.revocation_list.read_bytes()
    server.renew_revocation_list(began + timedelta(hours=23))
    assert server.revocation_list.read_bytes() == written
    for days in (1.1, 700, 1400, 2100):
        now = began + timedelta(days=days)
        server.renew_revocation_list(now)
        renewed = x509.load_pem_x509_crl(server.revocation_list.read_bytes())
        assert renewed.next_update_utc is not None
        assert renewed.next_update_utc > now + timedelta(days=800)
        assert renewed.get_revoked_certificate_by_serial_number(revoked) is not None
    server.revocation_list.write_text("cut off by a full dis")
    server.renew_revocation_list()
    x509.load_pem_x509_crl(server.revocation_list.read_bytes())


def test_a_site_is_admitted_by_its_public_key_and_a_name_belongs_to_one_key(tmp_path: Path) -> None:
    server = ServerFolder.create(tmp_path / "server", ["localhost"], 9092)
    north = SiteFolder.create(tmp_path / "a", "north")
    assert server.admit(north.public_key) == "north"
    assert server.admit(north.public_key) == "north"
    (kept,) = server.admitted()
    serialization.load_ssh_public_key(kept.read_bytes())
    with pytest.raises(UserError, match="Another site named 'north'"):
        server.admit(SiteFolder.create(tmp_path / "b", "north").public_key)
    with pytest.raises(UserError, match="is not a public key"):
        server.admit(north.private_key)
    other = SiteFolder.create(tmp_path / "c", "other").public_key
    other.write_text(other.read_text().replace("other", "../north"))
    with pytest.raises(UserError, match=r"unlike '\.\./north'"):
        server.admit(other)


@pytest.mark.parametrize(
    "name", ["", "north/east", "north\neast", "north\x1b[31m", "n" * 65, "x" * 10**6, ".north", "<b>"]
)
def test_a_site_gets_no_name_that_a_terminal_or_a_path_would_take_for_more(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The name of a site has") as refused:
        SiteFolder.create(tmp_path / "site", name)
    assert len(str(refused.value)) < 250
    assert not (tmp_path / "site").exists()
    north = SiteFolder.create(tmp_path / "north", "north")
    (north.path / "site.toml").write_text(f"name = {json.dumps(name)}\n")
    with pytest.raises(UserError, match="the name of a site has"):
        SiteFolder.open(north.path)


@pytest.mark.parametrize(
    "host", ["", "a/b", "a\nb", "x" * 10**6, "x" * 64, "-a", "b\u00fc.example", "a..b", "127.0.0.1:9092"]
)
def test_a_server_gets_no_host_that_no_certificate_can_name(host: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no host name; give a DNS name") as refused:
        ServerFolder.create(tmp_path / "server", ["fed.example", host], 9092)
    assert len(str(refused.value)) < 250
    assert not (tmp_path / "server").exists()
    for good in ("*.fed.example", "10.0.0.7", "::1", "localhost", "xn--bcher-kva.example", "db_1.internal"):
        require_hosts([good])


def test_folders_are_not_made_over_others(tmp_path: Path) -> None:
    SiteFolder.create(tmp_path / "site", "north")
    with pytest.raises(UserError, match="is not empty"):
        SiteFolder.create(tmp_path / "site", "north")
    with pytest.raises(UserError, match="is not empty"):
        ServerFolder.create(tmp_path / "site", ["localhost"], 9092)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "is not TOML"),
        ("name = ''", "'name': the name of a site has 1 to 64 characters, not 0"),
        ("name = 'a'\ndate = 1", "'date'"),
    ],
)
def test_a_mistake_in_site_toml_is_named(text: str, said: str, tmp_path: Path) -> None:
    site = SiteFolder.create(tmp_path / "site", "north")
    (site.path / "site.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        SiteFolder.open(site.path)


def test_what_is_no_folder_of_the_kind_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a site's folder"):
        SiteFolder.open(tmp_path)
    with pytest.raises(UserError, match="is not a server's folder"):
        ServerFolder.open(tmp_path)
    with pytest.raises(UserError, match="names no folder of images"):
        _ = SiteFolder.create(tmp_path / "site", "north").data
