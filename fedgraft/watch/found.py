"""What a directory holds: a run, a comparison, a server's or a fleet's folder, or nothing yet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgraft.core.errors import UserError
from fedgraft.runs.run_files import Comparison, read_json
from fedgraft.watch.files import Kept
from fedgraft.watch.source import Runs, Source

_CONFIG, _COMPARISON, _SERVER, _FLEET = "config.toml", "comparison.json", "server.toml", "fleet.toml"
_EXPECTED = "give the directory of a run or a comparison, or the folder of a server or a fleet"


def open_source(path: Path) -> Source:
    """What is to be watched in a directory, read once.

    Raises:
        UserError: there is no such directory, it holds something else, or a run in it cannot be read.
    """
    if not path.exists():
        raise UserError(f"There is no run in {path}, which does not exist; an empty directory waits for its run.")
    if not path.is_dir():
        raise UserError(f"{path} is a file; {_EXPECTED}.")
    if (path / _FLEET).is_file():
        from fedgraft.watch.fleet import Fleet

        return Fleet(path)
    if server := next((folder for folder in (path, path / "server") if (folder / _SERVER).is_file()), None):
        from fedgraft.watch.server import Server  # with Flower, which a run's directory does not need

        return Server(server, None if server == path else path / "sites")
    source = _Directory(path)
    try:
        source.refresh()
        strange = not source.runs and _holds_something(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if strange:
        raise UserError(f"{path} holds no run; {_EXPECTED}.")
    problems = [run.problem for run in source.runs.values() if run.problem]
    if problems and len(problems) == len(source.runs):
        raise UserError(problems[0])
    return source


class _Directory(Runs):
    """A directory of a run or of a comparison; which of them shows when the first run begins."""

    def __init__(self, path: Path) -> None:
        kept: Kept[dict[str, Any]] = Kept(path / _COMPARISON, lambda file: read_json(file, Comparison))

        def comparison() -> dict[str, Any] | None:
            kept.look()
            return kept.content

        super().__init__(path, "run", self._directories, comparison)
        self._path = path

    def _directories(self) -> Mapping[str, Path]:
        if (self._path / _CONFIG).is_file():
            return {self.name: self._path}
        found = [folder for folder in self._path.iterdir() if (folder / _CONFIG).is_file()]
        if found or (self._path / _COMPARISON).is_file():
            self.kind = "comparison"
        known = {name: place for place, name in enumerate((self._comparison() or {}).get("runs", []))}

        def order(folder: Path) -> tuple[int, float, str]:
            return known.get(folder.name, len(known)), (folder / _CONFIG).stat().st_mtime, folder.name

        return {folder.name: folder for folder in sorted(found, key=order)}


def _holds_something(path: Path) -> bool:
    """Whether a directory holds any file; one that is about to hold a run may have locks and folders."""
    visible = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    return any(not entry.is_dir() or any(each.is_file() for each in entry.glob("[!.]*")) for entry in visible)
