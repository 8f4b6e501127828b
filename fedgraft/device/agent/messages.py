"""What a device and a registry say to each other: JSON of bounded size over gRPC, without generated code.

Every method is unary. A request and its answer are JSON objects; only the answer to `fetch` is raw bytes. A session
opens with a challenge that the device signs; later requests carry the session in the metadata of the call.
"""

import json
import re
from typing import Any

SERVICE = "fedgraft.Fleet"
METHODS = ("enrol", "challenge", "login", "check", "fetch", "report")
SESSION_HEADER = "fedgraft-session"
PROTOCOL = 1
REQUEST_LIMIT = 256 * 1024
ANSWER_LIMIT = 2 * 1024 * 1024
CHUNK = 64 * 1024
"""The bytes of a file in one answer: few enough that a device on a slow line has them within its patience."""
REPORTED_CLASSES = 1000
"""The most classes whose counts are in one report."""
LATENCY_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Milliseconds: the upper bounds of the groups that latencies are counted in; the last group has none."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of groups, tags, channels and devices."""


def login_text(fleet: str, device: str, challenge: str) -> bytes:
    """What a device signs to open a session."""
    return f"fedgraft fleet login {PROTOCOL}\n{fleet}\n{device}\n{challenge}".encode()


def enrol_text(token: str, public_key: str) -> bytes:
    """What a device signs to enrol, so that it has the key that it names."""
    return f"fedgraft fleet enrol {PROTOCOL}\n{token}\n{public_key}".encode()


def encoded(content: dict[str, Any]) -> bytes:
    """A message as bytes."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def decoded(data: bytes, limit: int) -> dict[str, Any]:
    """A message from bytes; raises ValueError if it is too large, or not a JSON object."""
    if len(data) > limit:
        raise ValueError(f"a message of {len(data):,} bytes exceeds the limit of {limit:,}")
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("a message is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("a message is not a JSON object")
    return content


def text(content: dict[str, Any], key: str, most: int = 200) -> str:
    """A short text in a message; raises ValueError if there is none."""
    value = content.get(key)
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{key} is not a text of at most {most} characters")
    return value


def name(content: dict[str, Any], key: str) -> str:
    """A name in a message; raises ValueError if it has other characters than letters, digits and . _ -"""
    value = text(content, key)
    if not NAME.fullmatch(value):
        raise ValueError(f"{key} is not a name of at most 64 letters, digits and . _ -")
    return value


def whole(content: dict[str, Any], key: str, most: int = 2**53 - 1) -> int:
    """A nonnegative whole number in a message; raises ValueError if there is none."""
    value = content.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{key} is not a whole number from 0 to {most}")
    return value


def number(content: dict[str, Any], key: str, most: float) -> float:
    """A nonnegative number in a message; raises ValueError if there is none."""
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{key} is not a number from 0 to {most:g}")
    return float(value)


def digest(content: dict[str, Any], key: str) -> str:
    """A SHA-256 or a public key in a message, 64 hexadecimal digits; raises ValueError if there is none."""
    value = content.get(key)
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{key} is not 64 hexadecimal digits")
    return value


def one_line(message: object, most: int = 300) -> str:
    """A text from another machine as one printable line."""
    shown = "".join(c if c.isprintable() else " " for c in str(message)[: 4 * most])
    return " ".join(shown.split())[:most]
