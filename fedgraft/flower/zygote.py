"""Start the processes of an app by forking one that has imported Flower already, and nothing else.

Importing Flower takes longer than all that such a process does. The zygote has one thread, sees no message and no
token, and does nothing but fork. It is reached by an unnamed pair of sockets alone, which its children do not keep: a
confined child could otherwise ask it for a process that is not confined.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

_LONGEST_REQUEST, _DONE, _ANSWER_SECONDS = 1 << 16, b"1", 60.0


class Zygote:
    """The zygote, as the process that uses it sees it: started when it is needed, and again when it has ended.

    Args:
        command: the words that start a process that calls `serve`.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def start(self, arguments: Sequence[str], first_line: str) -> None:
        """Start a process.

        Args:
            arguments: that `serve` returns in it.
            first_line: of its standard input, which ends after it; the zygote cannot read it.

        Raises:
            OSError: the zygote cannot be started.
        """
        request = json.dumps(list(arguments)).encode()
        read, write = os.pipe()
        try:
            if not self._request(request, read) and not self._request(request, read):
                raise OSError("The process from which others are forked ends at once, or does not answer.")
            os.write(write, f"{first_line}\n".encode())
        finally:
            os.close(read)
            os.close(write)

    def _request(self, request: bytes, file: int) -> bool:
        """Ask for a process; False if the zygote has ended, or does not answer."""
        try:
            channel = self._open()
            socket.send_fds(channel, [request], [file])
            if channel.recv(1):
                return True
        except OSError:
            pass
        self._end()
        return False

    def _open(self) -> socket.socket:
        if self._channel is None:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._channel.settimeout(_ANSWER_SECONDS)
            with theirs:
                self._process = subprocess.Popen(self._command, stdin=theirs.fileno())
        return self._channel

    def _end(self) -> None:
        if self._channel is not None and self._process is not None:
            self._channel.close()
            self._process.kill()
            self._process.wait()
        self._channel = self._process = None


def serve() -> list[str]:
    """Fork a process for each request on standard input; return in each child, with the arguments of its request.

    Raises:
        SystemExit: in the zygote, when the process that uses it has ended.
    """
    assert threading.active_count() == 1, "A process with several threads cannot be forked."
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets children that have ended
    channel = socket.socket(fileno=sys.stdin.fileno())
    while True:
        request, (read, *_), _, _ = _received(channel)
        if os.fork() == 0:
            break
        os.close(read)
        channel.send(_DONE)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    channel.detach()
    os.dup2(read, sys.stdin.fileno())
    os.close(read)
    arguments: list[str] = json.loads(request)
    return arguments


def _received(channel: socket.socket) -> tuple[bytes, list[int], int, object]:
    found = socket.recv_fds(channel, _LONGEST_REQUEST, 1)
    if not found[0]:
        sys.exit()
    return found
