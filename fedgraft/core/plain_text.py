"""Text from another machine, made fit for a terminal, a log, a table and a page: one short line without markup."""

import re
import unicodedata

NAME_LENGTH = 64
"""Characters of a site's name at most."""
_SENTENCE_LENGTH = 300
_UNREADABLE = "nothing readable"
_NO_MARKUP = str.maketrans("<>[]", "()()")
_NAME = re.compile(r"\w[\w .@-]*")


def plain(text: object, length: int = _SENTENCE_LENGTH) -> str:
    """What is shown of a text that a stranger wrote.

    Control and format characters (escape sequences, bidirectional overrides, invisible characters) are dropped, any
    white space becomes one space, angle and square brackets become round ones, so that neither HTML nor the markup of
    a terminal's tables is left, and what is longer than `length` is cut. What is no text is described by its type.
    """
    if not isinstance(text, str):
        return f"({type(text).__name__})"
    start = text[: 4 * length]
    spaced = "".join(" " if character.isspace() else character for character in start)
    kept = "".join(character for character in spaced if unicodedata.category(character)[0] != "C")
    line = " ".join(kept.translate(_NO_MARKUP).split())
    if not line:
        return _UNREADABLE
    whole = len(line) <= length and len(text) == len(start)
    return line if whole else line[: length - 3].rstrip() + "..."


def one_line(text: str, length: int) -> str:
    """A text with its markup, on one line: printable characters alone; what is too long loses its middle."""
    end = min(length // 3, 300)
    whole = text if len(text) <= length else f"{text[: length - end - 5]} ... {text[-end:]}"
    return "".join(character if character.isprintable() else " " for character in whole)


def name_problem(name: object) -> str | None:
    """What is wrong with a site's name, or None: at most 64 letters, digits, spaces and . - _ @."""
    if not isinstance(name, str):
        return f"the name of a site is text, not a value of the type {plain(name)}"
    if not name or len(name) > NAME_LENGTH:
        return f"the name of a site has 1 to {NAME_LENGTH} characters, not {len(name)}"
    if not _NAME.fullmatch(name) or name != name.strip():
        return (
            f"the name of a site has letters, digits, spaces and . - _ @ and begins with a letter or digit, "
            f"unlike {plain(name, NAME_LENGTH)!r}"
        )
    return None
