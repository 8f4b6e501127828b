"""A file that matters is the old or the new one, whatever happens, and a secret is for its owner alone."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from fedgraft.core.files import cache_root, locked, stored_key, take_lock, write_bytes, write_private, write_text


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_full_disk_leaves_the_old_content_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "file", "old")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fedgraft.core.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_kill_before_the_rename_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "file", b"old")

    def killed(scratch: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "file", b"new, and longer")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_file_is_written_into_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "file", "é")
    assert (tmp_path / "a" / "b" / "file").read_text(encoding="utf-8") == "é"


def test_a_secret_is_drawn_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"secret")
    key = stored_key(tmp_path / "drawn")
    assert _mode(tmp_path / "key") == _mode(tmp_path / "drawn") == 0o600
    assert len(key) == 32
    assert stored_key(tmp_path / "drawn") == key
    assert stored_key(tmp_path / "another") != key


def test_features_are_kept_where_the_user_says_or_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGRAFT_CACHE", "/chosen")
    assert cache_root() == Path("/chosen")
    monkeypatch.delenv("FEDGRAFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_root() == Path("/cache/fedgraft")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "fedgraft"


def test_a_lock_that_is_held_is_waited_for_and_the_file_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one ")
    order = list[str]()

    def second() -> None:
        with locked(path) as file:
            order.append(file.read().decode())

    with locked(path) as file:
        waiting = threading.Thread(target=second)
        waiting.start()
        with path.open() as other:
            assert not take_lock(other)
        file.seek(0, 2)
        file.write(b"two")
    waiting.join()
    assert order == ["one two"]


def test_a_locked_file_that_is_made_has_the_permissions_asked_for(tmp_path: Path) -> None:
    with locked(tmp_path / "log", 0o600):
        pass
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
