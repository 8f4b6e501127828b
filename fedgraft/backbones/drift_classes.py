"""Class names that show a server what a backbone forgets: broad lists that no site needs data for."""

from importlib.resources import files

from fedgraft.backbones.loading import MINI


def drift_classes(backbone: str) -> tuple[str, ...]:
    """Names of common things or, for `mini`, of what it was pretrained on: it knows no others."""
    folder = files("fedgraft.backbones")
    path = folder / (f"{MINI}/drift_classes.txt" if backbone == MINI else "drift_classes.txt")
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1])
