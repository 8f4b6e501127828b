"""What mkdocs does not do by itself: pages that lie elsewhere in the repository, and pages written from the program.

`docs/` and the pages at the repository's root link to each other as files, so that they can be read where they lie. In
the site the root's pages stand beside those of docs/, and a link to a file that is not a page becomes its path.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.documentation.reference import DOORS, commands_page, door_page

ROOT = Path(__file__).parents[2]
PAGES = {
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "fedgraft/backbones/mini/weights/README.md": "mini.md",
}
"""Pages outside docs/ by their path in the repository, and where they stand in the site."""

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=linked((ROOT / source).read_text(), source)))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    for name in DOORS:
        files.append(File.generated(config, f"reference/{name}.md", content=door_page(name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page that lies in docs/."""
    return markdown if page.file.generated_by else linked(markdown, f"docs/{page.file.src_uri}")


def linked(markdown: str, source: str) -> str:
    """A page whose links lead to pages of the site.

    Args:
        source: the page's path in the repository, from which its links start.
    """
    here = posixpath.dirname(PAGES.get(source, source.removeprefix("docs/")))

    def rewritten(match: re.Match[str]) -> str:
        target = match["target"]
        if not target or ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return match[0]  # mkdocs says that it leads nowhere
        page = PAGES.get(path) or ("index.md" if path == "README.md" else path.removeprefix("docs/"))
        if page == path and not path.endswith(".md"):
            return match["text"] if match["text"].startswith("`") else f"{match['text']} (`{path}`)"
        return f"[{match['text']}]({posixpath.relpath(page, here or '.')}{match['anchor'] or ''})"

    return _LINK.sub(rewritten, markdown)
