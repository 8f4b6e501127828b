"""Records and messages as bytes, and what Flower's engines set in a message."""

from flwr.app import Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict


def record_bytes(content: RecordDict) -> bytes:
    """A message's content for the wire."""
    data: bytes = recorddict_to_proto(content).SerializeToString()
    return data


def record_from_bytes(data: bytes) -> RecordDict:
    """A message's content from the wire."""
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


def message_bytes(message: Message) -> bytes:
    """A whole message for the wire."""
    data: bytes = message_to_proto(message).SerializeToString()
    return data


def message_from_bytes(data: bytes) -> Message:
    """A whole message from the wire."""
    return message_from_proto(ProtoMessage.FromString(data))


def set_message_id(message: Message, identifier: str) -> None:
    """Set the identifier that a message's reply refers to; Flower's own grids do so when they push it."""
    message.metadata.__dict__["_message_id"] = identifier


def identify(run: int, node: int) -> None:
    """Set the sender named in the messages of this process, as Flower's engines do."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, node
