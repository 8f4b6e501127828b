"""Where a checkpoint lies: a file, a folder in one of the known layouts, or a Hugging Face ID."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.backbones.checkpoints.hub import downloaded
from fedgraft.backbones.checkpoints.layouts import LAYOUTS
from fedgraft.core.errors import UserError


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk.

    Attributes:
        name: as the user wrote it.
        weights: the file of weights, or the index of several.
        settings: its configuration, if there is one.
        folders: where its tokenizer and preprocessing may lie.
    """

    name: str
    weights: Path
    settings: dict[str, Any] | None
    folders: list[Path]


def locate(name: str, config: Path | None) -> Source:
    """The checkpoint of a path or an ID.

    Args:
        config: a configuration that the checkpoint comes without: a file, or a folder that holds it.

    Raises:
        UserError: it does not exist, is not available, or is of no known layout.
    """
    given = _given_settings(config) if config is not None else None
    beside = [config if config.is_dir() else config.parent] if config is not None else []
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix == ".json":
            raise UserError(f"{path} is a configuration; give the folder, or a file of weights.")
        return Source(name, path, given, beside)
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise UserError(f"There is no {name!r}; give a file of weights, a folder, or an ID such as org/model.")
        path = downloaded(name)
    for layout, files in LAYOUTS.items():
        for file in files:
            if (path / layout).is_file() and (path / file).is_file():
                settings = given if given is not None else read_settings(path / layout)
                return Source(name, path / file, settings, [*beside, path])
    raise UserError(_nothing_known(name, path))


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object; raises UserError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object.")
    return content


def _given_settings(config: Path) -> dict[str, Any]:
    if config.is_file():
        return read_settings(config)
    for name in LAYOUTS:
        if (config / name).is_file():
            return read_settings(config / name)
    raise UserError(f"{config} is neither a configuration nor a folder with {' or '.join(LAYOUTS)}.")


def _nothing_known(name: str, folder: Path) -> str:
    configs = [layout for layout in LAYOUTS if (folder / layout).is_file()]
    if not configs:
        return f"{name!r} has neither {' nor '.join(LAYOUTS)}; give a file of weights with --config, or another folder."
    files = [file for layout in configs for file in LAYOUTS[layout]]
    other = sorted(path.name for path in folder.iterdir() if path.suffix in (".h5", ".msgpack", ".pt", ".pth", ".ckpt"))
    found = f"; found {', '.join(other)}" if other else ""
    return f"{name!r} holds no weights that are read ({', '.join(files)}){found}."
