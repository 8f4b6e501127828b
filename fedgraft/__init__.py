"""fedgraft: federated prompt and low-rank personalization of one frozen vision-language backbone."""

import os
from typing import TYPE_CHECKING, Any

for _switch, _off in (  # no library tells its makers anything, unless the user has set its variable otherwise
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("ORT_DISABLE_TELEMETRY", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
):
    os.environ.setdefault(_switch, _off)

__version__ = "0.2.0.dev0"
__all__ = ["Resources", "RunConfig", "UserError", "compare", "simulate"]

if TYPE_CHECKING:
    from fedgraft.config.run_config import RunConfig
    from fedgraft.core.errors import UserError
    from fedgraft.simulation.comparison import compare
    from fedgraft.simulation.engine import Resources
    from fedgraft.simulation.simulate import simulate

_HOMES = {
    "Resources": "fedgraft.simulation.engine",
    "RunConfig": "fedgraft.config.run_config",
    "UserError": "fedgraft.core.errors",
    "compare": "fedgraft.simulation.comparison",
    "simulate": "fedgraft.simulation.simulate",
}


def __getattr__(name: str) -> Any:
    """Load the public names when they are used: importing the package loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedgraft' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
