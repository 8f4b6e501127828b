"""`fedgraft ticket draw`, `fedgraft ticket evaluate` and `fedgraft edge-report`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedgraft.cli.fields import with_fields
from fedgraft.cli.settings import Json
from fedgraft.core.errors import UserError
from fedgraft.edge_export.tickets.ticket_config import TicketConfig

if TYPE_CHECKING:
    from fedgraft.edge_export.tickets.training import StageProgress

ticket_app = typer.Typer(no_args_is_help=True, help="Tickets: smaller image towers, natural or robust.")
_REPORTED = ("data", "images", "induction_steps", "distillation_steps")


@ticket_app.command("draw")
@with_fields(TicketConfig, "Settings of the ticket", defaults={"epsilon": "4/255 or 0.12"})
def draw(
    settings: dict[str, Any],
    out: Annotated[Path, typer.Option(help="The ticket's folder.")],
    backbone: Annotated[str, typer.Option(help="mini, a Hugging Face folder or ID, or another ticket.")] = "mini",
    work: Annotated[
        Path | None, typer.Option(help="Keeps finished stages for further tickets.", show_default="none are kept")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted drawing.")] = False,
    as_json: Json = False,
) -> None:
    """Draw a subnetwork of the image tower and distil the dense one into it, without labels."""
    config = TicketConfig.build(settings)
    from dataclasses import asdict

    from fedgraft.edge_export.tickets.ticket_folder import draw_into

    with _stages(quiet=as_json) as progress:
        ticket = draw_into(out, backbone, config, resume=resume, work=work, progress=progress)
    facts = {"fingerprint": ticket.fingerprint, "parameters": ticket.parameters, "nonzero": ticket.nonzero}
    if as_json:
        typer.echo(json.dumps({"ticket": str(out), **facts, "spec": asdict(ticket.spec)}))
        return
    typer.echo(f"Wrote {out}: {ticket.parameters:,} weights in the image tower, {ticket.nonzero:,} of them nonzero.")
    typer.echo(f"Tune a prompt on it with --backbone {out}.")


@ticket_app.command("evaluate")
def evaluate(
    ticket: Annotated[Path, typer.Argument(help="The ticket's folder.")],
    data: Annotated[str, typer.Option(help="A data source; see `fedgraft data`.")] = "shapes",
    epsilon: Annotated[float, typer.Option(help="Radius of the attack, for pixels from 0 to 1.")] = 4 / 255,
    attack_steps: Annotated[int, typer.Option(min=1, help="Gradient steps of the attack.")] = 10,
    attacked: Annotated[int, typer.Option(min=1, help="Number of attacked images.")] = 480,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data, the split and the attack.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure zero-shot accuracy of a ticket and of its dense backbone, on clean and attacked images."""
    from fedgraft.edge_export.tickets.attack import Attack
    from fedgraft.edge_export.tickets.evaluation import evaluate as run

    if not 0 < epsilon < 1:
        raise UserError(f"--epsilon is a radius for pixels from 0 to 1, such as 0.0157 for 4/255, not {epsilon}.")
    result = run(ticket, data, Attack(epsilon, attack_steps), attacked, seed)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _print_evaluation(result, data)


@with_fields(TicketConfig, "Settings of the tickets", without=TicketConfig.model_fields.keys() - set(_REPORTED))
def edge_report(
    settings: dict[str, Any],
    run: Annotated[Path, typer.Argument(help="A run, or a folder with rows of tickets, of latencies, or of both.")],
    as_json: Json = False,
) -> None:
    """Plot and tabulate accuracy against sparsity and latency against size; a run's tickets are drawn first."""
    from fedgraft.edge_export.sweep import measure, sweep_of_run
    from fedgraft.reports.edge import LATENCY, TICKETS, write_edge_report
    from fedgraft.runs.run_directory import RunDirectory

    if RunDirectory(run).begun or not ((run / TICKETS).is_file() or (run / LATENCY).is_file()):
        with _stages(quiet=as_json) as progress:
            measure(sweep_of_run(run, settings), run, progress)
    path = write_edge_report(run)
    typer.echo(json.dumps({"report": str(path)}) if as_json else f"Wrote {path}")


@contextmanager
def _stages(quiet: bool) -> "Iterator[StageProgress]":
    """A bar for each stage on a terminal, a line at every tenth otherwise."""
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stdout.isatty():
        from rich.progress import Progress, TaskID

        with Progress() as bars:
            tasks: dict[str, TaskID] = {}

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total)
                bars.update(tasks[stage], completed=done, total=total)

            yield advance
    else:
        from fedgraft.edge_export.tickets.training import at_tenths

        yield at_tenths(lambda line: print(line, flush=True))


def _print_evaluation(result: dict[str, Any], data: str) -> None:
    from rich.table import Table

    from fedgraft.cli.consoles import table_console

    spec = result["spec"]
    table = Table(title=f"{spec['kind']} ticket, {spec['pattern']}, {spec['sparsity']:.0%} removed, on {data}")
    table.add_column("percent")
    for name in result["ticket"]["accuracy"]:
        table.add_column(name, justify="right")
    table.add_column("weights", justify="right")
    table.add_column("nonzero", justify="right")
    for name in ("dense", "ticket"):
        one = result[name]
        cells = [f"{value:.1f}" for value in one["accuracy"].values()]
        table.add_row(name, *cells, f"{one['parameters']:,}", f"{one['nonzero']:,}")
    table_console().print(table)
