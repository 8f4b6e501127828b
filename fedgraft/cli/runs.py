"""`fedgraft simulate`, `fedgraft compare` and `fedgraft adapter`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedgraft.cli.fields import with_fields
from fedgraft.cli.settings import Config, Json, Set, Track, Workers, layered, seeds_from, settings_from
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError

if TYPE_CHECKING:
    from fedgraft.recipes.recipe import Recipe

_METHODS = "zeroshot,local,promptfl,fedpgp"
GpusPerWorker = Annotated[float | None, typer.Option(help="GPUs per worker, possibly a fraction; runs on Ray.")]
RayAddress = Annotated[
    str | None, typer.Option(help='HOST:PORT of a running Ray cluster, or "auto" for the one on this machine.')
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume a run that was stopped.")]


@with_fields(RunConfig, "Settings of the run")
def simulate(
    settings: dict[str, Any],
    out: Annotated[Path, typer.Option(help="The run directory.")],
    config: Config = None,
    set_: Set = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    ray_address: RayAddress = None,
    resume: Resume = False,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Run a federation with simulated sites."""
    run_config = RunConfig.build(settings_from(config, settings, set_))
    from fedgraft.cli.printing import print_summary
    from fedgraft.cli.progress import tracked_progress
    from fedgraft.reports import write_report
    from fedgraft.simulation.engine import Resources
    from fedgraft.simulation.simulate import simulate as run

    resources = Resources(workers, gpus_per_worker=gpus_per_worker, ray_address=ray_address)
    with tracked_progress(as_json, track, out) as observer:
        summary = run(run_config, out, resume=resume, resources=resources, observer=observer)
    report = write_report(out)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        print_summary(summary, report)


@with_fields(RunConfig, "Settings of all runs", without=("method",))
def compare(
    settings: dict[str, Any],
    out: Annotated[Path, typer.Option(help="The directory of the comparison and of its runs.")],
    methods: Annotated[
        str | None,
        typer.Option(
            help='Separated by commas, or all; "promptfl(n_ctx=4)+anchored(drift=0.05)" adds options, a strategy.',
            show_default=_METHODS,
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="The setting of a paper, which other options override; see `fedgraft recipes`.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Two rounds of the recipe on a mock of its data with the embedded backbone.")
    ] = False,
    seeds: Annotated[str | None, typer.Option(help="Several seeds, separated by commas.")] = None,
    config: Config = None,
    set_: Set = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    ray_address: RayAddress = None,
    resume: Resume = False,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Run several methods on the same data: a table, a plot, a report."""
    from fedgraft.cli.printing import print_comparison
    from fedgraft.cli.progress import tracked_progress
    from fedgraft.config.notation import split
    from fedgraft.recipes.recipe import missing_sentence

    if "seed" in settings and seeds is not None:
        raise UserError("Give --seed or --seeds, not both.")
    given = layered(config, settings, set_)
    chosen = _recipe(recipe, smoke, given, out)
    seed = given.pop("seed", None)
    missing = [missing_sentence(method) for method in chosen.missing] if chosen and not methods else []
    texts = split(methods or ",".join(chosen.runnable if chosen else [_METHODS]), ",")
    from fedgraft.reports import write_report
    from fedgraft.simulation.comparison import compare as run
    from fedgraft.simulation.engine import Resources

    with tracked_progress(as_json, track, out) as observer:
        for sentence in missing:
            observer.on_notice(sentence)
        comparison = run(
            given,
            [text.strip() for text in texts if text.strip()],
            seeds_from(seeds) or ([seed] if seed is not None else list(chosen.seeds if chosen else [0])),
            out,
            resume=resume,
            resources=Resources(workers, gpus_per_worker=gpus_per_worker, ray_address=ray_address),
            observer=observer,
            published=[row.model_dump() for row in chosen.figures_for(given["data"])] if chosen else (),
            missing=missing,
        )
    report = write_report(out)
    if as_json:
        typer.echo(json.dumps(comparison))
    else:
        print_comparison(comparison, report)


def adapter(
    run: Annotated[Path, typer.Argument(help="The directory of a run.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    site: Annotated[str, typer.Option(help="The number of a site, or global.")] = "global",
    fold: Annotated[str | None, typer.Option(help="The domain left out, if the run has several.")] = None,
    as_json: Json = False,
) -> None:
    """Write a low-rank adapter trained by a run in PEFT's format."""
    from fedgraft.edge_export.adapter_folder import save_adapter

    if site != "global" and not site.isdecimal():
        raise UserError(f"--site takes the number of a site, or global, not {site!r}.")
    saved = save_adapter(run, out, None if site == "global" else int(site), fold)
    number = len(saved["maps"])
    typer.echo(json.dumps(saved) if as_json else f"Wrote {out}: rank {saved['rank']}, {number} linear maps")


def _recipe(name: str | None, smoke: bool, given: dict[str, Any], out: Path) -> "Recipe | None":
    """The recipe of a name, with its settings put below those given; a smoke run gets a mock of the data.

    Raises:
        UserError: there is no such recipe, or it lacks its data or backbone.
    """
    if name is None:
        if smoke:
            raise UserError("--smoke belongs to a recipe; add --recipe NAME.")
        return None
    from fedgraft.backbones.loading import require_backbone
    from fedgraft.config.settings import merged
    from fedgraft.recipes.mock_data import write_mock
    from fedgraft.recipes.recipe import Recipe

    recipe = Recipe.load(name)
    settings = merged(recipe.smoke_settings() if smoke else recipe.settings, given)
    if smoke and "data" not in given:
        settings["data"] = write_mock(recipe.mock, out.with_name(f"{out.name}-mock"))
    if "data" not in settings:
        raise UserError(recipe.needs)
    try:
        require_backbone(settings["backbone"])
    except UserError as error:
        raise UserError(f"{error} {recipe.needs}") from error
    given.clear()
    given.update(settings)
    return recipe
