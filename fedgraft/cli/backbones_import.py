"""`fedgraft backbones import`: checkpoints as people hold them."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedgraft.cli.settings import Json

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A Hugging Face or OpenCLIP folder, a file of weights (.pt, .bin, .safetensors), or a Hugging Face ID.",
    ),
]
Out = Annotated[Path, typer.Option(help="A new folder.")]
Tokenizer = Annotated[
    Path | None,
    typer.Option(help="A folder with the tokenizer, or CLIP's bpe_simple_vocab_16e6.txt.gz.", show_default="SOURCE's"),
]
Config = Annotated[
    Path | None,
    typer.Option(help="The configuration (config.json, open_clip_config.json) of a file that comes without one."),
]
Precision = Annotated[
    Literal["kept", "float32"], typer.Option(help="Of the weights on disk; a backbone computes in float32 anyway.")
]
Activation = Annotated[
    Literal["quick_gelu", "gelu"] | None,
    typer.Option(
        help="Of weights with OpenAI's names without a configuration.", show_default="OpenAI's archives: quick_gelu"
    ),
]


def import_backbone(
    source: SourceArgument,
    out: Out,
    tokenizer: Tokenizer = None,
    config: Config = None,
    precision: Precision = "kept",
    activation: Activation = None,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into a folder that --backbone opens. No code in it is run."""
    from fedgraft.backbones.checkpoints.importing import import_checkpoint

    made = import_checkpoint(source, out, tokenizer, config, precision, activation)
    if as_json:
        found = {"out": str(made.out), "layout": made.layout, "family": made.family, "parameters": made.parameters}
        typer.echo(json.dumps({**found, "bytes": made.bytes, "precisions": made.precisions}))
        return
    typer.echo(
        f"Wrote {made.out}: {made.layout}, {made.parameters:,} parameters in {' and '.join(made.precisions)}, "
        f"{made.bytes / 1e6:.1f} MB. Open it with --backbone {made.out}."
    )
