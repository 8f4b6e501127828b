"""What a stranger writes reaches a terminal, a log and a page as one short line of plain text."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fedgraft.core.plain_text import NAME_LENGTH, name_problem, one_line, plain
from fedgraft.reports import elements


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("the disk is full", "the disk is full"),
        ("\x1b[2J\x1b]0;title\x07gone", "(2J)0;titlegone"),
        ("two\r\nlines\u2028three\tparts", "two lines three parts"),
        ("\u202eevil\u202c \u2066x\u2069\u200b\ufeff", "evil x"),
        ("<script>alert(1)</script>", "(script)alert(1)(/script)"),
        ("[bold red]x[/]", "(bold red)x(/)"),
        ("\x00\x7f\x9b", "nothing readable"),
        ("", "nothing readable"),
        (7, "(int)"),
        (b"bytes", "(bytes)"),
        (None, "(NoneType)"),
        ("caf\u00e9 \u5317", "caf\u00e9 \u5317"),
        ("\ud800", "nothing readable"),
    ],
)
def test_what_is_left_of_a_text(said: object, shown: str) -> None:
    assert plain(said) == shown


def test_a_megabyte_is_cut_and_says_so() -> None:
    assert plain("x" * 10**6) == "x" * 297 + "..."
    assert plain("\x00" * 10**6 + "x") == "nothing readable"
    assert len(plain("ab " * 10**6, 64)) <= 64


@settings(deadline=None)
@given(st.text())
def test_any_text_is_one_printable_line_that_no_page_and_no_terminal_takes_for_more(said: str) -> None:
    line = plain(said)
    assert line.isprintable()
    assert 0 < len(line) <= 300
    assert elements.paragraph(line).count("<") == 2
    printed = io.StringIO()
    Console(file=printed, width=1000, force_terminal=False).print(line)
    assert "".join(printed.getvalue().split()) == "".join(line.split()) or ":" in line
    assert plain(line) == line


@pytest.mark.parametrize("name", ["north", "St. Mary", "a.b-c_d@e", "\u5317", "N" * NAME_LENGTH, "7"])
def test_names_that_a_site_may_have(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    ["", " ", "a/b", "..", ".a", "a\n", "a\x1b", "<b>", "[b]", "a" * 65, "a" * 10**6, " a", "a ", "\u202ea", 3, None],
)
def test_names_that_no_site_may_have_are_told_in_a_short_line(name: object) -> None:
    problem = name_problem(name)
    assert problem is not None
    assert problem.isprintable()
    assert len(problem) < 250


@given(st.text(max_size=3000))
@settings(max_examples=50, deadline=None)
def test_a_sentence_is_one_line_of_printable_characters_and_keeps_both_ends(text: str) -> None:
    said = one_line(text, 900)
    assert len(said) <= 900
    assert said.isprintable()
    assert one_line(text[:900], 900) == "".join(c if c.isprintable() else " " for c in text[:900])


def test_a_sentence_with_a_long_name_still_says_what_would_be_right() -> None:
    said = one_line(f"No site named {'x' * 10**6!r} is admitted; admitted: [north].", 2000)
    assert said.startswith("No site named 'xxx")
    assert said.endswith("xxx' is admitted; admitted: [north].")
