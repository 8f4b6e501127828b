"""`fedgraft ticket draw`, `fedgraft ticket evaluate` and `fedgraft edge-report`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedgraft.edge_export.tickets.training import StageProgress

ticket_app = typer.Typer(no_args_is_help=True, help="Tickets: smaller image towers, natural or robust.")
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


@ticket_app.command("draw")
def draw(
    out: Annotated[Path, typer.Option(help="The ticket's folder.")],
    backbone: Annotated[str, typer.Option(help="mini, a Hugging Face folder or id, or another ticket.")] = "mini",
    kind: Annotated[
        str | None, typer.Option(help="natural, or robust: adversarially trained first.", show_default="natural")
    ] = None,
    induction: Annotated[
        str | None, typer.Option(help="How weights become robust: pgd, smoothing.", show_default="pgd")
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(help="omp (magnitude), imp (in turns with training), lmp (learnt).", show_default="omp"),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="structured (heads and MLP units; faster), unstructured, n:m, rows.", show_default="structured"
        ),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="The share of each layer that is removed.", show_default="0.5")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Unlabelled images: procedural, or a source of `fedgraft data`.", show_default="procedural"),
    ] = None,
    images: Annotated[int | None, typer.Option(help="How many of them at most.", show_default="4096")] = None,
    induction_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps that make it robust.", show_default="400")
    ] = None,
    scheme_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps of imp and lmp.", show_default="200")
    ] = None,
    distillation_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps behind the cut.", show_default="200")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Radius of pgd or deviation of smoothing, pixels from 0 to 1.", show_default="4/255 or 0.12"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.", show_default="0")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Keeps finished stages for further tickets.", show_default="none are kept")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a drawing that was stopped.")] = False,
    as_json: Json = False,
) -> None:
    """Draw a subnetwork of the image tower and distil it to the dense one, without labels."""
    options = {
        "kind": kind, "induction": induction, "scheme": scheme, "pattern": pattern, "sparsity": sparsity, "data": data,
        "images": images, "induction_steps": induction_steps, "scheme_steps": scheme_steps,
        "distillation_steps": distillation_steps, "epsilon": epsilon, "seed": seed,
    }  # fmt: skip
    from dataclasses import asdict

    from fedgraft.edge_export.tickets.draw import TicketConfig
    from fedgraft.edge_export.tickets.ticket_folder import draw_into

    config = TicketConfig.build({key: value for key, value in options.items() if value is not None})
    with _stages(quiet=as_json) as progress:
        ticket = draw_into(out, backbone, config, resume=resume, work=work, progress=progress)
    facts = {"fingerprint": ticket.fingerprint, "parameters": ticket.parameters, "nonzero": ticket.nonzero}
    if as_json:
        typer.echo(json.dumps({"ticket": str(out), **facts, "spec": asdict(ticket.spec)}))
        return
    typer.echo(f"Wrote {out}: {ticket.parameters:,} weights in the image tower, {ticket.nonzero:,} of them not zero.")
    typer.echo(f"Tune a prompt on it with --backbone {out}.")


@ticket_app.command("evaluate")
def evaluate(
    ticket: Annotated[Path, typer.Argument(help="The ticket's folder.")],
    data: Annotated[str, typer.Option(help="A data source as in `fedgraft data`.")] = "shapes",
    epsilon: Annotated[float, typer.Option(help="Radius of the attack, pixels from 0 to 1.")] = 4 / 255,
    attack_steps: Annotated[int, typer.Option(min=1, help="Gradient steps of the attack.")] = 10,
    attacked: Annotated[int, typer.Option(min=1, help="How many images are attacked.")] = 480,
    seed: Annotated[int, typer.Option(min=0, help="Of the data, the deal and the attack.")] = 0,
    as_json: Json = False,
) -> None:
    """Zero-shot accuracy of a ticket and of its dense backbone, on clean and on attacked images."""
    from fedgraft.core.errors import UserError
    from fedgraft.edge_export.tickets.attack import Attack
    from fedgraft.edge_export.tickets.evaluation import evaluate as run

    if not 0 < epsilon < 1:
        raise UserError(f"--epsilon is a radius in pixels from 0 to 1, such as 0.0157 for 4/255, not {epsilon}.")
    result = run(ticket, data, Attack(epsilon, attack_steps), attacked, seed)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _print_evaluation(result, data)


def edge_report(
    run: Annotated[Path, typer.Argument(help="A run, or a folder with rows of tickets, of latencies, or of both.")],
    data: Annotated[
        str, typer.Option(help="Unlabelled images: procedural, or a source of `fedgraft data`.")
    ] = "procedural",
    images: Annotated[int, typer.Option(help="How many of them at most.")] = 4096,
    induction_steps: Annotated[int, typer.Option(help="Optimizer steps that make a tower robust.")] = 400,
    distillation_steps: Annotated[int, typer.Option(help="Optimizer steps behind each cut.")] = 200,
    as_json: Json = False,
) -> None:
    """Accuracy against sparsity and latency against size, as a plot and a table; tickets of a run are drawn first."""
    from fedgraft.edge_export.sweep import measure, sweep_of_run
    from fedgraft.reports.edge import LATENCY, TICKETS, write_edge_report

    if (run / "config.toml").is_file() or not ((run / TICKETS).is_file() or (run / LATENCY).is_file()):
        steps = {"induction_steps": induction_steps, "distillation_steps": distillation_steps}
        with _stages(quiet=as_json) as progress:
            measure(sweep_of_run(run, {"data": data, "images": images, **steps}), run, progress)
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
        yield _stage_line


def _stage_line(stage: str, done: int, total: int) -> None:
    if done == total or done * 10 // total != (done - 1) * 10 // total:
        typer.echo(f"{stage}: {done}/{total}")
        sys.stdout.flush()


def _print_evaluation(result: dict[str, Any], data: str) -> None:
    from rich.console import Console
    from rich.table import Table

    spec = result["spec"]
    table = Table(title=f"{spec['kind']} ticket, {spec['pattern']}, {spec['sparsity']:.0%} removed, on {data}")
    table.add_column("percent")
    for name in result["ticket"]["accuracy"]:
        table.add_column(name, justify="right")
    table.add_column("weights", justify="right")
    table.add_column("not zero", justify="right")
    for name in ("dense", "ticket"):
        one = result[name]
        cells = [f"{value:.1f}" for value in one["accuracy"].values()]
        table.add_row(name, *cells, f"{one['parameters']:,}", f"{one['nonzero']:,}")
    Console().print(table)
