"""The parts of a page: sections, tables, figures, and the document around them. All text is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from matplotlib.figure import Figure

from fedgraft.reports.drawing import to_svg


def document(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """The whole page, with embedded style."""
    home = files("fedgraft.reports")
    page = Template((home / "page.html").read_text(encoding="utf-8"))
    style = (home / "page.css").read_text(encoding="utf-8")
    return page.substitute(title=escape(title), subtitle=escape(subtitle), style=style, body="\n".join(sections))


def section(title: str, *parts: str) -> str:
    """A part of the page under a heading; empty if all parts are."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{''.join(parts)}</section>" if any(parts) else ""


def paragraph(text: str) -> str:
    """A paragraph of explanation."""
    return f"<p>{escape(text)}</p>\n"


def figure(plot: Figure, name: str, caption: str) -> str:
    """A plot and its caption; `name` is unique in the page."""
    return f"<figure>{to_svg(plot, name, caption)}<figcaption>{escape(caption)}</figcaption></figure>\n"


class Best(str):
    """The text of a table cell to be emphasized."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """A table; the columns in `text` are aligned as text, the others as numbers, to the right."""

    def cell(tag: str, column: int, content: str) -> str:
        kind = "" if column in text else ' class="number"'
        shown = f"<strong>{escape(content)}</strong>" if isinstance(content, Best) else escape(content)
        return f"<{tag}{kind}>{shown}</{tag}>"

    def line(tag: str, cells: Sequence[str]) -> str:
        return f"<tr>{''.join(cell(tag, column, content) for column, content in enumerate(cells))}</tr>\n"

    body = "".join(line("td", row) for row in rows)
    header = f"<thead>{line('th', head)}</thead>\n" if any(head) else ""
    return f'<div class="wide"><table>\n{header}<tbody>\n{body}</tbody></table></div>\n'


def details(summary: str, text: str) -> str:
    """A preformatted text, collapsed."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>\n"


def folded(summary: str, body: str) -> str:
    """A part of the page, collapsed."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>\n"


def links(targets: Iterable[tuple[str, str | None]]) -> str:
    """A list of names, linked to their relative addresses, if any."""
    items = (f'<a href="{escape(to)}">{escape(name)}</a>' if to else escape(name) for name, to in targets)
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>\n"
