"""What a site tells the server when it refuses: a code and a sentence, both from a closed set.

An exception's own text may hold paths, file names and class names of the site. It goes into the site's log; the server
gets the code and the code's sentence. A sentence of its own has only a refusal whose text is made of what the server
sent and of numbers in the site's policy.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.plain_text import one_line

WAITS = "waits-for-approval"
INTERNAL = "internal"
SENTENCES = {
    "backbone": "the site has no backbone under the name that the run gives",
    "bounds": "the message is outside the bounds that a site accepts",
    "classes": "the site holds a class that the federation does not know",
    "configuration": "the run's configuration is not valid at the site",
    "disk": "the site cannot read or write one of its files",
    "fingerprint": "the site's backbone is not the server's",
    "images": "the site's images cannot be read, or do not suit the run",
    INTERNAL: "an unexpected error at the site",
    "parameters": "the server's parameters do not have the names and shapes that the method needs",
    "peers": "the site does not know the other sites of the masked sum",
    "refused-by-operator": "the site's operator has refused this run",
    "policy": "the site's policy does not accept this run",
    "run-name": "a run's name has only letters, digits and . - _",
    "secure-sum": "the site does not go on with this masked sum",
    "stale": "the message is stale: the site knows a later round, or a later start of the server",
    "state": "the site's personal state cannot be read or written",
    "too-large": "the message or its answer is larger than a site accepts",
    "too-many-runs": "the site has been asked for more new runs than its policy accepts in a day",
    "version": "server and site run incompatible versions of fedgraft",
    WAITS: "the site's operator has not approved this run yet",
    "worker": "the site's worker does not answer",
}
"""The public sentence of every code."""
_MAX_DETAIL = 2000
_SENT = re.compile(r"(.*) \(([a-z-]+)\)", re.DOTALL)


class Refusal(UserError):
    """Something that a site does not do for the server.

    Args:
        code: one of `SENTENCES`.
        sentence: in place of the code's, where it holds nothing of the site's own.
        detail: for the site's log only; kept on one line.
    """

    def __init__(self, code: str, sentence: str = "", detail: str = "") -> None:
        self.code, self.sentence = code, sentence or SENTENCES[code]
        super().__init__(one_line(detail or self.sentence, _MAX_DETAIL))

    @property
    def public(self) -> str:
        """What the server is told."""
        return f"{self.sentence} ({self.code})"

    @classmethod
    def received(cls, public: str) -> "Refusal":
        """The refusal with a given public text; one without a known code is an internal error."""
        match = _SENT.fullmatch(public)
        if match is None or match[2] not in SENTENCES:
            return cls(INTERNAL, detail=public)
        return cls(match[2], match[1])


def code_of(reason: str) -> str:
    """The code in a reason that a site gave, or "" if it has none."""
    match = _SENT.fullmatch(reason)
    return match[2] if match is not None and match[2] in SENTENCES else ""


def refusal_of(error: Exception) -> Refusal:
    """The refusal that stands for an error; its detail says what happened."""
    if isinstance(error, Refusal):
        return error
    code = "disk" if isinstance(error, OSError) else "worker" if isinstance(error, RunFailed) else INTERNAL
    return Refusal(code, detail=f"{type(error).__name__}: {error}")


@contextmanager
def refusing(code: str) -> Iterator[None]:
    """Let a `UserError` inside the block reach the server as the given code alone."""
    try:
        yield
    except Refusal:
        raise
    except UserError as error:
        raise Refusal(code, detail=str(error)) from error
