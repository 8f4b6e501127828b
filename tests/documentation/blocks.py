"""The fenced blocks of the documentation, and the reasons why some of them are not run.

A block that is not run has a comment on the line above its fence: `<!-- not run: the reason -->`.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = tuple(sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))))
"""Every page, by its path in the repository."""

_FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]*?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>[a-z]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_OPERATORS = (">", ">>", "|", "&", "&&")
_PROMPT = re.compile(r"[a-z]*[$#] (.*)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of its first line, from 1.
        reason: why it is not run; empty if it is.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of its commands: in a console what follows a prompt, `$` or `server$`, in a script every line.

        What follows an operator of the shell is left out.
        """
        text = self.text.replace("\\\n", " ")
        lines = [line.strip() for line in text.splitlines()]
        if self.language == "console":
            lines = [match[1] for line in lines if (match := _PROMPT.match(line))]
        found = [words for line in lines if (words := shlex.split(line, comments=True))]
        return [list(takewhile(lambda word: word not in _OPERATORS, words)) for words in found]

    def __str__(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in their order."""
    text = (ROOT / page).read_text()
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(page, line, match["language"], match["text"], match["reason"] or "")
