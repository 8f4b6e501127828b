"""The command `fedgraft`. Heavy imports stay inside the commands, so that help is quick."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedgraft.cli.deploy import run, server_app, site_app, up
from fedgraft.cli.edge import device_app, export
from fedgraft.cli.ticket import edge_report, ticket_app
from fedgraft.core.errors import RunFailed, UserError

_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated personalization of one frozen vision-language backbone, from simulation to edge devices.",
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Data = Annotated[
    str | None, typer.Option(help="digits, shapes, characters, folder:PATH, hf:ID.", show_default="digits")
]
Protocol = Annotated[
    str | None,
    typer.Option(help="base-to-novel, leave-one-domain-out, dirichlet.", show_default="base-to-novel"),
]
Backbone = Annotated[
    str | None, typer.Option(help="mini, a Hugging Face folder or id, or a ticket's folder.", show_default="mini")
]
Sites = Annotated[int | None, typer.Option(help="Number of sites.", show_default="10")]
Rounds = Annotated[int | None, typer.Option(help="Number of rounds.", show_default="25")]
Shots = Annotated[int | None, typer.Option(help="Training images a class; 0 takes all.", show_default="16")]
LocalEpochs = Annotated[int | None, typer.Option(help="Epochs a site trains in a round.", show_default="2")]
Participation = Annotated[
    float | None, typer.Option(help="Fraction of the sites that train in a round.", show_default="1.0")
]
Views = Annotated[int | None, typer.Option(help="Augmented views of each training image.", show_default="1")]
Domains = Annotated[bool, typer.Option("--domains", help="Read a folder as domain/class/image whatever its depth.")]
Strategy = Annotated[
    str | None,
    typer.Option(help="See `fedgraft strategies`; several are joined by +.", show_default="the method's own"),
]
Config = Annotated[Path | None, typer.Option(help="A TOML file with settings; options given here win over it.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value for any other setting or method option.")]
Workers = Annotated[
    int | None, typer.Option(help="Worker processes; they never change the result.", show_default="one a GPU or CPU")
]
GpusPerWorker = Annotated[
    float | None, typer.Option(help="GPUs of a worker, or a part of one.", show_default="1 where there are any")
]
RayAddress = Annotated[
    str | None, typer.Option(help='HOST:PORT of a running Ray cluster, or "auto" for the one of this machine.')
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]


app.add_typer(site_app, name="site")
app.add_typer(server_app, name="server")
app.add_typer(ticket_app, name="ticket")
app.command("edge-report")(edge_report)
app.command()(run)
app.command()(up)
app.add_typer(device_app, name="device")
app.command()(export)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from fedgraft import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="The run directory.")],
    method: Annotated[str | None, typer.Option(help="See `fedgraft methods`.", show_default="fedpgp")] = None,
    strategy: Strategy = None,
    data: Data = None,
    protocol: Protocol = None,
    sites: Sites = None,
    rounds: Rounds = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.", show_default="0")] = None,
    backbone: Backbone = None,
    shots: Shots = None,
    local_epochs: LocalEpochs = None,
    participation: Participation = None,
    views: Views = None,
    domains: Domains = False,
    config: Config = None,
    set_: Set = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    ray_address: RayAddress = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Run a federation with simulated sites."""
    from fedgraft.cli.printing import print_summary
    from fedgraft.cli.progress import progress
    from fedgraft.config.run_config import RunConfig

    options = {
        "method": method, "strategy": strategy, "data": data, "protocol": protocol, "sites": sites, "rounds": rounds,
        "seed": seed, "backbone": backbone, "shots": shots, "local_epochs": local_epochs,
        "participation": participation, "views": views, "domains": domains or None,
    }  # fmt: skip
    run_config = RunConfig.build(settings_from(config, options, set_))
    from fedgraft.reports import write_report
    from fedgraft.simulation.simulate import simulate as run

    with progress(quiet=as_json) as observer:
        summary = run(
            run_config,
            out,
            resume=resume,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            ray_address=ray_address,
            observer=observer,
        )
    report = write_report(out)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        print_summary(summary, report)


