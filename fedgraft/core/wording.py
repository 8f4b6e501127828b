"""Words around numbers."""


def plural(value: int, noun: str) -> str:
    """A count and its noun: "1 site", "3 sites"."""
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"
