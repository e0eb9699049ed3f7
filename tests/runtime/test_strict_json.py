# SPDX-License-Identifier: Apache-2.0
"""JSON that is ambiguous is refused in one line; values are found and shown by their path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastmmoe.runtime.strict_json import MOST_SHOWN, describe_value, parse_strictly, unique_keys


@pytest.mark.parametrize(
    "document", [{}, [], {"a": [1, {"b": None}], "c": 1.5, "ü": "\N{BYTE ORDER MARK}"}, 3, "x", None]
)
def test_a_document_is_read(document: Any) -> None:
    assert parse_strictly(json.dumps(document).encode()) == document
    assert parse_strictly(json.dumps(document, ensure_ascii=False, indent=1).encode()) == document


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": 1, "a": 1}', "key 'a' is given twice"),
        (b'[{"b": {"a": 1, "c": 2, "a": 3}}]', "key 'a' is given twice"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b"[Infinity]", "Infinity is no number of JSON"),
        (b"-Infinity", "-Infinity is no number of JSON"),
        (b"", "no JSON from line 1, column 1 on: Expecting value"),
        (b'{"a": 1,\n "b" 2}', "no JSON from line 2, column 6 on: Expecting ':' delimiter"),
        (b"{} {}", "no JSON from line 1, column 4 on: Extra data"),
        (b'["\xff"]', "byte 2 is no UTF-8"),
        ("[1]".encode("utf-16-le"), "no JSON from line 1, column 2 on"),
        (b"[" * 100_000, "brackets are nested too deeply"),
        (b'{"a":' * 100_000, "brackets are nested too deeply"),
    ],
)
def test_what_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse_strictly(data)
    assert str(refusal.value).startswith(words) and "\n" not in str(refusal.value)


DOCUMENT: dict[str, Any] = {"a": {"b": [10, {"c": "word"}], "d": {}}, "e": [], "f": None, "g": 1.5, "k l": "ü"}


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("$", "dict"),
        ("$.a", "dict"),
        ("$.a.b", "list"),
        ("$.a.b[0]", "10"),
        ("$.a.b[1].c", '"word"'),
        ("$.f", "null"),
        ("$.g", "1.5"),
        ("$.k l", '"ü"'),
        ("$.a.b[2]", ""),
        ("$.a.x", ""),
        ("$.f.x", ""),
        ("$.g[0]", ""),
        ("$.a.b[...]", ""),
        ("$[...]", ""),
        ("$.a.b[0", ""),
        ("", ""),
        ("a.b", ""),
    ],
)
def test_the_value_at_a_path(path: str, shown: str) -> None:
    assert describe_value(DOCUMENT, path) == shown


def test_long_values_are_cut() -> None:
    longest = "x" * (MOST_SHOWN - 2)
    assert describe_value([longest], "$[0]") == f'"{longest}"'
    assert describe_value([f"{longest}y"], "$[0]") == f'"{longest}y...'


def test_the_order_of_keys_is_kept() -> None:
    assert list(unique_keys([("b", 1), ("a", 2)])) == ["b", "a"]
    with pytest.raises(ValueError, match=r"^key 'b' is given twice$"):
        unique_keys([("b", 1), ("a", 2), ("b", 1)])
