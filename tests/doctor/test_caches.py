"""Clearing the cache removes what fedgraft made, and nothing else."""

import json
from pathlib import Path

import pytest

from fedgraft.doctor.caches import caches
from tests.cli.conftest import Printed, printed

__all__ = ["printed"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with features of 3,000 bytes, keys of 1,000, and a folder of somebody else's."""
    monkeypatch.setenv("FEDGRAFT_CACHE", str(tmp_path))
    for name, size in (("features/store/vectors.f32", 3000), ("keys/rows.safetensors", 1000), ("photos/cat.png", 5)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(size))
    return tmp_path


def test_sizes_are_those_on_disk(cache: Path, printed: Printed) -> None:
    shown = json.loads(printed("cache", "show", "--json")[0])
    assert shown["folder"] == str(cache)
    assert {each["name"]: each["bytes"] for each in shown["caches"]} == {"features": 3000, "keys": 1000}


def test_clearing_leaves_what_is_not_a_cache(cache: Path, printed: Printed) -> None:
    assert json.loads(printed("cache", "clear", "--json")[0]) == {"cleared": ["features", "keys"], "bytes": 4000}
    assert [path.name for path in cache.iterdir()] == ["photos"]


def test_one_cache_is_cleared_by_name(cache: Path, printed: Printed) -> None:
    printed("cache", "clear", "keys", "--yes")
    assert sorted(path.name for path in cache.iterdir()) == ["features", "photos"]


def test_a_link_is_removed_and_what_it_points_to_is_kept(cache: Path, printed: Printed) -> None:
    (cache / "tickets").symlink_to(cache / "photos")
    printed("cache", "clear", "tickets", "--yes")
    assert (cache / "photos" / "cat.png").exists()
    assert not (cache / "tickets").exists()


def test_a_name_that_is_no_cache_is_one_sentence_and_removes_nothing(cache: Path, printed: Printed) -> None:
    said = printed("cache", "clear", "keys", "photos", "--yes", status=2)[1]
    assert "There is no cache 'photos'" in said
    assert len(caches()) == 2


def test_without_a_yes_nothing_is_removed(cache: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.confirm", lambda text, abort: (_ for _ in ()).throw(KeyboardInterrupt))
    printed("cache", "clear", status=130)
    assert len(caches()) == 2
