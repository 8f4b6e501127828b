"""The ClientApp of a deployed site tells the server a code and its sentence, of a simulation the whole reason."""

from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict

from fedgraft.client import app
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.refusals import SENTENCES, Refusal, code_of
from fedgraft.flower.internals import identify

SECRET = "/data/patients/Doe_Jane_1961.png"


def _said(error: Exception, node: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    def fail(*arguments: Any) -> RecordDict:
        raise error

    monkeypatch.setattr(app, "ask_worker", fail)
    monkeypatch.setattr(app, "_held_sites", fail)
    identify(1, 1)
    context = Context(1, 1, node, RecordDict(), {})
    reply = app._answered("hello", Message(RecordDict(), dst_node_id=1, message_type="query"), context)
    assert isinstance(reply.error, Error)
    return str(reply.error.reason)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunFailed(f"The site's worker ended 3 times: {SECRET}."), "worker"),
        (RuntimeError(SECRET), "internal"),
        (UserError(SECRET), "internal"),
        (FileNotFoundError(2, "No such file", SECRET), "disk"),
        (Refusal("images", detail=SECRET), "images"),
        (Refusal.received(f"{SECRET} (no-code)"), "internal"),
        (Refusal.received(SECRET), "internal"),
    ],
)
def test_a_deployed_site_tells_nothing_of_its_own(
    error: Exception, code: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert _said(error, {app.WORKER: "unix:/nowhere"}, monkeypatch) == f"{SENTENCES[code]} ({code})"
    assert SECRET in caplog.text


def test_a_simulation_tells_the_whole_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _said(UserError(SECRET), {}, monkeypatch) == SECRET


@pytest.mark.parametrize("code", SENTENCES)
def test_a_refusal_arrives_with_its_code_and_sentence(code: str) -> None:
    sent = Refusal(code, detail=SECRET)
    assert SECRET not in sent.public
    assert code_of(sent.public) == code
    assert Refusal.received(sent.public).public == sent.public
