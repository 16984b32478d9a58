"""A look at protobuf's wire format without parsing: how large the parts of a message are, in bounded memory.

A parser allocates an object for every two bytes of a hostile message; this scan allocates nothing and stops early.
Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class NotProtobufError(ValueError):
    """The bytes are no protobuf message, or end in the middle of one."""


def fields_of(message: memoryview, most: int) -> Iterator[tuple[int, memoryview]]:
    """Field numbers and contents of a message of at most ``most`` fields; contents are empty where they are a number.

    Raises
    ------
    NotProtobufError
        If the message ends inside a field, has a malformed field, or too many fields.
    """
    at, end = 0, len(message)
    for _ in range(most + 1):
        if at == end:
            return
        start = at
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        size = 0
        if wire_type == _VARINT:
            _, at = _varint(message, at)
        elif wire_type == _BYTES:
            size, at = _varint(message, at)
        elif wire_type in (_FIXED32, _FIXED64):
            at += 4 if wire_type == _FIXED32 else 8
        else:
            raise NotProtobufError(f"byte {start} starts a field of wire type {wire_type}")
        if at + size > end:
            raise NotProtobufError(f"{at + size - end} bytes are missing")
        yield number, message[at : at + size]
        at += size
    raise NotProtobufError(f"one message has more than {most} fields")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A variable-length integer and where it ends."""
    value = 0
    for i in range(10):
        if at + i >= len(message):
            raise NotProtobufError("the last bytes are missing")
        byte = message[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise NotProtobufError(f"byte {at} starts a number of more than 64 bits")
