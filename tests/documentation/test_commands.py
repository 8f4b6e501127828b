"""What a reader would lose: a command or a program on a page that does not run.

The commands of a page run in their order in one folder, those that train with fewer rounds, images and sites. Commands
of benchmarks are only parsed. What cannot run here says why, in a comment above it.
"""

import argparse
import runpy
import sys
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from fedgraft.cli.main import main
from fedgraft.quickstart import quickstart
from fedgraft.recipes.mock_data import write_mock
from fedgraft.recipes.recipe import Mock
from fedgraft.simulation.engine import Engine
from tests.documentation.blocks import PAGES, ROOT, Block, blocks

TOOLS = ("fedgraft", "$", "python", "make", "pip", "flwr")
SHELL = ("console", "bash")
QUICK_START: dict[str, Any] = {"data": "digits", "sites": 4, "rounds": 1, "shots": 2}
"""Settings of the quick start whose runs some pages go on with."""
SMALLER = {
    "ticket draw": ["--induction-steps", "2", "--distillation-steps", "2"],
    "ticket evaluate": ["--attacked", "8"],
    "fleet simulate": ["--devices", "4", "--kills", "1"],
    "simulate": ["--sites", "4", "--rounds", "1", "--local-epochs", "1", "--shots", "2"],
    "compare": ["--sites", "4", "--rounds", "1", "--local-epochs", "1", "--shots", "2"],
}
"""What is added to a command that trains; an option that is given twice has its last value."""


class _Parsed(Exception):
    """What ends a benchmark once its arguments are understood."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Path:
    """Where a reader types: with the folders and images that the pages assume, and runs without other processes."""
    for domain, shade in (("amazon", 0), ("dslr", 60), ("webcam", 120), ("caltech", 180)):
        for number in range(4):
            for index in range(8):
                path = tmp_path / "photos" / domain / f"class {number}" / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (shade + index, 60 * number, 90)).save(path)
    Image.new("RGB", (48, 32), (200, 90, 30)).save(tmp_path / "photo.png")
    write_mock(Mock(names=("office", "pacs"), classes=4), tmp_path)
    write_mock(Mock(layout="coop", names=("oxford_pets",), classes=4), tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for module in ("simulate", "comparison"):
        monkeypatch.setattr(f"fedgraft.simulation.{module}.open_engine", lambda resources: nullcontext(engine))
    return tmp_path


def _pages(wanted: Callable[[Block], bool]) -> list[Path]:
    return [page for page in PAGES if any(map(wanted, blocks(page)))]


def _is_an_example(block: Block) -> bool:
    """Whether a program is a file of the examples, which have tests of their own."""
    return any(path.read_text() == block.text for path in (ROOT / "examples").rglob("*.py"))


def _runs(block: Block) -> bool:
    return block.language in (*SHELL, "python") and not block.reason and not _is_an_example(block)


@pytest.mark.slow
@pytest.mark.parametrize("page", _pages(_runs), ids=str)
def test_the_commands_and_programs_of_a_page_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = list(filter(_runs, blocks(page)))
    if any("runs/quickstart" in block.text for block in running):
        quickstart("runs/quickstart", settings=QUICK_START, entries=("zeroshot", "fedpgp"))
    for block in running:
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
            continue
        for words in block.commands:
            if words[0] == "fedgraft":
                assert _status(_smaller(words), monkeypatch) == 0, f"{block}: {' '.join(words)}"
            elif words[:2] == ["python", "-m"]:
                _parse(words[2], words[3:], monkeypatch)
            else:
                pytest.fail(f"{block}: nothing here runs {words[0]}; say above the block why it is not run")


def _smaller(words: list[str]) -> list[str]:
    added = next((SMALLER[name] for name in SMALLER if " ".join(words[1:]).startswith(name)), [])
    words = [*words, *added]
    if "--seeds" in words:
        place = words.index("--seeds") + 1
        words[place] = words[place].partition(",")[0]
    return words


def _status(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str:
    """The exit status of a command of fedgraft."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0


@pytest.mark.parametrize("page", _pages(lambda block: block.language in SHELL), ids=str)
def test_every_command_of_a_page_has_the_options_that_it_is_given(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not run, too: they are understood, and that is all."""
    monkeypatch.setattr(click.Command, "invoke", lambda self, ctx: None)
    for block in blocks(page):
        if block.language in SHELL:
            for words in block.commands:
                if words[0] == "fedgraft":
                    assert _status(words, monkeypatch) == 0, f"{block}: {' '.join(words)}"


def _parse(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise SystemExit if a benchmark does not know one of its arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_alone(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        parse(self, *args, **kwargs)
        raise _Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_alone)
        patch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(_Parsed):
            runpy.run_module(module, run_name="__main__")


@pytest.mark.parametrize("page", _pages(lambda block: block.language == "toml"), ids=str)
def test_the_configurations_of_a_page_are_read(page: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            tomllib.loads(block.text)


def test_a_block_with_commands_says_that_it_has_some() -> None:
    """A block without a language is text, such as a drawing or an output."""
    text = [block for page in PAGES for block in blocks(page) if not block.language]
    assert not [str(block) for block in text if any(line.startswith(TOOLS) for line in block.text.splitlines())]
