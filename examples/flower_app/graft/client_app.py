"""The ClientApp: one site's training and evaluation."""

from fedgraft.flower_app import client_app as app

__all__ = ["app"]
