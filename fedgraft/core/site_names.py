"""What a site may be called, wherever a name comes from."""

import re

_NAME = re.compile(r"[\w@-][\w.@ -]{0,63}")


def is_site_name(name: str) -> bool:
    """Whether a name is plain text of at most 64 characters that can also name a file."""
    return _NAME.fullmatch(name) is not None
