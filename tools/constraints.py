"""Write `fedgraft/doctor/constraints.txt`: the version of every package that this environment's tests ran with.

    python -m tools.constraints

Listed are fedgraft's requirements with all extras and what these require in turn, so that other packages of the
environment stay out. `constraints.txt` at the root is a link to the file.
"""

import sys
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

OUT = Path(__file__).parents[1] / "fedgraft" / "doctor" / "constraints.txt"
_ROOT = "fedgraft"


def closure(root: str = _ROOT) -> dict[str, Version]:
    """Each installed package that a package with all its extras needs, itself left out, without local versions.

    What is not installed is named on standard error and left out: timm and open_clip are tested without torchvision.
    """
    found: dict[str, Version] = {}
    waiting = [(root, frozenset(metadata(root).get_all("Provides-Extra") or []))]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        for requirement in map(Requirement, requires(name) or []):
            if requirement.marker and not any(
                requirement.marker.evaluate({"extra": extra}) for extra in (extras or {""}) | {""}
            ):
                continue
            try:
                number = version(requirement.name)
            except PackageNotFoundError:
                print(f"{name} asks for {requirement}, which is not installed.", file=sys.stderr)
                continue
            found[canonicalize_name(requirement.name)] = Version(Version(number).public)
            further = (requirement.name, frozenset(requirement.extras))
            if further not in seen:
                seen.add(further)
                waiting.append(further)
    found.pop(root, None)
    return found


def text() -> str:
    """The file's content."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    head = f"# The tested set, on Python {here}. Made by: python -m tools.constraints\n"
    return head + "".join(f"{name}=={number}\n" for name, number in sorted(closure().items()))


if __name__ == "__main__":
    OUT.write_text(text())
    print(f"Wrote {OUT}: {len(closure())} packages")
