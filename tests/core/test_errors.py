"""What users and other machines are told of a failure: one sentence, with what would be right."""

import errno
import os

import pytest

from fedgraft.core.errors import RunFailed, UserError, reason_of, unknown


def test_an_unknown_name_is_told_with_the_nearest_one_and_all_that_there_are() -> None:
    said = str(unknown("method", "fedpg", ["local", "fedpgp"]))
    assert said.startswith("There is no method 'fedpg'. Did you mean 'fedpgp'?")
    assert "local, fedpgp" in said
    assert "Did you mean" not in str(unknown("method", "something else", ["local", "fedpgp"]))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("The rank is too large."), "The rank is too large."),
        (RunFailed("The run was stopped."), "The run was stopped."),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/x"), "No space left on device: /runs/x"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (KeyError("sigma"), "KeyError: 'sigma'"),
    ],
    ids=repr,
)
def test_a_failure_nobody_foresaw_is_told_with_its_kind(error: Exception, said: str) -> None:
    assert reason_of(error) == said
