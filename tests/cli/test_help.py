"""Help shows an example of every command, and the examples are commands that can be typed."""

import shlex
from collections.abc import Iterator

import click
import pytest
import typer

from fedgraft.cli.examples import EXAMPLES
from fedgraft.cli.main import app
from tests.cli.conftest import Printed

ROOT = typer.main.get_command(app)


def _commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _commands(below, (*words, name))
    else:
        yield " ".join(words), command


COMMANDS = dict(_commands(ROOT))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_of_itself(name: str, printed: Printed) -> None:
    assert name in EXAMPLES, f"add an example of fedgraft {name} to fedgraft/cli/examples.py"
    shown = " ".join(printed(*name.split(), "--help")[0].split())
    for example in EXAMPLES[name]:
        assert " ".join(example.split()) in shown


@pytest.mark.parametrize("example", [line for name in COMMANDS for line in EXAMPLES.get(name, ())])
def test_an_example_is_accepted_as_it_stands(example: str) -> None:
    words = shlex.split(example.partition(" > ")[0])[1:]
    command: click.Command = ROOT
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    command.make_context("fedgraft", words)  # raises for an unknown option, a wrong value, a missing argument


def test_commands_stand_in_groups_and_none_is_left_over(printed: Printed) -> None:
    shown = printed("--help")[0]
    headings = ("Federations on this machine", "Federations across machines", "Devices", "What there is")
    assert [heading for heading in headings if heading not in shown] == []
    assert "─ Commands ─" not in shown


def test_a_shell_completes_commands(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_FEDGRAFT_COMPLETE": "complete_bash", "COMP_WORDS": "fedgraft qui", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    assert printed()[0].split() == ["quickstart"]
