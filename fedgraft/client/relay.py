"""Between Flower's process for a message and the site's resident worker: gRPC on a Unix socket, records as bytes.

Both ends run on one machine under one account; the socket's folder has mode 0700. A worker that crashes on a message,
or is killed because it hangs, is restarted by `fedgraft site start` and receives the message again.
"""

import grpc
from flwr.app import RecordDict

from fedgraft.core.errors import RunFailed
from fedgraft.core.refusals import Refusal
from fedgraft.flower.internals import record_bytes, record_from_bytes

SERVICE = "fedgraft.Worker"
KINDS = ("hello", "train", "evaluate", "secagg")
_START_SECONDS = 120.0
"""How long a message waits for a worker that is being restarted."""
_TRIES = 3
MAX_BYTES = 64 * 1024 * 1024
OPTIONS = [("grpc.max_receive_message_length", MAX_BYTES), ("grpc.max_send_message_length", MAX_BYTES)]


def ask_worker(address: str, kind: str, content: RecordDict) -> RecordDict:
    """The worker's answer to a message of a kind; the address is "unix:PATH".

    Raises:
        Refusal: the worker refuses, or the message or the answer is too large.
        RunFailed: there is no worker, or it crashed on the message every time.
    """
    data = record_bytes(content)
    ended = ""
    for _ in range(_TRIES):
        with grpc.insecure_channel(address, OPTIONS) as channel:
            try:
                grpc.channel_ready_future(channel).result(_START_SECONDS)
                return record_from_bytes(channel.unary_unary(f"/{SERVICE}/{kind}")(data))
            except grpc.FutureTimeoutError as error:
                raise RunFailed(f"The site's worker did not start within {_START_SECONDS:.0f} seconds.") from error
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                    raise Refusal.received(str(error.details())) from error
                if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                    limit = f"{MAX_BYTES // 2**20} MB, the limit of a site"
                    raise Refusal("too-large", f"the message or its answer exceeds {limit}") from error
                ended = str(error.details())
    raise RunFailed(f"The site's worker ended {_TRIES} times while handling a message: {ended}.")
