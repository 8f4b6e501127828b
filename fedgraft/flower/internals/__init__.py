"""The only package that imports Flower's unstable internals: `flwr.common`, `flwr.proto`, `flwr.super*`.

tests/flower/test_internals.py names what breaks here when Flower moves something. Heavy parts are imported when used.
"""

from flwr.common.constant import SUPERLINK_NODE_ID

from fedgraft.flower.internals.nodes import (
    ConnectedNode,
    NodeRegistry,
    RegisteredNode,
    connected_nodes,
    is_lost_server,
)
from fedgraft.flower.internals.noise import adaptive_noise, noise_deviation
from fedgraft.flower.internals.processes import (
    COMMANDS,
    RUNTIMES,
    MessageObserver,
    add_request_header,
    flower_command,
    install_apps_after,
    launch_tasks_with,
    observe_failures,
    observe_messages,
    open_superlink_with,
    show_certificate,
)
from fedgraft.flower.internals.replies import LOST_CODES, UNREADABLE, take_replies_by_envelope
from fedgraft.flower.internals.wire import (
    identify,
    message_bytes,
    message_from_bytes,
    record_bytes,
    record_from_bytes,
    set_message_id,
)

__all__ = [
    "COMMANDS",
    "ConnectedNode",
    "LOST_CODES",
    "MessageObserver",
    "NodeRegistry",
    "RUNTIMES",
    "RegisteredNode",
    "SUPERLINK_NODE_ID",
    "UNREADABLE",
    "adaptive_noise",
    "add_request_header",
    "connected_nodes",
    "flower_command",
    "identify",
    "install_apps_after",
    "is_lost_server",
    "launch_tasks_with",
    "message_bytes",
    "message_from_bytes",
    "noise_deviation",
    "observe_failures",
    "observe_messages",
    "open_superlink_with",
    "record_bytes",
    "record_from_bytes",
    "set_message_id",
    "show_certificate",
    "take_replies_by_envelope",
]
