"""The page of one comparison, or of several over different data sets."""

from pathlib import Path
from urllib.parse import quote

from fedgraft.core.wording import plural
from fedgraft.reports import elements as page
from fedgraft.reports.conclusions import conclusions
from fedgraft.reports.drawing import WIDTH, Drawing
from fedgraft.reports.retention import compared_retention
from fedgraft.reports.study import Study
from fedgraft.reports.study_figures import study_figures
from fedgraft.reports.study_tables import study_tables
from fedgraft.reports.tables import Table, to_html

LONG = 40
"""Rows from which a table is collapsed."""
_TITLES = {
    "results": "Result",
    "differences": "Differences",
    "ranks": "Ranks",
    "cost": "Cost",
    "published": "Published",
}


def comparison_page(study: Study) -> str:
    """The report as HTML; that of one comparison links to the reports of its runs."""
    figures = {drawing.name: drawing for drawing in study_figures(study)}
    tables = {table.name: table for table in study_tables(study) if not table.long}
    sections = [_table(tables.pop("results"))]
    sections += [_missing(study, tables.pop("published", None))]
    sections += [page.section("What the seeds show", *map(page.paragraph, conclusions(study)))]
    sections += [_figure(drawing) for name, drawing in figures.items() if name != "cost"]
    sections += [_table(table) for name, table in tables.items() if name != "cost"]
    if len(study.sets) == 1:
        sections.append(compared_retention(study.sets[0].content))
    sections += [_table(tables[name]) for name in ("cost",) if name in tables]
    sections += [_figure(figures[name]) for name in ("cost",) if name in figures]
    title, subtitle = _titles(study)
    return page.document(title, subtitle, [*sections, *_sources(study)])


def _titles(study: Study) -> tuple[str, str]:
    methods = f"{plural(len(study.methods), 'method')} under the protocol {study.protocol.name}"
    if len(study.sets) > 1:
        names = [data.name for data in study.sets]
        return f"Methods on {len(names)} data sets", f"{methods}: {', '.join(names)}."
    content = study.sets[0].content
    seeds = content["seeds"]
    run = (
        f"{plural(content['sites'], 'site')}, {plural(content['rounds'], 'round')}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    )
    return f"Methods on {content['data']}", f"{methods}: {run}."


def _table(table: Table) -> str:
    body = to_html(table)
    if len(table.rows) > LONG:
        body = page.folded(f"{len(table.rows)} rows", body)
    title = _TITLES.get(table.name) or table.caption.partition(",")[0]
    return page.section(title, body, page.paragraph(table.caption))


def _figure(drawing: Drawing) -> str:
    return page.section(drawing.title, page.figure(drawing.draw(WIDTH), drawing.name, drawing.caption))


def _missing(study: Study, published: Table | None) -> str:
    if published is None:
        return ""
    missing = [page.paragraph(sentence) for sentence in study.sets[0].content.get("missing", [])]
    return page.section("Published", to_html(published), page.paragraph(published.caption), *missing)


def _sources(study: Study) -> list[str]:
    """Which runs the report is about, or which comparisons."""
    if len(study.sets) > 1:
        apart = ""
        if study.apart:
            apart = page.paragraph(f"Left out, because not all comparisons have them: {', '.join(study.apart)}.")
        lines = [(f"{data.name}: {data.directory.name}", None) for data in study.sets]
        return [page.section("Comparisons", page.links(lines), apart)]
    names = [str(name) for name in study.sets[0].content.get("runs", [])]
    links = [(name, _report(study.sets[0].directory, name)) for name in names]
    return [page.section("Runs", page.links(links) if names else "")]


def _report(directory: Path, name: str) -> str | None:
    return f"{quote(name)}/report.html" if (directory / name / "report.html").is_file() else None
