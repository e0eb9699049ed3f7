# SPDX-License-Identifier: Apache-2.0
"""The smallest ONNX graph that an engine can be built of: y = Identity(x), float32 [1]."""

from __future__ import annotations

IR_VERSION, OPSET = 9, 17
_FLOAT, _LENGTH_DELIMITED = 1, 2


def _field(number: int, value: bytes | int) -> bytes:
    """A field of a protobuf message; all of ours are shorter than 128 bytes."""
    if isinstance(value, int):
        return bytes((number << 3, value))
    return bytes((number << 3 | _LENGTH_DELIMITED, len(value))) + value


def _value(name: bytes) -> bytes:
    """ValueInfoProto of float32 [1]."""
    shape = _field(1, _field(1, 1))
    return _field(1, name) + _field(2, _field(1, _field(1, _FLOAT) + _field(2, shape)))


def _graph() -> bytes:
    node = _field(1, b"x") + _field(2, b"y") + _field(4, b"Identity")
    return _field(1, node) + _field(2, b"tiny") + _field(11, _value(b"x")) + _field(12, _value(b"y"))


TINY_GRAPH = _field(1, IR_VERSION) + _field(7, _graph()) + _field(8, _field(2, OPSET))
