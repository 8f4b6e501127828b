"""`fedgraft quickstart`: a first run from end to end."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from fedgraft.cli.device_errors import device_errors
from fedgraft.cli.settings import Json, Workers, seeds_from

if TYPE_CHECKING:
    from fedgraft.quickstart import Shown

_PICTURE_WIDTH = 108
_SHOWN = ("local", "base", "novel", "hm")


def quickstart(
    out: Annotated[Path, typer.Option(help="The directory of the comparison, its runs and the bundle.")] = Path(
        "runs/quickstart"
    ),
    seeds: Annotated[str, typer.Option(help="One seed, or several separated by commas.")] = "0",
    workers: Workers = None,
    picture: Annotated[Path | None, typer.Option(help="Save what is printed at the end as an SVG picture.")] = None,
    as_json: Json = False,
) -> None:
    """Compare five methods on embedded data, export one site's bundle, and classify an image with it.

    Offline, and about a minute on two cores. Run it again to continue where it was stopped.
    """
    from fedgraft.cli.progress import progress
    from fedgraft.quickstart import quickstart as run
    from fedgraft.simulation.engine import Resources

    with progress(quiet=as_json) as observer, device_errors():
        shown = run(out, seeds=tuple(seeds_from(seeds)) or (0,), resources=Resources(workers), observer=observer)
    width = None if picture is None else _PICTURE_WIDTH
    console = Console(record=picture is not None, quiet=as_json, width=width)
    _show(shown, console, wrapped=picture is not None)
    if as_json:
        typer.echo(json.dumps(shown.to_json()))
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        drawn = console.export_svg(title="fedgraft quickstart", unique_id="quickstart")
        picture.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL))  # no fonts from the network


def _show(shown: "Shown", console: Console, wrapped: bool) -> None:
    from fedgraft.cli.printing import print_comparison

    print_comparison(shown.comparison, None, _SHOWN, console, timed=False)
    known = shown.prediction
    console.print(
        f"{shown.image} shows a {shown.label}; the bundle says {known.label}, {100 * known.probability:.0f} %.",
        markup=False,
        soft_wrap=not wrapped,
        highlight=False,
    )
    for sentence in shown.sentences:
        text = Text(sentence)
        text.stylize("bold", 0, sentence.index(":") + 1)
        console.print(text, soft_wrap=not wrapped, highlight=False)