@app.command()
def compare(
    out: Annotated[Path, typer.Option(help="The directory of the comparison and of its runs.")],
    methods: Annotated[
        str,
        typer.Option(help='Separated by commas; "promptfl(n_ctx=4)+anchored(drift=0.05)" adds options, a strategy.'),
    ] = "zeroshot,local,promptfl,fedpgp",
    data: Data = None,
    protocol: Protocol = None,
    sites: Sites = None,
    rounds: Rounds = None,
    seed: Annotated[int | None, typer.Option(help="One seed.", show_default="0")] = None,
    seeds: Annotated[str | None, typer.Option(help="Several seeds, separated by commas.")] = None,
    backbone: Backbone = None,
    shots: Shots = None,
    local_epochs: LocalEpochs = None,
    participation: Participation = None,
    views: Views = None,
    domains: Domains = False,
    config: Config = None,
    set_: Set = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    ray_address: RayAddress = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Run several methods on the same data: a table, a plot, a report."""
    from fedgraft.cli.printing import print_comparison
    from fedgraft.cli.progress import progress

    options = {
        "data": data, "protocol": protocol, "sites": sites, "rounds": rounds, "backbone": backbone, "shots": shots,
        "local_epochs": local_epochs, "participation": participation, "views": views, "domains": domains or None,
    }  # fmt: skip
    if seed is not None and seeds is not None:
        raise UserError("Give --seed or --seeds, not both.")
    settings = settings_from(config, options, set_)
    from fedgraft.simulation.comparison import compare as run
    from fedgraft.reports import write_report
    from fedgraft.config.notation import split

    with progress(quiet=as_json) as observer:
        comparison = run(
            settings,
            [text.strip() for text in split(methods, ",") if text.strip()],
            _seeds(seeds) or [settings.pop("seed", 0) if seed is None else seed],
            out,
            resume=resume,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            ray_address=ray_address,
            observer=observer,
        )
    report = write_report(out)
    if as_json:
        typer.echo(json.dumps(comparison))
    else:
        print_comparison(comparison, report)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The directory of a run or of a comparison.")], as_json: Json = False
) -> None:
    """Write report.html for a run or a comparison."""
    from fedgraft.reports import write_report

    path = write_report(run)
    typer.echo(json.dumps({"report": str(path)}) if as_json else f"Wrote {path}")


@app.command()
def adapter(
    run: Annotated[Path, typer.Argument(help="The directory of a run.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    site: Annotated[str, typer.Option(help="The number of a site, or global.")] = "global",
    fold: Annotated[str | None, typer.Option(help="The domain left out, where the run has several.")] = None,
    as_json: Json = False,
) -> None:
    """Write a low-rank adapter that a run has trained as PEFT saves one."""
    from fedgraft.edge_export.adapter_folder import save_adapter

    if site != "global" and not site.isdecimal():
        raise UserError(f"--site takes the number of a site, or global, not {site!r}.")
    saved = save_adapter(run, out, None if site == "global" else int(site), fold)
    number = len(saved["maps"])
    typer.echo(json.dumps(saved) if as_json else f"Wrote {out}: rank {saved['rank']}, {number} linear maps")


@app.command()
def methods(as_json: Json = False) -> None:
    """What methods there are."""
    from fedgraft.methods import load_method, method_names

    loaded = {name: load_method(name) for name in method_names()}
    rows = {name: method.summary for name, method in loaded.items()}
    options = {
        name: {key: field.default for key, field in method.options.model_fields.items()}
        for name, method in loaded.items()
    }
    if as_json:
        caches = {name: method.caches for name, method in loaded.items()}
        typer.echo(json.dumps({n: {"summary": rows[n], "options": options[n], "caches": caches[n]} for n in rows}))
        return
    _print_lines({n: f"{t}; caches {loaded[n].caches}{_option_text(options[n])}" for n, t in rows.items()})


@app.command()
def strategies(as_json: Json = False) -> None:
    """What strategies any method that shares parameters can be combined with."""
    from fedgraft.config.registry import STRATEGIES

    loaded = {name: STRATEGIES.load(name) for name in STRATEGIES.names()}
    options = {
        name: {key: field.default for key, field in part.options.model_fields.items()} for name, part in loaded.items()
    }
    if as_json:
        typer.echo(json.dumps({n: {"summary": part.summary, "options": options[n]} for n, part in loaded.items()}))
        return
    _print_lines({name: f"{part.summary}{_option_text(options[name])}" for name, part in loaded.items()})


@app.command()
def data(as_json: Json = False) -> None:
    """What data sources there are."""
    from fedgraft.data.sources.source import SOURCES

    _print_or_json({source.usage: source.summary for source in SOURCES.values()}, as_json)


@app.command()
def backbones(as_json: Json = False) -> None:
    """What backbones there are."""
    _print_or_json(
        {
            "mini": "the embedded CLIP: 48 pixels, 1.6 million parameters, trained on procedural images",
            "PATH": "a local Hugging Face folder of the CLIP family",
            "TICKET": "a folder of `fedgraft ticket draw`: a smaller image tower beside its backbone's text tower",
            "HF-ID": "a Hugging Face id of the CLIP family, such as openai/clip-vit-base-patch16",
        },
        as_json,
    )


def main() -> None:
    """Run the command; a mistake in the input is one sentence and exit code 2."""
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:  # click's way of telling of Ctrl-C outside of standalone mode
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except click.UsageError as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            typer.echo(error.format_message())
            sys.exit(0)
        typer.echo(f"fedgraft: {error.format_message()} See fedgraft --help.", err=True)
        sys.exit(2)
    except UserError as error:
        typer.echo(f"fedgraft: {error}", err=True)
        sys.exit(2)
    except RunFailed as error:
        typer.echo(f"fedgraft: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        typer.echo("fedgraft: stopped; it goes on where it was (simulate and compare: with --resume).", err=True)
        sys.exit(_INTERRUPTED)


def settings_from(config: Path | None, options: dict[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """A TOML file, over it --set, over both the options."""
    from fedgraft.config.run_config import merged, parse_assignments, read_toml

    given = {key: value for key, value in options.items() if value is not None}
    return merged(read_toml(config) if config else {}, parse_assignments(assignments or []), given)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str | None) -> list[int]:
    try:
        return [int(seed) for seed in _names(text or "")]
    except ValueError:
        raise UserError(f"--seeds takes whole numbers separated by commas, not {text!r}.") from None


def _option_text(options: dict[str, Any]) -> str:
    if not options:
        return ""
    return " (" + ", ".join(f"{key}={value!r}" for key, value in options.items()) + ")"


def _print_or_json(rows: dict[str, str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        _print_lines(rows)


def _print_lines(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, text in rows.items():
        typer.echo(f"{name:<{width}}  {text}")
