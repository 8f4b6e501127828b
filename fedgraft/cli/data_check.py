"""`fedgraft data check`: how a data source is read, before anything is trained on it."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedgraft.cli.settings import Json
from fedgraft.core.errors import UserError

_CLASSES_SHOWN = 40

Spec = Annotated[
    str, typer.Argument(help="The data source, as in --data: folder:PATH, coop:PATH, csv:FILE, hf:ID, ...")
]
Sheet = Annotated[Path | None, typer.Option(help="Write a PNG with some images of each class.", metavar="FILE.png")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value for an option of the data source.")]
NoDecoding = Annotated[
    bool, typer.Option("--no-decoding", help="Do not decode the images: quicker, and damaged ones are not found.")
]


def check(
    spec: Spec,
    as_json: Json = False,
    sheet: Sheet = None,
    set_: Set = None,
    no_decoding: NoDecoding = False,
) -> None:
    """Show how a data source is read: classes, splits, domains, writers, copies, unreadable files and prompts."""
    from rich.progress import Progress

    from fedgraft.config.settings import parse_assignments
    from fedgraft.data.check import check_examples
    from fedgraft.data.contact_sheet import write_contact_sheet
    from fedgraft.data.sources.source import open_source

    values = {key.removeprefix("data."): value for key, value in parse_assignments(set_ or []).items()}
    examples = open_source(spec, 0, values)
    with Progress(disable=as_json or not sys.stdout.isatty(), transient=True) as bars:
        bar = bars.add_task("decoding images", total=len(examples))
        found = check_examples(examples, not no_decoding, lambda done: bars.update(bar, completed=done))
    if sheet is not None:
        write_contact_sheet(examples, sheet)
    if as_json:
        typer.echo(json.dumps({"data": spec, **found.as_json()}))
    else:
        _print(spec, found.as_json())
    if found.unreadable:
        raise UserError(
            f"{len(found.unreadable)} of the {found.images} images of {spec!r} cannot be decoded. {found.unreadable[0]}"
        )


def _print(spec: str, found: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    counts = found["counts"]
    console.print(f"[bold]{escape(spec)}[/bold]: {found['images']} images of {len(counts)} classes")
    table = Table("label", "class", "images", box=box.SIMPLE, pad_edge=False)
    for label, (name, count) in enumerate(zip(found["classes"], counts, strict=True)):
        if label < _CLASSES_SHOWN:
            table.add_row(str(label), escape(name), str(count))
    console.print(table)
    if len(counts) > _CLASSES_SHOWN:
        console.print(f"... and {len(counts) - _CLASSES_SHOWN} more classes; --json has all.")
    for line in _facts(found):
        console.print(escape(line))


def _facts(found: dict[str, Any]) -> list[str]:
    """A line for each fact besides the classes."""
    smallest, fewest = found["smallest"], min(found["counts"])
    lines = [f"smallest class: {smallest!r} with {fewest} {'image' if fewest == 1 else 'images'}"]
    absent = {
        "splits": "none; test images are drawn by test_fraction", "domains": "none", "sites": "none"
    }  # fmt: skip
    for key, nothing in absent.items():
        listed = [f"{name} {count}" for name, count in found[key].items()]
        more = f", ... and {len(listed) - _CLASSES_SHOWN} more" if len(listed) > _CLASSES_SHOWN else ""
        lines.append(f"{key}: {', '.join(listed[:_CLASSES_SHOWN]) or nothing}{more}")
    lines.append(f"copies of another image: {found['duplicates']}")
    if found["overlap"]:
        lines.append(f"training images that are also for validation or testing, and do not train: {found['overlap']}")
    if found["conflicting"]:
        lines.append(f"images with more than one label: {found['conflicting']}")
    lines += [f"left out: {line}" for line in found["skipped"]]
    lines += [f"unreadable: {line}" for line in found["unreadable"]]
    return [*lines, *(f"prompt: {prompt}" for prompt in found["prompts"])]
