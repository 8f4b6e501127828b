"""What several commands share: the options `--json`, `--config` and `--set`, and the settings that come of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Config = Annotated[Path | None, typer.Option(help="A TOML file with settings; options given here win over it.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="key=value for any setting, and for any option of the method, the protocol or the data source."
    ),
]


def layered(config: Path | None, options: dict[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """A TOML file, over it --set, over both the options."""
    from fedgraft.config.settings import merged, parse_assignments, read_toml

    return merged(read_toml(config) if config else {}, parse_assignments(assignments or []), options)


def settings_from(config: Path | None, options: dict[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """The same, with options of method, protocol and data source in their tables."""
    from fedgraft.config.settings import placed

    return placed(layered(config, options, assignments))
