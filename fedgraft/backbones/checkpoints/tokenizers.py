"""The tokenizer of a backbone folder: copied from where it is, or made of CLIP's published list of merges."""

import gzip
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

from fedgraft.backbones.checkpoints.clip_names import VOCABULARY
from fedgraft.backbones.checkpoints.quiet import quietly
from fedgraft.core.errors import UserError

_WHOLE = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""Files that each hold a vocabulary."""
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
_MERGES = "bpe_simple_vocab_16e6.txt.gz"
"""CLIP's merges under the name that OpenAI gave them; `open_clip_torch` holds the same file."""
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_BYTES, _CONTEXT = 256, 77


def find_tokenizer(given: Path | None, folders: list[Path], clip_vocabulary: bool, layout: str) -> Path:
    """Where the tokenizer is: a folder, or CLIP's file of merges.

    Args:
        given: what the user gave.
        folders: where it may lie if nothing is given.
        clip_vocabulary: whether it is CLIP's.

    Raises:
        UserError: there is none.
    """
    if given is not None:
        if given.is_file() and given.name.endswith(".gz"):
            return given
        if not _has_vocabulary(given):
            raise UserError(f"{given} holds no tokenizer ({', '.join(_WHOLE)}).")
        return given
    for folder in folders:
        if _has_vocabulary(folder):
            return folder
    if clip_vocabulary and (installed := _installed_merges()) is not None:
        return installed
    way = f"a Hugging Face folder that has one{f', or {_MERGES}' if clip_vocabulary else ''}"
    raise UserError(f"This {layout} comes without a tokenizer; give --tokenizer with {way}.")


def write_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer files into a backbone folder."""
    if source.is_file():
        _write_clip_tokenizer(source, folder)
        return
    for name in (*_WHOLE, *_BESIDE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def require_tokenizer(folder: Path, words: int, end: int | None) -> None:
    """Raise UserError unless a folder's tokenizer opens and fits a text tower.

    Args:
        words: the size of the text tower's vocabulary.
        end: the end token that the tower pools at, if it must be the tokenizer's.
    """
    from transformers import AutoTokenizer

    try:
        with quietly():
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        largest = max(tokenizer.get_vocab().values(), default=-1)
    except Exception as error:  # tokenizers raises bare exceptions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"The tokenizer cannot be opened: {reason}") from error
    if largest < 0:
        raise UserError("The tokenizer is empty.")
    if largest >= words:
        raise UserError(f"The tokenizer has {largest + 1} words, but the text tower has {words}; give --tokenizer.")
    if end is not None and tokenizer.eos_token_id != end:
        raise UserError(f"The tokenizer ends a text with {tokenizer.eos_token_id}, but the text tower with {end}.")


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _WHOLE)


def _installed_merges() -> Path | None:
    """CLIP's merges in an installed `open_clip_torch`, which is not imported."""
    found = importlib.util.find_spec("open_clip")
    folders = found.submodule_search_locations if found else None
    paths = [Path(folder) / _MERGES for folder in folders or []]
    return next((path for path in paths if path.is_file()), None)


def _write_clip_tokenizer(merges_file: Path, folder: Path) -> None:
    """CLIP's byte-pair encoding (Radford et al. 2021): bytes, bytes at a word's end, one token a merge, two more."""
    from transformers import CLIPTokenizer

    try:
        lines = gzip.decompress(merges_file.read_bytes()).decode().split("\n")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{merges_file} is no compressed list of merges: {error}.") from error
    merges = lines[1 : VOCABULARY - 2 * _BYTES - len(_SPECIAL) + 1]
    if len(merges) != VOCABULARY - 2 * _BYTES - len(_SPECIAL) or not all(len(merge.split()) == 2 for merge in merges):
        raise UserError(f"{merges_file} is not CLIP's list of merges.")
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    numbers = {token: number for number, token in enumerate([*tokens, *_SPECIAL])}
    (folder / "vocab.json").write_text(json.dumps(numbers, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=_CONTEXT)
    tokenizer.save_pretrained(folder)


def _byte_letters() -> list[str]:
    """A printable letter for each byte (Radford et al., GPT-2, 2019): itself, or one above the 256 for the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = _BYTES - len(printable)
    return [*map(chr, printable), *(chr(_BYTES + number) for number in range(others))]
