"""Logs: one line an entry whatever it holds, and no disk filled by them."""

import json
import logging
import subprocess
import sys
from pathlib import Path

from fedgraft.core import logs
from fedgraft.core.logs import JsonLines


def test_a_message_can_add_neither_a_line_nor_a_control_character() -> None:
    record = logging.makeLogRecord({"msg": "left out: %s", "args": ("a\nRunFailed: b\x1b[2J",), "levelname": "WARNING"})
    line = JsonLines("server").format(record)
    assert line.isprintable()
    said = json.loads(line)
    assert said.keys() == {"time", "level", "part", "message"}
    assert (said["level"], said["part"]) == ("warning", "server")
    assert said["message"] == "left out: a\nRunFailed: b\x1b[2J"


def test_an_exception_stays_on_its_line() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": sys.exc_info()})
    line = JsonLines("worker").format(record)
    assert "\n" not in line
    assert "ValueError: no" in json.loads(line)["traceback"]


def test_a_rotated_log_goes_on_in_place_and_the_oldest_is_dropped(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("a") as writer:
        for number in range(logs.KEPT + 2):
            writer.write(f"{number}\n")
            writer.flush()
            logs.rotate_in_place(log)
        writer.write("new\n")
    assert log.read_text() == "new\n"
    kept = {path.name: path.read_text() for path in tmp_path.iterdir() if path != log}
    assert kept == {"a.log.1": "4\n", "a.log.2": "3\n", "a.log.3": "2\n"}


def test_a_person_reads_what_fedgraft_says_and_of_other_libraries_their_warnings() -> None:
    code = (
        "import logging; from fedgraft.core.logs import log_for_people; log_for_people()\n"
        "for name in ('fedgraft.deployment', 'httpx', 'matplotlib.font_manager'):\n"
        "    logging.getLogger(name).info('from %s', name); logging.getLogger(name).warning('warned by %s', name)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stderr
    assert [line.partition(" ")[2].partition(" ")[2] for line in said.splitlines()] == [
        "from fedgraft.deployment",
        "warned by fedgraft.deployment",
        "warned by httpx",
        "warned by matplotlib.font_manager",
    ]
