"""The one Flower app that servers submit and sites run: two modules that refer to the installed package."""

from pathlib import Path

from fedgraft.core.files import write_text

_APP = """[project]
name = "fedgraft-app"
version = "1.0.0"
description = "Server and client of the installed package fedgraft"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedgraft"
fab-include = ["graft/*.py"]

[tool.flwr.app.components]
serverapp = "graft.server_app:app"
clientapp = "graft.client_app:app"

[tool.flwr.app.config]
out = ""
settings = ""
"""
_MODULE = """from {} import {}

__all__ = ["app"]
"""


def write_app(folder: Path) -> Path:
    """Write the app and return its folder; every version of fedgraft writes the same bytes."""
    write_text(folder / "pyproject.toml", _APP)
    graft = folder / "graft"
    write_text(graft / "__init__.py", "")
    write_text(graft / "server_app.py", _MODULE.format("fedgraft.deployment.flower_app", "server_app as app"))
    write_text(graft / "client_app.py", _MODULE.format("fedgraft.client.app", "app"))
    return folder
