"""`python -m tools.pictures [NAME ...]`: makes the named pictures, or all, and refuses one that is too large."""

import argparse
import importlib
import pkgutil
import sys
import tempfile
from pathlib import Path

import tools.pictures

LARGEST_BYTES = 150_000


def names() -> list[str]:
    """The modules of this package that make pictures."""
    found = (module.name for module in pkgutil.iter_modules(tools.pictures.__path__))
    return [name for name in found if hasattr(importlib.import_module(f"tools.pictures.{name}"), "make")]


def main() -> None:
    """Make the pictures."""
    known = names()
    parser = argparse.ArgumentParser(prog="python -m tools.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all, if none is given")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="where the pictures go")
    parser.add_argument("--work", type=Path, help="a folder for the runs, which are used again if they are there")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(known)):
        parser.error(f"there is no picture {unknown[0]!r}; known: {', '.join(known)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        for name in arguments.names or known:
            (work / name).mkdir(parents=True, exist_ok=True)
            for path in importlib.import_module(f"tools.pictures.{name}").make(work / name, arguments.out):
                size = path.stat().st_size
                print(f"{path}: {size / 1000:.0f} kB")
                if size > LARGEST_BYTES:
                    sys.exit(f"{path} is larger than {LARGEST_BYTES / 1000:.0f} kB; show less of the page.")


if __name__ == "__main__":
    main()
