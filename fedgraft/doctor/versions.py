"""Python and the installed packages against what fedgraft requires and what it was tested with.

Requirements are those of the installed metadata, so that there is no second list; `constraints.txt` is the tested set.
"""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.resources import files

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from fedgraft.doctor.finding import Finding, State

_PYTHON, _PACKAGES, _EXTRAS = "Python", "packages", "optional extras"
_FOR_DEVELOPERS = "dev"


def python() -> Iterator[Finding]:
    """The interpreter, against `requires-python`."""
    wanted = SpecifierSet(metadata("fedgraft")["Requires-Python"] or "")
    found = platform.python_version()
    state: State = "fine" if wanted.contains(found, prereleases=True) else "fails"
    fix = "" if state == "fine" else f"make an environment with Python {wanted}"
    yield Finding(_PYTHON, "version", state, f"{found} ({platform.python_implementation()}), needs {wanted}", fix)


def packages() -> Iterator[Finding]:
    """What fedgraft requires, each as it is installed."""
    tested = tested_versions()
    for requirement in requirements():
        yield _finding(requirement, tested)


def extras() -> Iterator[Finding]:
    """What is optional: complete, or how to get it."""
    for extra in metadata("fedgraft").get_all("Provides-Extra") or []:
        if extra == _FOR_DEVELOPERS:
            continue
        lacking = [each for each in requirements(extra) if not _suits(each)]
        names = ", ".join(requirement.name for requirement in requirements(extra))
        if lacking:
            missing = ", ".join(_found(each) for each in lacking)
            yield Finding(_EXTRAS, extra, "note", missing, f'pip install "fedgraft[{extra}]"')
        else:
            yield Finding(_EXTRAS, extra, "fine", names)


def requirements(extra: str = "") -> list[Requirement]:
    """Those of fedgraft that hold on this machine: without an extra, or those that an extra adds."""
    parsed = [Requirement(text) for text in requires("fedgraft") or []]
    return [each for each in parsed if _applies(each, extra)]


def tested_versions() -> dict[str, Version]:
    """The version of each package that the tests ran with."""
    lines = (files("fedgraft.doctor") / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): Version(number) for name, number in pairs}


def _applies(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return not extra
    alone = requirement.marker.evaluate({"extra": ""})
    return alone if not extra else requirement.marker.evaluate({"extra": extra}) and not alone


def _suits(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def _found(requirement: Requirement) -> str:
    try:
        return f"{requirement.name} is {version(requirement.name)}, needs {requirement.specifier}"
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"


def _finding(requirement: Requirement, tested: dict[str, Version]) -> Finding:
    name = requirement.name
    if not _suits(requirement):
        wanted = f"{name}{requirement.specifier}"
        return Finding(_PACKAGES, name, "fails", _found(requirement), f'pip install "{wanted}"')
    found, known = Version(version(name)), tested.get(canonicalize_name(name))
    if known is None or found.release[:2] == known.release[:2]:
        return Finding(_PACKAGES, name, "fine", str(found))
    return Finding(
        _PACKAGES, name, "note", f"{found}, tested with {known}", f'if it fails, pip install "{name}=={known}"'
    )
