"""Where commands print tables."""

import os
import sys

from rich.console import Console

_WIDE = 200


def table_console() -> Console:
    """Columns are broken for a terminal, but not in a file or a pipe, unless COLUMNS says how wide that is."""
    fitted = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if fitted else _WIDE)
