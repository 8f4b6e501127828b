"""What fedgraft uses of Flower beyond its promises: in one package, and each thing by a test that names what broke."""

import ast
import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedgraft.flower import internals

ROOT = Path(__file__).parents[2]
FOLDERS = ("fedgraft", "tests", "benchmarks", "examples", "tools")
NOT_PROMISED = ("flwr.common", "flwr.proto", "flwr.supercore", "flwr.superlink", "flwr.supernode", "flwr.server")
CONTENT = RecordDict(
    {
        "arrays": ArrayRecord({"a": Array(np.arange(6, dtype=np.float32).reshape(2, 3))}),
        "metrics": MetricRecord({"loss": 0.5, "counts": [1, 2]}),
        "config": ConfigRecord({"name": "north", "detailed": True}),
    }
)


def _imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_other_module_imports_what_flower_does_not_promise() -> None:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {
        str(path.parent.relative_to(ROOT))
        for path in files
        for name in _imported(path)
        if any(f"{name}.".startswith(f"{private}.") for private in NOT_PROMISED)
    }
    assert found == {"fedgraft/flower/internals"}


# --- what is sent and said -----------------------------------------------------------------------------------------


@pytest.fixture
def message() -> Message:
    """From the SuperLink of run 5 to node 9."""
    internals.identify(5, internals.SUPERLINK_NODE_ID)
    return Message(CONTENT, dst_node_id=9, message_type="train")


def test_a_content_survives_the_wire() -> None:
    """`recorddict_to_proto`, `recorddict_from_proto` and the record's protocol buffer."""
    assert internals.record_from_bytes(internals.record_bytes(CONTENT)) == CONTENT


def test_a_message_survives_the_wire(message: Message) -> None:
    """`message_to_proto`, `message_from_proto` and the message's protocol buffer."""
    internals.set_message_id(message, "an-id")
    received = internals.message_from_bytes(internals.message_bytes(message))
    assert received.content == CONTENT
    assert (received.metadata.message_id, received.metadata.message_type) == ("an-id", "train")
    assert (received.metadata.run_id, received.metadata.dst_node_id) == (5, 9)


def test_a_reply_with_an_error_survives_the_wire(message: Message) -> None:
    internals.set_message_id(message, "an-id")
    reply = Message(Error(100, "no backbone"), reply_to=message)
    received = internals.message_from_bytes(internals.message_bytes(reply))
    assert received.has_error()
    assert (received.error.code, received.error.reason) == (100, "no backbone")
    assert received.metadata.reply_to_message_id == "an-id"


def test_a_reply_refers_to_the_identifier_of_its_message(message: Message) -> None:
    """A message's metadata keep their identifier in `_message_id`."""
    internals.set_message_id(message, "an-id")
    assert Message(CONTENT, reply_to=message).metadata.reply_to_message_id == "an-id"


def test_a_message_names_the_process_that_sends_it(message: Message) -> None:
    """`TaskIdentity` says who sends; without it Flower makes no message at all."""
    assert message.metadata.run_id == 5
    assert message.metadata.src_node_id == internals.SUPERLINK_NODE_ID
    internals.set_message_id(message, "an-id")
    internals.identify(5, 9)
    reply = Message(CONTENT, reply_to=message)
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (9, internals.SUPERLINK_NODE_ID)


def test_what_stands_for_a_lost_site_is_no_error_of_a_sites_own() -> None:
    """`ErrorCode`: the site's own failures have the code 100, those of a simulation's worker 102."""
    assert len(internals.LOST_CODES) == 4
    assert all(isinstance(code, int) and 0 < code < 100 for code in internals.LOST_CODES)
    assert {Error(code, "").code for code in internals.LOST_CODES} == internals.LOST_CODES


# --- privacy -------------------------------------------------------------------------------------------------------


def test_the_noise_of_a_mean_is_that_of_the_sum_over_the_sites_asked() -> None:
    """`compute_stdv`."""
    assert internals.noise_deviation(3.0, 0.5, 10) == pytest.approx(3.0 * 0.5 / 10)


def test_the_noise_of_count_and_sum_together_costs_what_the_multiplier_alone_does() -> None:
    """`compute_adaptive_noise_params`: z^-2 = z_sum^-2 + (2 s)^-2 (Andrew et al. 2021)."""
    deviation, multiplier = internals.adaptive_noise(1.5, 40, 2.0)
    assert deviation == 2.0
    assert multiplier**-2 + (2 * deviation) ** -2 == pytest.approx(1.5**-2)


