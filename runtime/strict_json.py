# SPDX-License-Identifier: Apache-2.0
"""JSON that says one thing only: no key twice, no NaN or Infinity, no numbers or nesting beyond reason."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

MOST_SHOWN = 60
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


def parse_strictly(data: bytes) -> Any:
    """The document.

    Raises:
        ValueError: what is no JSON or is ambiguous, in words of one line.
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON from line {error.lineno}, column {error.colno} on: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8") from error
    except RecursionError as error:
        raise ValueError("brackets are nested too deeply") from error


def describe_value(document: Any, path: str) -> str:
    """What stands at a path such as "$.a.b[0]", shortened; "" where the path does not say which value is meant."""
    if not path.startswith("$") or _STEP.sub("", path[1:]):
        return ""
    value = document
    for key, index in _STEP.findall(path):
        try:
            value = value[key] if key else value[int(index)]
        except (KeyError, IndexError, TypeError):
            return ""
    shown = json.dumps(value, ensure_ascii=False) if not isinstance(value, (dict, list)) else type(value).__name__
    return shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}..."


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, for `json.loads`; ValueError where a key is given twice: one value would get lost."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} is given twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
