"""Errors for users: each is one clear sentence."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input. The message says what was found, where, and what would be right."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one that does."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"There is no {kind} {name!r}.{hint} Known: {', '.join(names)}.")


class RunFailed(Exception):
    """A run that could not continue, for a reason other than a mistake in the input; also one sentence."""


class RunPaused(Exception):
    """A run that stands still because its operator wants it to; it can be resumed."""


def reason_of(error: Exception) -> str:
    """A failure as reported to another machine: the sentence, preceded by the type of an unexpected error."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) if isinstance(error, UserError | RunFailed | RunPaused) else f"{type(error).__name__}: {error}"
