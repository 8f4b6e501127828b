"""What a server reads of a site's reply: errors that Flower puts in its place, and whose it is."""

from collections.abc import Iterable

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto

LOST_CODES = frozenset(
    {
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    }
)
"""Errors that Flower returns in place of a site that may still be there, or come back."""
UNREADABLE = 101
"""Error code of a reply that cannot be read; Flower's own codes are lower."""


def take_replies_by_envelope() -> None:
    """Let the grid of this process take a reply's sender, and what it replies to, from its envelope.

    Flower takes them from the content, which the site has written, where the SuperLink has compared only the envelope
    with the message that was sent; and a content that cannot be read raises an exception there, after other replies
    have been fetched and are lost with it. Here such a reply is an error of its site.
    """
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
    from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_objects
    from flwr.superlink.grid.http_grid import HttpGrid

    def pulled(self: HttpGrid, message_ids: Iterable[str]) -> list[Message]:
        client, node, run = self._runtime_client, self.node, self.run.run_id
        fetch = make_pull_object_fn_protobuf(pull_object_protobuf=client.PullObject, node=node, run_id=run)
        replies = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        received = []
        for envelope, tree in zip(replies.messages_list, replies.message_object_trees, strict=True):
            metadata = message_from_proto(envelope).metadata
            try:
                objects = pull_objects([each.object_id for each in iterate_object_tree(tree)], fetch)
            except ObjectPullError as error:
                received.append(make_message(metadata, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, str(error))))
                continue
            client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=metadata.message_id)
            )
            received.append(_opened(metadata, objects))
        return received

    HttpGrid.pull_messages = pulled  # type: ignore[method-assign]


def _opened(metadata: Metadata, objects: dict[str, bytes]) -> Message:
    """A reply of its objects, under the metadata of its envelope; an error where they are no message."""
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    try:
        inner = inflate_object_from_contents(metadata.message_id, objects)
        if isinstance(inner, Message) and inner.has_error():
            return make_message(metadata, error=Error(int(inner.error.code), str(inner.error.reason)))
        if isinstance(inner, Message) and isinstance(inner.content, RecordDict):
            return make_message(metadata, inner.content)
    except Exception:  # whatever a site has sent, it is only its own answer that is lost
        pass
    return make_message(metadata, error=Error(UNREADABLE, "its answer cannot be read: it is no message of Flower's"))
