"""All checks in the order in which they are shown."""

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from shutil import which

from fedgraft.config.registry import BACKBONES, METHODS, PROTOCOLS, SOURCES, STRATEGIES
from fedgraft.doctor import caches, machine, versions
from fedgraft.doctor.finding import Finding

_IMPORTED = ("torch", "transformers", "peft", "flwr", "onnxruntime", "grpc", "fedgraft.simulation.simulate")
_BESIDE = ("torchvision", "torchaudio")
"""Not needed, but transformers imports them where they are, and a build for another torch then stops it."""
_LOADS = "imports"


def examine() -> list[Finding]:
    """Look at everything; imports torch and what else fedgraft runs on, which takes some seconds."""
    found = [*versions.python(), *versions.packages(), *versions.extras(), *imports()]
    if all(finding.state != "fails" for finding in found):
        found += [*registered(), *machine.processors()]
    return [*found, *machine.disk(), *caches.findings(), *machine.ports(), *machine.deployment(), *programs()]


def fails(found: list[Finding]) -> bool:
    """Whether a command will fail."""
    return any(finding.state == "fails" for finding in found)


def imports(names: tuple[str, ...] = _IMPORTED, beside: tuple[str, ...] = _BESIDE) -> Iterator[Finding]:
    """Whether the libraries that everything rests on can be imported, one after another."""
    for name in beside:
        if _installed(name) and (reason := _cannot_import(name)):
            fix = f"install the build of {name} for this torch, or pip uninstall {name}: fedgraft does not need it"
            yield Finding(_LOADS, name, "fails", f"cannot be imported beside torch: {reason}", fix)
    for name in names:
        if reason := _cannot_import(name):
            yield Finding(
                _LOADS, name, "fails", f"cannot be imported: {reason}", f'pip install --force-reinstall "{name}"'
            )
        else:
            yield Finding(_LOADS, name, "fine", "imports")


def registered() -> Iterator[Finding]:
    """What is behind the five doors, and what other packages registered that does not load."""
    for door in (METHODS, STRATEGIES, SOURCES, PROTOCOLS, BACKBONES):
        faults = door.faults()
        for sentence in faults:
            yield Finding("doors", door.door, "fails", sentence, "correct or uninstall the package")
        if not faults:
            yield Finding("doors", door.door, "fine", f"{len(door.names())} installed, all load")


def programs() -> Iterator[Finding]:
    """Programs that some commands call."""
    if which("npm"):
        yield Finding("programs", "npm", "fine", "found; fedgraft export --web can fetch its runtime")
    else:
        text = "not found; fedgraft export --web needs it once"
        yield Finding("programs", "npm", "note", text, "install Node.js with npm")


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _cannot_import(name: str) -> str:
    """Why, in one line; empty if it can be imported."""
    try:
        import_module(name)
    except Exception as error:  # a broken build may raise anything
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""
