"""An example or two of each command, shown at the end of its help."""

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "quickstart": ("fedgraft quickstart",),
    "simulate": (
        "fedgraft simulate --method fedpgp --data shapes --sites 10 --rounds 25 --out runs/shapes",
        'fedgraft simulate --method fedit --strategy "anchored(drift=0.08)" --data folder:photos --out runs/photos',
        "fedgraft simulate --config runs/shapes/config.toml --out runs/again",
    ),
    "compare": (
        'fedgraft compare --methods "zeroshot,promptfl,fedit+anchored" --data shapes --seeds 0,1,2 --out runs/compared',
        "fedgraft compare --recipe fedpgp-office-caltech10 --smoke --out runs/recipe",
    ),
    "report": ("fedgraft report runs/shapes", "fedgraft report runs/shapes --format latex,pdf --out paper"),
    "track": ("fedgraft track runs/shapes --to tensorboard",),
    "watch": ("fedgraft watch runs/shapes",),
    "adapter": ("fedgraft adapter runs/lora --site 3 --out adapter",),
    "up": ("fedgraft up --sites 3 --data folder:photos --rounds 10 --out runs/up",),
    "run": ("fedgraft run server --method promptfl --rounds 10 --set class_names=cat,dog --out runs/first",),
    "server init": ("fedgraft server init server --host fed.example.org",),
    "server start": ("fedgraft server start server",),
    "server admit": ("fedgraft server admit server north.pub",),
    "server renew": ("fedgraft server renew server north",),
    "server rotate": ("fedgraft server rotate server",),
    "server revoke": ("fedgraft server revoke server north",),
    "server runs": ("fedgraft server runs server",),
    "server pause": ("fedgraft server pause server first",),
    "server resume": ("fedgraft server resume server first",),
    "server stop": ("fedgraft server stop server first",),
    "server status": ("fedgraft server status server --json",),
    "site init": ("fedgraft site init north --data photos",),
    "site check": ("fedgraft site check north",),
    "site due": ("fedgraft site due north",),
    "site state": ("fedgraft site state north",),
    "site rotate": ("fedgraft site rotate north",),
    "site key": ("fedgraft site key north > north.pub",),
    "site peers": ("fedgraft site peers north",),
    "site start": ("fedgraft site start north --server fed.example.org:9092 --ca ca.pem",),
    "site runs": ("fedgraft site runs north",),
    "site approve": ("fedgraft site approve north 5c0e",),
    "site refuse": ("fedgraft site refuse north 5c0e",),
    "site log": ("fedgraft site log north",),
    "site status": ("fedgraft site status north --json",),
    "export": (
        "fedgraft export runs/quickstart/fedpgp-seed0 --site 3 --quantize int8 --out bundle",
        "fedgraft export runs/digits --sparsity 0.5 --ticket robust --web --out bundle.zip",
    ),
    "device predict": ("fedgraft device predict bundle photo.png",),
    "device bench": ("fedgraft device bench bundle --threads 1",),
    "device verify": ("fedgraft device verify bundle --key signing.pub",),
    "device agent": ("fedgraft device agent --server fleet.example.org:9093 --ca ca.pem --token TOKEN --dir device",),
    "ticket draw": ("fedgraft ticket draw --kind robust --sparsity 0.5 --out ticket",),
    "ticket evaluate": ("fedgraft ticket evaluate ticket --data shapes",),
    "edge-report": ("fedgraft edge-report runs/shapes",),
    "fleet serve": ("fedgraft fleet serve fleet --host fleet.example.org",),
    "fleet token": ("fedgraft fleet token fleet --channel stable",),
    "fleet publish": ("fedgraft fleet publish fleet bundle --channel stable --percent 10 --then 50,100",),
    "fleet rollback": ("fedgraft fleet rollback fleet --channel stable",),
    "fleet renew": ("fedgraft fleet renew fleet --channel stable",),
    "fleet rotate": ("fedgraft fleet rotate fleet --new-key new.key",),
    "fleet certificate": ("fedgraft fleet certificate fleet",),
    "fleet revoke": ("fedgraft fleet revoke fleet 3f2a",),
    "fleet move": ("fedgraft fleet move fleet --channel canary --group kitchens",),
    "fleet status": ("fedgraft fleet status fleet --json",),
    "fleet export-report": ("fedgraft fleet export-report fleet --out fleet-report.toml",),
    "fleet embeddings": ("fedgraft fleet embeddings fleet --out unknown.safetensors",),
    "fleet backup": ("fedgraft fleet backup fleet backup",),
    "fleet simulate": ("fedgraft fleet simulate --devices 200 --out runs/fleet",),
    "methods": ("fedgraft methods", "fedgraft methods fedpgp"),
    "strategies": ("fedgraft strategies central-dp",),
    "protocols": ("fedgraft protocols dirichlet",),
    "recipes": ("fedgraft recipes fedpgp-office-caltech10",),
    "data list": ("fedgraft data", "fedgraft data folder"),
    "data check": ("fedgraft data check folder:photos --sheet sheet.png",),
    "backbones list": ("fedgraft backbones", "fedgraft backbones clip"),
    "backbones import": ("fedgraft backbones import openai/clip-vit-base-patch16 --out clip-b16",),
    "doctor": ("fedgraft doctor", "fedgraft doctor --json"),
    "cache show": ("fedgraft cache show",),
    "cache clear": ("fedgraft cache clear features --yes",),
}
"""By the words of the command."""


def add_examples(app: typer.Typer, words: tuple[str, ...] = ()) -> None:
    """Put each command's examples below its help, those of its groups' commands too."""
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")  # type: ignore[union-attr]
        if lines := EXAMPLES.get(" ".join((*words, name))):
            command.epilog = "\n\n".join(("Examples:" if len(lines) > 1 else "Example:", *map(_escaped, lines)))
    for group in app.registered_groups:
        if group.typer_instance is not None and group.name:
            add_examples(group.typer_instance, (*words, group.name))


def _escaped(line: str) -> str:
    """A line in which help sees no markup."""
    return line.replace("[", "\\[")
