"""Figures of a report: two results of five methods against each other, and accuracy by round with bands over seeds."""

import shutil
import subprocess
import sys
from pathlib import Path

COMPARE = (
    "compare", "--methods", "zeroshot,local,promptfl,fedpgp,fedit", "--data", "digits", "--protocol", "base-to-novel",
    "--sites", "5", "--rounds", "5", "--shots", "16", "--seeds", "0,1,2",
)  # fmt: skip
FIGURES = ("base-novel.svg", "rounds.svg")


def make(work: Path, out: Path) -> list[Path]:
    """Run the comparison of docs/reports.md, or go on with it, and take two of its figures."""
    fedgraft, runs = (sys.executable, "-m", "fedgraft"), work / "demo"
    subprocess.run([*fedgraft, *COMPARE, "--out", runs, *(["--resume"] if runs.exists() else [])], check=True)
    subprocess.run([*fedgraft, "report", runs, "--format", "svg"], check=True)
    return [Path(shutil.copy(runs / "figures" / name, out / name)) for name in FIGURES]
