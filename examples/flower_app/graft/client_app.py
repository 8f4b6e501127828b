"""The ClientApp: one site's training and evaluation."""

from fedgraft.deployment.flower_app import client_app as app

__all__ = ["app"]
