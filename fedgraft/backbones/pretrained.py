"""Reading a Hugging Face folder or ID, whatever the family: what must be there, and what is said where it is not."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fedgraft.backbones.family import Request
from fedgraft.backbones.loading import import_hint
from fedgraft.core.errors import UserError

_NO_SAFETENSORS = (
    " If it is published without safetensors, download its files and give `fedgraft backbones import` their folder."
)


def load_pretrained(
    request: Request,
    model_class: Any,
    tokenizer_files: Sequence[str],
    processor: Callable[[str], Any],
    attention: str | None = "sdpa",
) -> tuple[Any, Any, Any]:
    """The model of a request in float32 on the CPU, its tokenizer and its image processor.

    Args:
        model_class: of transformers.
        tokenizer_files: one of which a folder must hold, since transformers makes an empty tokenizer of nothing.
        processor: reads the image processor from the source.
        attention: the implementation that transformers uses; None for its own choice, where some models have no other.

    Raises:
        UserError: weights, tokenizer or preprocessing are missing, incomplete, damaged or of another shape.
    """
    from transformers import AutoTokenizer

    if is_local(request):
        require_files(request.folder, tokenizer_files)
    with reading(request):
        model, loading = model_class.from_pretrained(
            request.source,
            attn_implementation=attention,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer, images = AutoTokenizer.from_pretrained(request.source), processor(request.source)
    if missing := sorted(loading["missing_keys"]):
        raise UserError(f"The backbone {request.name!r} lacks {len(missing)} weights, such as {missing[0]}.")
    return model, tokenizer, images


def is_local(request: Request) -> bool:
    """Whether the files are in a folder of the user's, and not in Hugging Face's cache."""
    return request.source == str(request.folder)


@contextmanager
def reading(request: Request) -> Iterator[None]:
    """Errors of the libraries that read files as one line; no progress bar for a local folder, which takes a moment."""
    try:
        with _no_progress_bar() if is_local(request) else nullcontext():
            yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "" if is_local(request) or any(request.folder.glob("*.safetensors")) else _NO_SAFETENSORS
        raise UserError(f"The backbone {request.name!r} cannot be loaded: {reason}{hint}") from error


def require_files(folder: Path, tokenizer_files: Sequence[str]) -> None:
    """Raise UserError for a folder without weights or without any of the tokenizer's files."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"The backbone folder {folder} holds no weights (*.safetensors).{import_hint(folder)}")
    if not any((folder / file).is_file() for file in tokenizer_files):
        raise UserError(f"The backbone folder {folder} has no tokenizer ({' or '.join(tokenizer_files)}).")


def read_config(folder: Path, config_class: Any) -> Any:
    """A folder's configuration as transformers' own class, without weights; raises what that raises."""
    return config_class.from_dict(json.loads((folder / "config.json").read_text()))


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
