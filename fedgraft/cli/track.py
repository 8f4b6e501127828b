"""`fedgraft track`: send a run, or every run of a comparison, to an experiment tracker."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedgraft.cli.settings import Json


def track(
    run: Annotated[Path, typer.Argument(help="The directory of a run or of a comparison.")],
    to: Annotated[list[str], typer.Option(help="tensorboard, mlflow or wandb; several times for several.")],
    out: Annotated[
        Path | None, typer.Option(help="Where MLflow keeps its store.", show_default="the directory itself")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send what a run has measured to TensorBoard, MLflow or Weights & Biases, offline."""
    from fedgraft.trackers.tracking import track as send

    runs = send(run, to, out)
    if as_json:
        typer.echo(json.dumps({"trackers": to, "runs": [str(path) for path in runs]}))
    else:
        typer.echo(f"Sent {len(runs)} {'run' if len(runs) == 1 else 'runs'} to {', '.join(to)}.")
