"""Hugging Face folders whose weights are no safetensors, and IDs without a network."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file

from fedgraft.backbones import load_backbone
from fedgraft.backbones.checkpoints.hub import downloaded
from fedgraft.core.errors import UserError
from tests.backbones.checkpoints.conftest import IMPORT, refusal

Save = Callable[..., Path]


@pytest.fixture
def saved(random_clip_folder: Path, tmp_path: Path) -> Save:
    """A CLIP folder whose weights are pickled, in one file or several."""

    def save(change: Callable[[dict[str, Any]], dict[str, Any]] = dict, shards: int = 1, precision: Any = None) -> Path:
        folder = Path(shutil.copytree(random_clip_folder, tmp_path / "bin"))
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        weights = change({name: tensor.to(precision or tensor.dtype) for name, tensor in weights.items()})
        if shards == 1:
            torch.save(weights, folder / "pytorch_model.bin")
            return folder
        places = {name: f"pytorch_model-{i % shards + 1:05d}-of-{shards:05d}.bin" for i, name in enumerate(weights)}
        for file in set(places.values()):
            torch.save({name: weights[name] for name, place in places.items() if place == file}, folder / file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        return folder

    return save


@pytest.mark.parametrize("shards", [1, 3])
def test_a_pickled_folder_becomes_the_same_backbone(
    shards: int, saved: Save, imported: IMPORT, random_clip_folder: Path
) -> None:
    made = imported(saved(shards=shards), tokenizer=None)
    assert (made.layout, made.family) == ("clip", "clip")
    original, ours = load_backbone(str(random_clip_folder)), load_backbone(str(made.out))
    assert ours.fingerprint == original.fingerprint
    assert ours.preprocessing == original.preprocessing


def test_half_precision_is_kept_and_computed_in_float32(saved: Save, imported: IMPORT) -> None:
    made = imported(saved(precision=torch.float16), tokenizer=None)
    assert made.precisions == ("float16",)
    assert made.bytes == 2 * made.parameters
    features = load_backbone(str(made.out)).text.encode_texts(["seven"])
    assert features.dtype == torch.float32


def test_weights_of_older_versions_that_transformers_ignores_are_no_fault(saved: Save, imported: IMPORT) -> None:
    """OpenAI's published folders hold the positions' numbers among the weights."""
    made = imported(saved(lambda w: {**w, "text_model.embeddings.position_ids": torch.arange(64)[None]}))
    assert load_backbone(str(made.out)).dim > 0


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "missing": (lambda w: {n: t for n, t in w.items() if n != "logit_scale"}, "lacks 1 weights"),
    "extra": (lambda w: {**w, "head.weight": torch.ones(2)}, "head.weight"),
    "another shape": (lambda w: {**w, "visual_projection.weight": torch.ones(2, 2)}, "weight does not fit"),
    "nothing": (lambda w: {}, "holds no weights"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_are_not_the_configurations_are_named(fault: str, saved: Save, imported: IMPORT) -> None:
    change, word = FAULTS[fault]
    assert word in refusal(lambda: imported(saved(change)))


def test_a_missing_shard_is_named(saved: Save, imported: IMPORT) -> None:
    folder = saved(shards=3)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    assert "lacks pytorch_model-00002-of-00003.bin" in refusal(lambda: imported(folder))


def test_an_index_cannot_name_a_file_elsewhere(saved: Save, imported: IMPORT, tmp_path: Path) -> None:
    folder = saved(shards=2)
    torch.save({"logit_scale": torch.zeros(())}, tmp_path / "other.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"logit_scale": "../other.bin"}}))
    assert "lacks other.bin" in refusal(lambda: imported(folder))


@pytest.mark.parametrize("file", ["tokenizer.json", "preprocessor_config.json"])
def test_a_missing_tokenizer_or_preprocessing_is_told(file: str, saved: Save, imported: IMPORT) -> None:
    folder = saved()
    (folder / file).unlink()
    sentence = refusal(lambda: imported(folder, tokenizer=None))
    assert "tokenizer" in sentence if file == "tokenizer.json" else file in sentence


def test_a_model_that_no_family_opens_is_named(saved: Save, imported: IMPORT) -> None:
    folder = saved()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "owlvit"}))
    sentence = refusal(lambda: imported(folder))
    assert "'owlvit'" in sentence
    assert "clip" in sentence.split("known:")[1]


def test_weights_alone_take_their_configuration_from_elsewhere(
    saved: Save, imported: IMPORT, random_clip_folder: Path
) -> None:
    """A fine-tuned model saved by a trainer, and the folder that it started from."""
    folder = saved(lambda w: {"state_dict": {f"model.clip.{name}": tensor for name, tensor in w.items()}})
    file = folder / "pytorch_model.bin"
    assert "--config" in refusal(lambda: imported(file))
    made = imported(file, config=random_clip_folder, tokenizer=None)
    assert load_backbone(str(made.out)).fingerprint == load_backbone(str(random_clip_folder)).fingerprint


def test_safetensors_are_copied(random_clip_folder: Path, imported: IMPORT) -> None:
    made = imported(random_clip_folder, tokenizer=None)
    assert load_backbone(str(made.out)).fingerprint == load_backbone(str(random_clip_folder)).fingerprint


# --- the folder that is written -------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_left_as_it_is(saved: Save, imported: IMPORT, tmp_path: Path) -> None:
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "thesis.tex").write_text("mine")
    assert "not empty" in refusal(lambda: imported(saved()))
    assert [path.name for path in (tmp_path / "imported").iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_filled(saved: Save, imported: IMPORT, tmp_path: Path) -> None:
    (tmp_path / "imported").mkdir()
    assert load_backbone(str(imported(saved()).out)).dim > 0


def test_a_disk_without_room_is_told_before_anything_is_written(
    saved: Save, imported: IMPORT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1_000_000))
    assert "has 1 MB left" in refusal(lambda: imported(saved()))
    assert not (tmp_path / "imported").exists()


def test_a_disk_that_fills_up_leaves_nothing_behind(
    saved: Save, imported: IMPORT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = saved()
    monkeypatch.setattr("fedgraft.backbones.checkpoints.importing.write_safetensors", full)
    assert "disk is full" in refusal(lambda: imported(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


# --- the hub --------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_an_id_in_the_cache_is_imported_without_a_network(saved: Save, imported: IMPORT, cache: Path) -> None:
    shutil.copytree(saved(), cache / "models--someone--clip" / "snapshots" / "0123")
    (cache / "models--someone--clip" / "refs").mkdir()
    (cache / "models--someone--clip" / "refs" / "main").write_text("0123")
    assert load_backbone(str(imported("someone/clip", tokenizer=None).out)).dim > 0


def test_an_absent_id_offline_is_one_line(imported: IMPORT, cache: Path) -> None:
    assert "'someone/clip' is not in the cache" in refusal(lambda: imported("someone/clip"))


@pytest.mark.parametrize("name", ["nothing", "./nothing", "a/b/c", "~/no-such-file.pt"])
def test_a_source_that_does_not_exist_is_named(name: str, imported: IMPORT) -> None:
    assert f"There is no {name!r}" in refusal(lambda: imported(name))


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], {"model.safetensors"}),
        (["config.json", "pytorch_model.bin.index.json"], {"pytorch_model.bin.index.json", "pytorch_model-*.bin"}),
        (["open_clip_config.json", "open_clip_pytorch_model.bin"], {"open_clip_pytorch_model.bin"}),
        (["config.json", "open_clip_config.json", "open_clip_model.safetensors"], {"open_clip_model.safetensors"}),
    ],
)
def test_one_set_of_weights_is_downloaded(
    files: list[str], fetched: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repositories hold the same weights for several frameworks, gigabytes each."""
    asked: list[str] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name: [*files, "tf_model.h5"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert downloaded("someone/clip") == tmp_path
    assert {pattern for pattern in asked if not pattern.startswith("*")} == fetched


@pytest.mark.parametrize(
    ("kind", "word"),
    [(GatedRepoError, "is gated"), (RepositoryNotFoundError, "There is no"), (LocalEntryNotFoundError, "no network")],
)
def test_what_the_hub_refuses_is_one_line(kind: Any, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
    with pytest.raises(UserError, match=word):
        downloaded("someone/clip")