# --- nodes and their keys ------------------------------------------------------------------------------------------


def test_a_superlink_tells_a_run_the_name_and_the_connection_of_every_node() -> None:
    """`HttpGrid.get_nodes` answers with `NodeInfo`, whose fields are these."""
    info = import_module("flwr.proto.node_pb2").NodeInfo
    assert hasattr(import_module("flwr.superlink.grid.http_grid").HttpGrid, "get_nodes")

    class Link:
        def get_nodes(self) -> Iterator[object]:
            yield info(node_id=7, name="north", registered_at="2026-01-01", last_activated_at="2026-01-02")

    known = internals.ConnectedNode("north", "2026-01-01", "2026-01-02")
    assert internals.connected_nodes(Link()) == {7: known}


def test_a_grid_that_knows_numbers_only_is_enough() -> None:
    class Local:
        def get_node_ids(self) -> list[int]:
            return [3, 4]

    assert internals.connected_nodes(Local()) == {3: internals.ConnectedNode(), 4: internals.ConnectedNode()}


def test_a_lost_superlink_is_told_from_a_mistake() -> None:
    """Flower's clients raise httpx's errors as they are."""
    request = httpx.Request("POST", "https://127.0.0.1")
    assert internals.is_lost_server(httpx.ConnectError("refused"))
    assert internals.is_lost_server(httpx.HTTPStatusError("401", request=request, response=httpx.Response(401)))
    assert not internals.is_lost_server(ValueError("a bug"))


# --- Flower's own processes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", internals.COMMANDS)
def test_flowers_commands_are_where_they_were(name: str) -> None:
    assert callable(internals.flower_command(name))


