"""The file of the sites that a site knows: what an administrator may copy into it, and what is told of mistakes."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from fedgraft.core.errors import UserError
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.runs.site_peers import exchange_keys, own_keys, read_peers, require_peers


@pytest.fixture
def north(tmp_path: Path) -> SiteFolder:
    """A site."""
    return SiteFolder.create(tmp_path / "north", "north")


def test_all_sites_can_have_the_same_file(north: SiteFolder, tmp_path: Path) -> None:
    south = SiteFolder.create(tmp_path / "south", "south of it")
    exchange_keys([north, south])
    assert north.peers.read_text() == south.peers.read_text()
    assert (list(read_peers(north) or {}), list(read_peers(south) or {})) == (["south of it"], ["north"])


def test_comments_and_empty_lines_are_passed_over_and_no_file_is_no_list(north: SiteFolder, tmp_path: Path) -> None:
    assert read_peers(north) is None
    (line,) = own_keys(SiteFolder.create(tmp_path / "south", "south"))
    north.peers.write_text(f"# by telephone, 3 May\n\n{line}\n")
    assert list(read_peers(north) or {}) == ["south"]
    north.peers.write_text("")
    assert read_peers(north) == {}


_ED25519 = ed25519.Ed25519PrivateKey.generate().public_key()
_FOREIGN = _ED25519.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("south", "line 2: 'south' begins with no public key"),
        ("ecdsa-sha2-nistp384 AAAA south", "begins with no public key"),
        (f"{_FOREIGN} south", "line 2: 'ssh-ed25519' is not the type of a site's key"),
        ("KEY", "the name of a site has 1 to 64 characters, not 0"),
        (f"KEY {'s' * 1_000_000}", "the name of a site has 1 to 64 characters, not 1000000"),
        ("KEY ../south", "unlike '../south'"),
    ],
)
def test_a_line_that_is_no_peer_is_told_with_its_number(line: str, said: str, north: SiteFolder) -> None:
    key = " ".join(own_keys(north)[0].split()[:2])
    north.peers.write_text(f"# the others\n{line.replace('KEY', key)}\n")
    with pytest.raises(UserError) as error:
        read_peers(north)
    assert said in str(error.value)
    assert str(error.value).endswith("it takes the lines that `fedgraft site key` prints at the other sites.")
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


def test_a_file_that_is_no_text_is_told(north: SiteFolder) -> None:
    north.peers.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"^The file .*peers cannot be read: "):
        read_peers(north)


def test_a_site_that_requires_peers_does_not_start_without_them(north: SiteFolder) -> None:
    require_peers(north)
    file = north.path / "site.toml"
    file.write_text(file.read_text().replace("require_known_peers = false", "require_known_peers = true"))
    with pytest.raises(UserError, match=r"has require_known_peers, and there is no file .*peers; give it the lines"):
        require_peers(SiteFolder.open(north.path))
