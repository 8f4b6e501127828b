"""The ServerApp: rounds, checkpoints, evaluation, the run directory and its report."""

from fedgraft.deployment.flower_app import server_app as app

__all__ = ["app"]
