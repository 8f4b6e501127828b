"""Help comes at once, because it loads nothing heavy."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["--help"], ["simulate", "--help"], ["up", "--help"], ["methods", "--help"], ["--version"]]
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from fedgraft.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv[0].split())), file=sys.stderr)"
    )
    heavy = "torch transformers flwr flwr_datasets datasets ray sklearn matplotlib"
    code = f"import sys\nsys.argv = [{heavy!r}, *sys.argv[1:]]\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "[]\n"
    assert done.stdout
