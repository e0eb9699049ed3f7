# SPDX-License-Identifier: Apache-2.0
"""Names of rows, and files that are no result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.bench.result import SCHEMA, read_result, row_name, setting_name
from fastmmoe.runtime.bench.settings import Setting
from fastmmoe.runtime.errors import InvalidRequest
from tests.support.bench_results import make_result, make_row


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"test": "vision", "retention": None}, "vision"),
        ({"test": "prefill", "tokens": 241}, "prefill 241 r0.5"),
        ({"test": "prefill", "tokens": 964, "batch": 4}, "prefill 241 r0.5 b4"),
        ({"test": "decode", "depth": 241}, "decode d241 r0.5"),
        ({"test": "first_token"}, "first token r0.5"),
        ({"test": "request", "tokens": 32, "concurrency": 2}, "request 32 r0.5 c2"),
    ],
)
def test_names(changed: dict[str, Any], name: str) -> None:
    assert row_name(make_row(**changed)) == name
    assert setting_name(Setting(1.0)) == " r1"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    result = make_result(make_row(), make_row(test="decode", depth=7, joules=1.5))
    path = tmp_path / "a.json"
    path.write_text(json.dumps(msgspec.to_builtins(result)))
    assert read_result(path) == result


def test_keys_that_came_later_are_left_alone(tmp_path: Path) -> None:
    values = msgspec.to_builtins(make_result(make_row())) | {"later": 1}
    values["rows"][0]["later"] = 2
    (tmp_path / "a.json").write_text(json.dumps(values))
    assert len(read_result(tmp_path / "a.json").rows) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file; write one with fastmmoe bench OUT -o json > FILE"),
        ("", "no JSON from line 1"),
        ('{"schema": 1, "schema": 2}', "key 'schema' is given twice"),
        ("[]", f"no schema, expected '{SCHEMA}'"),
        ('{"schema": "fastmmoe-bench/9"}', f"schema 'fastmmoe-bench/9', expected '{SCHEMA}'"),
        (f'{{"schema": "{SCHEMA}"}}', "damaged: Object missing required field `machine`"),
        (
            f'{{"schema": "{SCHEMA}", "machine": {{}}, "bundle": {{}}, "settings": {{}}, "rates": null, "rows": []}}',
            "damaged: bundle has no sha256",
        ),
    ],
)
def test_what_is_no_result(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidRequest) as refused:
        read_result(path)
    assert str(refused.value).startswith(f"{path}: ") and said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_directory_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no file; write one"):
        read_result(tmp_path)


EDITS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"samples_ms": []}, {}, "Expected `array` of length >= 1 - at `$.rows[0].samples_ms`"),
    ({"samples_ms": [1.0, -1.0]}, {}, "Expected `float` > 0.0 - at `$.rows[0].samples_ms[1]`"),
    ({"median_ms": 0.0}, {}, "Expected `float` > 0.0 - at `$.rows[0].median_ms`"),
    ({"median_ms": 102.0}, {}, "row 'prefill 74 r0.5' has median_ms 102, its samples 10.2"),
    ({"batch": 0}, {}, "Expected `int` >= 1 - at `$.rows[0].batch`"),
    ({"tokens": -7}, {}, "Expected `int` >= 1 - at `$.rows[0].tokens`"),
    ({"retention": 1e300}, {}, "Expected `float` <= 1.0 - at `$.rows[0].retention`"),
    ({}, {"bundle": {"sha256": 5}}, "bundle has no sha256"),
    ({}, {"bundle": {"sha256": "0", "linears": ["int8"]}}, "bundle.linears is no object"),
    ({}, {"machine": {"versions": "1.0"}}, "machine.versions is no object"),
]


@pytest.mark.parametrize(("of_row", "of_result", "said"), EDITS)
def test_what_was_edited(of_row: dict[str, Any], of_result: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Values that no measurement has, of which a comparison would tell something all the same."""
    values = msgspec.to_builtins(make_result(make_row())) | of_result
    values["rows"] = [row | of_row for row in values["rows"]]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InvalidRequest) as refused:
        read_result(path)
    assert str(refused.value).startswith(f"{path}: damaged: {said}")


def test_a_row_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(msgspec.to_builtins(make_result(make_row(), make_row()))))
    with pytest.raises(InvalidRequest, match=r"damaged: row 'prefill 74 r0\.5' is given twice"):
        read_result(path)
