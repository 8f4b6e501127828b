"""What several commands share: the options `--json`, `--config` and `--set`, and the settings made from them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fedgraft.core.errors import UserError

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Config = Annotated[Path | None, typer.Option(help="A TOML file with settings; options given here take precedence.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value for any setting or option of the method, the protocol or the data source."),
]
Track = Annotated[
    list[str] | None,
    typer.Option(help="Send the run to tensorboard, mlflow or wandb as well, offline; several times for several."),
]
Workers = Annotated[
    int | None, typer.Option(help="Worker processes; they never change the result.", show_default="one per GPU or CPU")
]
MetricsPort = Annotated[
    int | None, typer.Option(help="Serve Prometheus metrics on this port of 127.0.0.1.", show_default="no metrics")
]


def layered(config: Path | None, options: dict[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """Settings from a TOML file, overridden by --set, and both by the options."""
    from fedgraft.config.settings import merged, parse_assignments, read_toml

    return merged(read_toml(config) if config else {}, parse_assignments(assignments or []), options)


def settings_from(config: Path | None, options: dict[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """`layered`, with options of method, protocol and data source in their tables."""
    from fedgraft.config.settings import sorted_into_tables

    return sorted_into_tables(layered(config, options, assignments))


def seeds_from(text: str | None) -> list[int]:
    """Whole numbers separated by commas, none for no text; raises UserError for anything else."""
    try:
        return [int(seed) for seed in (text or "").split(",") if seed.strip()]
    except ValueError:
        raise UserError(f"--seeds takes whole numbers separated by commas, not {text!r}.") from None
