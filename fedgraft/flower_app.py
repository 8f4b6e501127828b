"""fedgraft as an ordinary Flower app, for `flwr run`: the same server and client as `fedgraft simulate`.

The run configuration of the Flower app holds the keys of `RunConfig`, `out` for the run directory, and any option
of the method.
"""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedgraft.client.app import app as client_app
from fedgraft.config import RunConfig
from fedgraft.server.observer import Observer
from fedgraft.server.report import write_report
from fedgraft.simulation import begin

__all__ = ["client_app", "server_app"]

server_app = ServerApp()


@server_app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Run the federation on Flower's grid, resuming where the run directory holds the same run."""
    given = dict(context.run_config)
    out = Path(str(given.pop("out"))).expanduser()
    settings = {key: value for key, value in given.items() if key in RunConfig.model_fields}
    options = {key: value for key, value in given.items() if key not in settings}
    config = RunConfig.build({**settings, "method_options": options})
    coordinator = begin(config, out, resume=(out / "config.toml").exists(), observer=Observer())
    if coordinator is not None:
        coordinator.run(grid)
    write_report(out)
