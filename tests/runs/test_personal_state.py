"""A site's personal state survives rounds, kills and torn writes, and is refused where it does not belong."""

from pathlib import Path

import pytest
import torch

from fedgraft.core.errors import UserError
from fedgraft.runs.personal_state import PersonalState

IDENTITY = {"method": "fedpgp", "fingerprint": "abc"}


def _state(folder: Path) -> PersonalState:
    return PersonalState(folder, IDENTITY)


def _saved(folder: Path, *rounds: int) -> PersonalState:
    state = _state(folder)
    for server_round in rounds:
        state.save(server_round, {"U": torch.full((2, 2), float(server_round))})
    return state


def _value(state: PersonalState, last_round: int) -> float | None:
    loaded = state.load(last_round)
    return None if loaded is None else float(loaded["U"][0, 0])


def test_a_site_that_was_not_asked_for_some_rounds_keeps_its_state(tmp_path: Path) -> None:
    assert _value(_saved(tmp_path, 2), 9) == 2.0


def test_a_repeated_round_starts_from_what_it_started_from_before(tmp_path: Path) -> None:
    """The server was killed after the site had written round 3 and repeats it."""
    state = _saved(tmp_path, 1, 2, 3)
    assert _value(state, 2) == 2.0
    state.save(3, {"U": torch.full((2, 2), 30.0)})
    assert _value(state, 3) == 30.0
    assert _value(state, 2) == 2.0


def test_two_rounds_are_kept_and_later_ones_of_a_dead_attempt_go(tmp_path: Path) -> None:
    state = _saved(tmp_path, 1, 2, 3, 4)
    assert state.rounds() == [3, 4]
    state.save(3, {"U": torch.zeros(2, 2)})
    assert state.rounds() == [3]


def test_no_state_before_the_first_round(tmp_path: Path) -> None:
    assert _value(_state(tmp_path), 5) is None
    assert _value(_saved(tmp_path, 4), 3) is None


def test_a_torn_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    state = _saved(tmp_path, 1)
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="round-000001"):
        state.load(1)


def test_the_state_of_another_method_or_backbone_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path, 1)
    with pytest.raises(UserError, match="promptfl"):
        PersonalState(tmp_path, {**IDENTITY, "method": "promptfl"}).load(1)
