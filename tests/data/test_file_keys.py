"""What a second run would lose: images that are not read again, and never an old key for a new content."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.core.files import cache_root
from fedgraft.data.examples import content_key
from fedgraft.data.sources import file_keys, row_keys
from fedgraft.data.sources.file_keys import keys_of


@pytest.fixture
def files(tmp_path: Path, write_image: Any, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Five images whose folder has an empty cache, and files that count as settled at once."""
    monkeypatch.setattr(file_keys, "SETTLED_NS", -(10**12))
    monkeypatch.setenv("FEDGRAFT_CACHE", str(tmp_path / "cache"))
    return [write_image(tmp_path / "images" / f"{number}.png", colour=(number, 0, 0)) for number in range(5)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are opened."""
    opened: list[Path] = []
    plain = os.open

    def observed(path: Any, *arguments: Any, **more: Any) -> int:
        if str(path).endswith(".png"):
            opened.append(Path(path))
        return plain(path, *arguments, **more)

    monkeypatch.setattr(file_keys.os, "open", observed)
    return opened


def _expected(files: Sequence[Path]) -> list[list[int]]:
    return [content_key(path.read_bytes()).tolist() for path in files]


def test_a_second_run_reads_no_image(files: list[Path], reads: list[Path]) -> None:
    first = keys_of(files, files[0].parent)
    assert sorted(reads) == files
    assert first.keys.tolist() == _expected(files)
    reads.clear()
    np.testing.assert_array_equal(keys_of(files, files[0].parent).keys, first.keys)
    assert reads == []


def test_only_what_changed_is_read_again(files: list[Path], reads: list[Path], write_image: Any) -> None:
    keys_of(files, files[0].parent)
    write_image(files[2], colour=(9, 9, 9))
    reads.clear()
    again = keys_of(files, files[0].parent).keys
    assert reads == [files[2]]
    assert again.tolist() == _expected(files)


def test_an_edit_that_keeps_size_and_time_is_noticed(files: list[Path], reads: list[Path]) -> None:
    keys_of(files, files[0].parent)
    before = files[1].stat()
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    files[1].write_bytes(content)
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files[1].stat().st_mtime_ns == before.st_mtime_ns
    assert files[1].stat().st_size == before.st_size
    reads.clear()
    assert keys_of(files, files[0].parent).keys.tolist() == _expected(files)
    assert reads[:1] == [files[1]]


def test_a_file_that_has_just_changed_is_not_trusted(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_keys, "SETTLED_NS", 10**12)
    keys_of(files, files[0].parent)
    assert not (cache_root() / "keys").exists()


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08" + bytes(7) + b"{}      "])
def test_a_damaged_cache_costs_only_time(content: bytes, files: list[Path]) -> None:
    keys_of(files, files[0].parent)
    (store,) = (cache_root() / "keys").iterdir()
    store.write_bytes(content)
    assert keys_of(files, files[0].parent).keys.tolist() == _expected(files)
    assert store.stat().st_size > 100


def test_a_cache_that_cannot_be_written_costs_only_time(files: list[Path]) -> None:
    cache_root().write_text("a file where the folder should be")
    assert keys_of(files, files[0].parent).keys.tolist() == _expected(files)


def test_a_sound_image_is_decoded_once_and_a_damaged_one_is_always_found(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files[3].write_bytes(files[3].read_bytes()[:40])
    keys_of(files, files[0].parent)
    decoded: list[Path] = []
    plain = file_keys.decode
    monkeypatch.setattr(file_keys, "decode", lambda path: (decoded.append(path), plain(path))[1])
    for expected in (files, [files[3]]):
        decoded.clear()
        faults = keys_of(files, files[0].parent, decoding=True).faults
        assert sorted(decoded) == expected
        assert list(faults) == [3]
        assert str(files[3]) in faults[3]


def test_rows_of_a_table_are_read_once(tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    (tmp_path / "data").mkdir()
    features = datasets.Features({"image": datasets.Image()})
    written = datasets.Dataset.from_dict({"image": [{"bytes": f.read_bytes(), "path": None} for f in files]}, features)
    written.to_parquet(str(tmp_path / "data" / "train.parquet"))
    table = datasets.load_dataset(str(tmp_path / "data"))["train"]
    assert row_keys.keys_of_rows(table, "image").tolist() == _expected(files)

    def refuse(*_: object) -> None:
        raise AssertionError("the images are read again")

    monkeypatch.setattr(row_keys, "_keys", refuse)
    assert row_keys.keys_of_rows(table, "image").tolist() == _expected(files)
