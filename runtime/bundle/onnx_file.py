# SPDX-License-Identifier: Apache-2.0
"""Weights and operators of our own in an .onnx file, read without the onnx package.

Only the fields that are needed are looked at; numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

DOMAIN = b"fastmmoe"
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MODEL_GRAPH, MODEL_FUNCTIONS = 7, 25
GRAPH_NODE, GRAPH_INITIALIZER, FUNCTION_NODE = 1, 5, 7
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_TYPE, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 3, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_FLOAT, ATTRIBUTE_INT, ATTRIBUTE_STRING = 1, 2, 3, 4
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 5, 6, 10, 11
TENSOR_DIMS, TENSOR_NAME, TENSOR_EXTERNAL_DATA = 1, 8, 13
ENTRY_KEY, ENTRY_VALUE = 1, 2
# An entry of external_data as every writer leaves it: the key "location", then the length of a name and the name.
LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\x7f])(.{0,127})", re.DOTALL)


@dataclass(frozen=True)
class Weight:
    """A tensor that a graph holds or refers to.

    Attributes:
        size: elements.
        location: the file its values are in as the graph names it; "" where the graph holds them.
    """

    name: str
    size: int
    location: str


@dataclass(frozen=True)
class Operator:
    """A node of our own domain.

    Attributes:
        kind: its type.
        attributes: those that are numbers or strings.
        inputs, outputs: names of its values.
    """

    name: str
    kind: str
    attributes: dict[str, float | str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_weights(path: Path) -> list[Weight]:
    """Every tensor of an .onnx file, those of subgraphs, attributes and functions included.

    Raises:
        ValueError: it is no protobuf.
    """
    with _reading(path):
        return list(_of_model(memoryview(path.read_bytes())))


def read_operators(path: Path) -> list[Operator]:
    """The nodes of the graph itself that are in our own domain.

    Raises:
        ValueError: it is no protobuf.
    """
    with _reading(path):
        graphs = (value for number, value in _fields(memoryview(path.read_bytes())) if number == MODEL_GRAPH)
        nodes = (value for graph in graphs for number, value in _fields(graph) if number == GRAPH_NODE)
        # Most nodes are standard operators, which need not be read.
        return [one for node in nodes if DOMAIN in bytes(node) and (one := _operator(node)) is not None]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (IndexError, UnicodeDecodeError, RecursionError, struct.error) as error:
        raise ValueError(f"{path}: no ONNX graph, or a damaged one") from error


def _operator(data: memoryview) -> Operator | None:
    texts: dict[int, str] = {}
    attributes: dict[str, float | str] = {}
    values: dict[int, list[str]] = {NODE_INPUT: [], NODE_OUTPUT: []}
    for number, value in _fields(data):
        if number == NODE_ATTRIBUTE:
            name, content = _attribute(value)
            attributes |= {} if content is None else {name: content}
        elif number in (NODE_NAME, NODE_TYPE, NODE_DOMAIN):
            texts[number] = bytes(value).decode()
        elif number in values:
            values[number].append(bytes(value).decode())
    if texts.get(NODE_DOMAIN) != DOMAIN.decode():
        return None
    inputs, outputs = map(tuple, values.values())
    return Operator(texts.get(NODE_NAME, ""), texts.get(NODE_TYPE, ""), attributes, inputs, outputs)


def _attribute(data: memoryview) -> tuple[str, float | str | None]:
    """Name and value of an attribute, None where it is neither a number nor a string."""
    name: str = ""
    content: float | str | None = None
    for number, value in _fields(data, numbers=(ATTRIBUTE_FLOAT, ATTRIBUTE_INT)):
        if number == ATTRIBUTE_NAME:
            name = bytes(value).decode()
        elif number == ATTRIBUTE_FLOAT:
            (content,) = struct.unpack("<f", value)
        elif number == ATTRIBUTE_INT:
            (content,) = _varints(value)
        elif number == ATTRIBUTE_STRING:
            content = bytes(value).decode(errors="replace")
    return name, content


def weight_files(path: Path) -> set[str]:
    """Names of the files that a graph's weights are in, found without reading the graph field by field."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return set()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return {found[2][: found[1][0]].decode(errors="replace") for found in LOCATION.finditer(data)}


def _of_model(data: memoryview) -> Iterator[Weight]:
    for number, value in _fields(data):
        if number == MODEL_GRAPH:
            yield from _of_graph(value)
        elif number == MODEL_FUNCTIONS:
            for inner, node in _fields(value):
                if inner == FUNCTION_NODE:
                    yield from _of_node(node)


def _of_graph(data: memoryview) -> Iterator[Weight]:
    for number, value in _fields(data):
        if number == GRAPH_INITIALIZER:
            yield _tensor(value)
        elif number == GRAPH_NODE:
            yield from _of_node(value)


def _of_node(data: memoryview) -> Iterator[Weight]:
    for number, attribute in _fields(data):
        if number != NODE_ATTRIBUTE:
            continue
        for inner, value in _fields(attribute):
            if inner in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
                yield _tensor(value)
            elif inner in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
                yield from _of_graph(value)


def _tensor(data: memoryview) -> Weight:
    dims: list[int] = []
    name = location = ""
    for number, value in _fields(data, numbers=(TENSOR_DIMS,)):
        if number == TENSOR_DIMS:
            dims += _varints(value)
        elif number == TENSOR_NAME:
            name = bytes(value).decode()
        elif number == TENSOR_EXTERNAL_DATA:
            entry = {inner: bytes(text).decode() for inner, text in _fields(value)}
            if entry.get(ENTRY_KEY) == "location":
                location = entry.get(ENTRY_VALUE, "")
    return Weight(name, prod(dims), location)


def _fields(data: memoryview, numbers: tuple[int, ...] = ()) -> Iterator[tuple[int, memoryview]]:
    """(number, value) of the fields that hold bytes, and of those of integers or floats that are asked for."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise IndexError
        start = at
        if kind == BYTES:
            size, at = _varint(data, at)
            start, at = at, at + size
        elif kind == VARINT:
            _, at = _varint(data, at)
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise IndexError
        if at > end:
            raise IndexError
        if kind == BYTES or (number in numbers and kind in (VARINT, FIXED32)):
            yield number, data[start:at]


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError
