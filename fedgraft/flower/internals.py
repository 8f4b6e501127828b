"""The only module that imports Flower's unstable internals: `flwr.common`, `flwr.proto` and `flwr.supercore`.

tests/flower/test_internals.py names what breaks here when Flower moves something. Heavy parts are imported when used.
"""

from typing import Any

from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

__all__ = ["LOST_CODES", "SUPERLINK_NODE_ID"]

LOST_CODES = frozenset(
    {
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    }
)
"""Errors that Flower returns in place of a site that may still be there, or come back."""


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


def gaussian_epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Epsilon of a repeated Gaussian mechanism of sensitivity 1: Renyi accounting, no amplification."""
    from flwr.supercore import privacy_accounting as accounting
    from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant

    relation, sampling = accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, accounting.SamplingMethod.NO_AMPLIFICATION
    accountant = RdpAccountant(accounting.PrivacyConfig(delta, 1, relation, sampling))
    accountant.compose(accounting.GaussianPrivacyEvent(noise_multiplier, 1, 1), releases)
    return accountant.get_epsilon(delta)


def noise_deviation(noise_multiplier: float, clipping_norm: float, sampled: int) -> float:
    """Standard deviation of the noise on the mean of clipped updates."""
    from flwr.supercore.differential_privacy import compute_stdv

    return compute_stdv(noise_multiplier, clipping_norm, sampled)


def adaptive_noise(noise_multiplier: float, sampled: int, count_deviation: float) -> tuple[float, float]:
    """The count's standard deviation and the sum's multiplier that together cost as much as the given multiplier."""
    from flwr.supercore.differential_privacy import compute_adaptive_noise_params

    deviations: Any = compute_adaptive_noise_params(noise_multiplier, sampled, count_deviation)
    return float(deviations[0]), float(deviations[1])
