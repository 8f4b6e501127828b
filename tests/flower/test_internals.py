"""What fedgraft uses of Flower beyond its promises: in one module, and each thing by a test that names what broke."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

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
        str(path.relative_to(ROOT))
        for path in files
        for name in _imported(path)
        if any(f"{name}.".startswith(f"{private}.") for private in NOT_PROMISED)
    }
    assert found == {"fedgraft/flower/internals.py"}


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
