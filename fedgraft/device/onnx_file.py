"""What a device checks of an ONNX file before onnxruntime sees it: that all of it is in the file itself.

A tensor may name another file for its values ("external data"), which no manifest signs; onnxruntime would read it
from beside the process. The check walks the protobuf encoding, since a device has no onnx package.
"""

from collections.abc import Iterator

_LARGEST_DEPTH = 100
"""Of nested messages: the limit of protobuf's own parsers."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}
_IR_VERSION = 1
_ORT_FORMAT = b"ORTM"

_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""The messages of onnx.proto that can hold a tensor: by the number of a field, what is in it."""


def check_self_contained(content: bytes) -> None:
    """Check that a model's file refers to no other file.

    Raises:
        ValueError: it does, or it is not an ONNX model.
    """
    if content[4:8] == _ORT_FORMAT:
        raise ValueError("it is in the format of onnxruntime, not in that of ONNX")
    versions = 0
    pending = [("model", memoryview(content), 0)]
    while pending:
        kind, message, depth = pending.pop()
        if depth > _LARGEST_DEPTH:
            raise ValueError(f"its messages are nested more than {_LARGEST_DEPTH} deep")
        children = _CHILDREN[kind]
        for number, wire, value in _fields(message):
            if kind == "model" and (number, wire) == (_IR_VERSION, _VARINT):
                versions += 1
            if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
                raise ValueError("a tensor has its values in another file, which no signature covers")
            if number in children and isinstance(value, memoryview):
                pending.append((children[number], value, depth + 1))
    if not versions:
        raise ValueError("it is not an ONNX model")


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """The fields of a message: number, wire type and value; raises ValueError where the encoding is broken."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield number, wire, value
            continue
        if wire == _LENGTH:
            length, place = _varint(message, place)
        elif wire in _SIZES:
            length = _SIZES[wire]
        else:
            raise ValueError("it is not an ONNX model")
        if length > end - place:
            raise ValueError("it is incomplete")
        yield number, wire, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 70:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError("it is incomplete")
