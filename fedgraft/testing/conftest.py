"""Fixtures of the contract tests."""

from fedgraft.testing.fixtures import *  # noqa: F403
