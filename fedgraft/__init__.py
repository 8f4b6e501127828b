"""fedgraft: federated prompt and low-rank personalization of one frozen vision-language backbone."""

import os
from typing import TYPE_CHECKING, Any

for _switch, _off in (
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
):
    os.environ.setdefault(_switch, _off)

__version__ = "0.1.0"
__all__ = ["RunConfig", "UserError", "compare", "simulate"]

if TYPE_CHECKING:
    from fedgraft.comparison import compare
    from fedgraft.config import RunConfig
    from fedgraft.errors import UserError
    from fedgraft.simulation import simulate

_HOMES = {
    "RunConfig": "fedgraft.config",
    "UserError": "fedgraft.errors",
    "compare": "fedgraft.comparison",
    "simulate": "fedgraft.simulation",
}


def __getattr__(name: str) -> Any:
    """Load the public names when they are used: importing the package loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedgraft' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
