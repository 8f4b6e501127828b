"""Built-in data, read once."""

import pytest

from fedgraft.data.examples import Examples
from fedgraft.data.sources.source import open_source


@pytest.fixture(scope="session")
def digits() -> Examples:
    """The digits."""
    return open_source("digits", seed=0)
