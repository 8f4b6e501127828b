"""The end of the quick start, as it stands in a terminal."""

import subprocess
import sys
from pathlib import Path


def make(work: Path, out: Path) -> list[Path]:
    """Run the quick start, or go on with it, and draw what it prints at the end."""
    picture = (out / "quickstart.svg").absolute()
    command = [sys.executable, "-m", "fedgraft", "quickstart", "--out", "runs/quickstart", "--picture", str(picture)]
    subprocess.run(command, cwd=work, check=True)  # the picture names the folder, so it is that of the README
    return [picture]
