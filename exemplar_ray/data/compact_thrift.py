"""Thrift's compact protocol, as far as parquet's own structures need it: pyarrow does not give page indexes out.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)
_I32 = 5


def read_struct(content: bytes) -> dict[int, Any]:
    """Read a structure: {field's number: value}; of integers, bytes, lists and structures.

    Raises:
        ValueError: it is none.
    """
    try:
        return _Reader(content).struct()
    except IndexError:
        raise ValueError("a Thrift structure ends early") from None


def write_struct(fields: Sequence[tuple[int, int | bytes]]) -> bytes:
    """Write a structure of int32 values, and of structures that were written before, by ascending field number."""
    written, before = bytearray(), 0
    for number, value in fields:
        kind = _STRUCT if isinstance(value, bytes) else _I32
        written.append((number - before) << 4 | kind)
        written += value if isinstance(value, bytes) else varint(value << 1 ^ value >> 31)
        before = number
    return bytes(written) + b"\0"


def varint(value: int) -> bytes:
    """Write a number from 0 in as few bytes as it needs."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            kind, step = head & 0x0F, head >> 4
            number = number + step if step else self._integer()
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            return self._take(self._varint())
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 0x0F) for _ in range(count)]
        if kind == _STRUCT:
            return self.struct()
        if kind in (_BYTE, _TRUE, _FALSE):
            return self._byte()
        if kind == _DOUBLE:
            return self._take(8)
        raise ValueError(f"no parquet structure has a Thrift value of kind {kind}")

    def _byte(self) -> int:
        value = self._content[self._place]
        self._place += 1
        return value

    def _take(self, count: int) -> bytes:
        taken = self._content[self._place : self._place + count]
        if len(taken) < count:
            raise IndexError
        self._place += count
        return taken

    def _varint(self) -> int:
        value, shift = 0, 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
