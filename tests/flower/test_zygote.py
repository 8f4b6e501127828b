"""Processes that are forked from one that has imported what they need."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.flower.zygote import Zygote

_SERVES = """
import json, os, signal, sys
from fedgraft.flower.zygote import serve

zygote, (out, *arguments) = os.getpid(), serve()
lines = sys.stdin.read()
open_files = [number for number in range(256) if os.path.exists(f"/proc/self/fd/{number}")]
found = {
    "zygote": zygote, "parent": os.getppid(), "arguments": arguments, "lines": lines, "files": open_files,
    "default": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
}
with open(f"{out}.tmp", "w") as file:
    json.dump(found, file)
os.rename(f"{out}.tmp", out)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a zygote needs Linux")


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    found = Zygote([sys.executable, "-c", _SERVES])
    yield found
    found._end()


def _answer(out: Path) -> dict[str, object]:
    deadline = time.monotonic() + 60
    while not out.exists():
        assert time.monotonic() < deadline, "it has not answered; this only ends a test that would hang"
        time.sleep(0.02)
    answer: dict[str, object] = json.loads(out.read_text())
    return answer


def test_each_request_is_a_process_of_the_same_zygote_with_a_standard_input_of_its_own(
    zygote: Zygote, tmp_path: Path
) -> None:
    for number in range(3):
        zygote.start([str(tmp_path / str(number)), "--number", str(number)], f"secret {number}")
    answers = [_answer(tmp_path / str(number)) for number in range(3)]
    assert [answer["arguments"] for answer in answers] == [["--number", str(number)] for number in range(3)]
    assert [answer["lines"] for answer in answers] == [f"secret {number}\n" for number in range(3)]
    assert len({answer["zygote"] for answer in answers}) == 1
    assert all(answer["parent"] == answer["zygote"] and answer["default"] for answer in answers)


def test_a_child_keeps_no_way_to_the_zygote(zygote: Zygote, tmp_path: Path) -> None:
    zygote.start([str(tmp_path / "out")], "secret")
    assert _answer(tmp_path / "out")["files"] == [0, 1, 2]


def test_a_zygote_that_was_killed_is_started_again(zygote: Zygote, tmp_path: Path) -> None:
    zygote.start([str(tmp_path / "first")], "secret")
    first = _answer(tmp_path / "first")["zygote"]
    assert isinstance(first, int)
    os.kill(first, signal.SIGKILL)
    zygote.start([str(tmp_path / "second")], "secret")
    assert _answer(tmp_path / "second")["zygote"] != first


def test_a_zygote_ends_with_the_process_that_uses_it(zygote: Zygote, tmp_path: Path) -> None:
    zygote.start([str(tmp_path / "out")], "secret")
    _answer(tmp_path / "out")
    assert zygote._channel is not None
    assert zygote._process is not None
    zygote._channel.close()
    assert zygote._process.wait(60) == 0