@pytest.mark.parametrize("module", internals.RUNTIMES.values())
def test_an_app_is_checked_before_it_is_installed(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`install_from_fab` of the modules that run apps."""
    runtime, installed = import_module(module), []
    monkeypatch.setattr(runtime, "install_from_fab", lambda content, *more: installed.append(content))

    def check(content: bytes) -> None:
        if content != b"known":
            raise PermissionError

    internals.install_apps_after(check, module)
    with pytest.raises(PermissionError):
        runtime.install_from_fab(b"foreign", None)
    runtime.install_from_fab(b"known", None)
    assert installed == [b"known"]


@pytest.mark.parametrize(
    ("function", "error"),
    [("install_from_fab", OSError(28, "No space left on device")), ("run_", ImportError("no module named graft"))],
)
def test_a_server_app_that_cannot_be_installed_or_loaded_tells_why(
    function: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = import_module(internals.RUNTIMES["flwr-serverapp"])
    told: list[tuple[dict[str, Any], Exception]] = []

    def fails(*given: Any, **more: Any) -> None:
        raise error

    for name in ("install_from_fab", "get_fab_metadata", "get_project_config", "get_fused_config_from_dir", "run_"):
        monkeypatch.setattr(runtime, name, fails)
    monkeypatch.setattr(runtime, "run_from_proto", lambda proto: SimpleNamespace(override_config=proto))
    internals.observe_failures(lambda settings, why: told.append((dict(settings), why)))
    runtime.run_from_proto({"out": "runs/a"})
    with pytest.raises(type(error)):
        getattr(runtime, function)(b"")
    assert told == [({"out": "runs/a"}, error)]


# --- replies that a site has tampered with -------------------------------------------------------------------------


class _FakeClient:
    """A SuperLink with one reply, of node 9 to a message, whose objects are what the node has sent."""

    def __init__(self, envelope: Message, objects: dict[str, bytes], tree: Any) -> None:
        self._proto = import_module("flwr.proto.runtime_pb2")
        self._envelope, self._objects, self._tree = envelope, objects, tree

    def PullMessages(self, request: Any) -> Any:  # noqa: N802
        empty = import_module("flwr.app.message").remove_content_from_message(self._envelope)
        message = import_module("flwr.common.serde").message_to_proto(empty)
        return self._proto.PullAppMessagesResponse(messages_list=[message], message_object_trees=[self._tree])

    def PullObject(self, request: Any) -> Any:  # noqa: N802
        response = import_module("flwr.proto.message_pb2").PullObjectResponse
        return response(object_found=True, object_available=True, object_content=self._objects[request.object_id])

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        pass


@pytest.fixture
def pulled(monkeypatch: pytest.MonkeyPatch, message: Message) -> Callable[..., Message]:
    """What the grid makes of a reply to `message` whose objects have been changed."""
    grid = import_module("flwr.superlink.grid.http_grid")
    inflatable = import_module("flwr.supercore.inflatable.inflatable_object")
    monkeypatch.setattr(grid.HttpGrid, "pull_messages", grid.HttpGrid.pull_messages)
    internals.take_replies_by_envelope()

    def pull(sent: Message, change: Callable[[str, bytes], bytes] = lambda name, content: content) -> Message:
        identifier = sent.object_id
        envelope = Message(CONTENT, reply_to=message)
        for each in (sent, envelope):
            internals.set_message_id(each, identifier)
        objects = {name: each.deflate() for name, each in inflatable.get_all_nested_objects(sent).items()}
        changed = {name: change(name, content) for name, content in objects.items()}
        own = object.__new__(grid.HttpGrid)
        own.node, own._run = import_module("flwr.proto.node_pb2").Node(node_id=1), SimpleNamespace(run_id=5)
        client = _FakeClient(envelope, changed, inflatable.get_object_tree(sent))
        monkeypatch.setattr(grid.HttpGrid, "_runtime_client", client)
        monkeypatch.setattr(grid.HttpGrid, "run", SimpleNamespace(run_id=5))
        (received,) = own.pull_messages(["1"])
        return cast(Message, received)

    return pull


@pytest.fixture
def answered(message: Message) -> Message:
    """Node 9's honest answer to the message."""
    internals.set_message_id(message, "1" * 64)
    return Message(CONTENT, reply_to=message)


def test_an_honest_reply_is_received_as_it_was_sent(pulled: Callable[..., Message], answered: Message) -> None:
    received = pulled(answered)
    assert received.content == CONTENT
    assert (received.metadata.reply_to_message_id, received.metadata.src_node_id) == ("1" * 64, 9)


def test_a_site_cannot_answer_in_the_place_of_another(pulled: Callable[..., Message], answered: Message) -> None:
    """The content of a reply says which message it replies to as well, and Flower believes it."""
    answered.metadata.__dict__["_reply_to_message_id"] = "2" * 64
    answered.metadata.__dict__["_src_node_id"] = 7
    received = pulled(answered)
    assert (received.metadata.reply_to_message_id, received.metadata.src_node_id) == ("1" * 64, 9)


@pytest.mark.parametrize("garbage", [b"", b"Array 3 \x00{}", b"Message 0 \x00\xff", b"\xff" * 100])
def test_a_reply_that_is_no_message_is_an_error_of_its_site(
    garbage: bytes, pulled: Callable[..., Message], answered: Message
) -> None:
    for part in (0, 1, 2, -1):
        names = list(import_module("flwr.supercore.inflatable.inflatable_object").get_all_nested_objects(answered))
        received = pulled(answered, lambda name, content, at=names[part]: garbage if name == at else content)
        assert received.has_error()
        assert received.error.code == internals.UNREADABLE
        assert received.metadata.reply_to_message_id == "1" * 64


def test_an_observer_hears_of_a_supernodes_messages(message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    """`_pull_and_store_message` and `_push_messages`, and their arguments `receive` and `send`."""
    supernode = import_module("flwr.supernode.start_client_internal")
    monkeypatch.setattr(supernode, "_pull_and_store_message", lambda *, receive: 5 if receive() else None)
    monkeypatch.setattr(supernode, "_push_messages", lambda *, send: send("answer"))
    observer, send = MagicMock(), MagicMock()
    internals.observe_messages(observer)
    assert supernode._pull_and_store_message(receive=lambda: None) is None
    assert [call[0] for call in observer.method_calls] == ["on_connected"]
    assert supernode._pull_and_store_message(receive=lambda: (message, None)) == 5
    observer.on_received.assert_called_once_with("train")
    supernode._push_messages(send=send)
    send.assert_called_once_with("answer")
    assert [call[0] for call in observer.method_calls][-2:] == ["on_sending", "on_answered"]


def test_the_parts_of_a_supernode_that_are_observed_have_these_arguments() -> None:
    supernode = import_module("flwr.supernode.start_client_internal")
    assert "receive" in inspect.signature(supernode._pull_and_store_message).parameters
    assert "send" in inspect.signature(supernode._push_messages).parameters
    source = inspect.getsource(supernode.start_client_internal)
    assert "receive=receive" in source
    assert "send=send" in source
