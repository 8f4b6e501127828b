"""What a site learns of itself before any server, from Python and from the command."""

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from fedgraft import UserError
from fedgraft.backbones import Backbone
from fedgraft.client.site_check import check_site
from fedgraft.runs.personal_state import PersonalState
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.runs.site_policy import SitePolicy


def test_a_check_counts_classes_as_the_federation_will_hear_of_them(images: Path) -> None:
    found = check_site(images, {"blue_circle": "azure disk"}, "mini", "fedpgp")
    assert found.images == {"azure disk": 12, "green square": 12, "red triangle": 12}
    assert found.told == found.images
    assert found.mistakes == []
    assert found.features_seconds > 0
    assert found.round_seconds > 0
    assert found.memory_mb > 100


def test_a_check_says_what_the_policy_lets_a_server_learn_and_what_it_refuses(images: Path, mini: Backbone) -> None:
    found = check_site(images, {}, "mini", "zeroshot", SitePolicy(smallest_group=13))
    assert found.told == {}
    assert found.fingerprint == mini.fingerprint
    with pytest.raises(UserError, match="policy does not accept the method 'zeroshot'"):
        check_site(images, {}, "mini", "zeroshot", SitePolicy(methods=["fedpgp"]))
    with pytest.raises(UserError, match="policy does not accept the backbone with the fingerprint"):
        check_site(images, {}, "mini", "zeroshot", SitePolicy(backbones=["0" * 64]))


@pytest.mark.slow
def test_each_image_that_cannot_be_read_is_named(images: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(images, own)
    for name in ("0.png", "1.png"):
        (own / "green_square" / name).write_bytes(b"no image")
    found = check_site(own, {}, "mini", "zeroshot")
    assert found.images["green square"] == 10
    for name, said in zip(("0.png", "1.png"), found.mistakes, strict=True):
        assert str(own / "green_square" / name) in said
    site = SiteFolder.create(tmp_path / "site", "north", own)
    file = site.path / "site.toml"
    file.write_text(file.read_text().replace('report = ""', 'report = "report.toml"'))
    made = datetime.now(UTC).isoformat()
    (site.path / "report.toml").write_text(
        f'fleet = "f"\nmade = "{made}"\nfederate = true\nreasons = ["much is unknown"]\n'
    )
    done = _fedgraft("site", "check", str(tmp_path / "site"), "--method", "zeroshot")
    assert done.returncode == 2
    assert "34 images of 3 classes" in done.stdout
    assert "The devices ask for the next federation: much is unknown." in done.stdout
    assert "0.png cannot be decoded" in done.stderr
    assert "(and 1 more)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_without_one_sound_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own" / "cup").mkdir(parents=True)
    (tmp_path / "own" / "cup" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="No image of"):
        check_site(tmp_path / "own", {}, "mini", "zeroshot")


@pytest.mark.slow
def test_the_state_command_lists_what_can_be_read_whole(tmp_path: Path) -> None:
    site = SiteFolder.create(tmp_path / "site", "north")
    assert "no personal state" in _fedgraft("site", "state", str(site.path)).stdout
    state = PersonalState(site.state / "a-run" / "000", {"method": "fedpgp"})
    for server_round in (1, 2):
        state.save(server_round, {"U": torch.ones(3)})
    newest = site.state / "a-run" / "000" / "round-000002.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    kept = json.loads(_fedgraft("site", "state", str(site.path), "--json").stdout)
    assert kept == {"a-run/000": {"1": len(whole)}}
    restored = state.load(2)
    assert restored is not None
    assert torch.equal(restored["U"], torch.ones(3))


def _fedgraft(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fedgraft", *words], capture_output=True, text=True)
