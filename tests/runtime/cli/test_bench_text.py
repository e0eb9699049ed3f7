# SPDX-License-Identifier: Apache-2.0
"""The forms of a made measurement: what a terminal shows, and what other programs read."""

from __future__ import annotations

import csv
import io
import json

import msgspec
import pytest

from fastmmoe.runtime.bench.comparison import SCHEMA, Compared, Comparison
from fastmmoe.runtime.bench.result import Result, Row
from fastmmoe.runtime.cli.bench_text import CSV, JSON, JSON_LINES, MARKDOWN, compared, figure, write
from tests.support.bench_results import BUNDLE, MACHINE, make_result, make_row

ROWS = (
    make_row(test="vision", retention=None, kept_visual_tokens=()),
    make_row((1234.5, 1240.5, 1236.0), tokens=2169, roofline_share=0.0123),
    make_row((0.51, 0.52, 0.53), test="decode", depth=2169, tokens=1),
    make_row(test="first_token", tokens_per_s=None, concurrency=2),
    make_row(test="request", tokens=32, joules=12.34),
)


@pytest.fixture
def result() -> Result:
    return make_result(*ROWS)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234.5, "1,234"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.123, "0.12"),
        (0.0123, "0.012"),
        (0, "0.000"),
    ],
)
def test_figures(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_a_table_of_a_terminal(result: Result) -> None:
    lines = list(write(result, MARKDOWN))
    assert max(map(len, lines)) <= 80
    assert lines[:4] == [
        "demo for cpu, fp32, experts float, bundle abababababab",
        "fastmmoe 0.1.0 (0123456789ab), onnxruntime 1.32.0",
        "A processor, cpu, 2 of 2 cores, governor performance, load 0.1",
        "roofline: 0.1 TFLOPS, 20 GB/s (test)",
    ]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert cells[0] == ["ms", "mean", "sd", "median", "p90", "tok/s", "roof", "J"]
    assert cells[2] == ["vision", "10.2", "0.16", "10.2", "10.4", "7,255", "9.8%", ""]
    assert cells[3][:6] == ["prefill 2169 r0.5", "1,237", "3.12", "1,236", "1,240", "59.9"] and cells[3][6] == "1.2%"
    assert cells[5][:1] + cells[5][5:] == ["first token r0.5 c2", "", "9.8%", ""]
    assert cells[6][0] == "request 32 r0.5" and cells[6][-1] == "12.3"


def test_columns_that_nothing_has_are_absent() -> None:
    row = make_row(roofline_ms=None, roofline_share=None)
    lines = list(write(make_result(row, rates=None), MARKDOWN))
    (head,) = (line for line in lines if line.startswith("| ms"))
    assert "roof" not in head and "J" not in head and not any(line.startswith("roofline") for line in lines)


def test_a_long_heading_is_broken() -> None:
    machine = MACHINE | {
        "device": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        "power_mode": "15W: slow",
    }
    lines = list(write(make_result(*ROWS, machine=machine), MARKDOWN))
    assert max(map(len, lines)) <= 80


def test_comma_separated_values(result: Result) -> None:
    rows = list(csv.DictReader(io.StringIO("\n".join(write(result, CSV)))))
    assert len(rows) == len(ROWS) and set(Row.__struct_fields__) - {"samples_ms"} < rows[0].keys()
    assert (rows[0]["model"], rows[0]["device"], rows[0]["retention"], rows[1]["retention"]) == (
        "demo",
        "A processor",
        "",
        "0.5",
    )
    assert float(rows[1]["median_ms"]) == 1236.0 and rows[1]["kept_visual_tokens"] == "40;32"


def test_json_whole_and_line_by_line(result: Result) -> None:
    (text,) = write(result, JSON)
    assert msgspec.json.decode(text, type=Result) == result
    lines = [json.loads(line) for line in write(result, JSON_LINES)]
    whole = json.loads(text)
    assert len(lines) == len(ROWS)
    for line, row in zip(lines, whole["rows"], strict=True):
        assert line == {name: value for name, value in whole.items() if name != "rows"} | row


def test_a_comparison_fits_a_terminal() -> None:
    def row(verdict: str, low: float | None, high: float | None, **changed: object) -> Compared:
        values = {"test": "decode", "retention": 0.25, "depth": 2169, "batch": 1, "concurrency": 1, "tokens": 1}
        medians = {"median_ms": (1234.5, 1240.0), "samples": (5, 5), "ratio": 1.004}
        return Compared(**values | changed | medians, low=low, high=high, verdict=verdict)  # type: ignore[arg-type]

    found = Comparison(
        schema=SCHEMA,
        files=("a.json", "b.json"),
        confidence=0.95,
        differences=("commit: A none, B 0123",),
        rows=(row("no difference told", 0.987, 1.02), row("too few samples", None, None, test="first_token")),
        only=("vision: only in a.json",),
    )
    lines = list(compared(found))
    assert lines[:3] == ["A a.json", "B b.json", "commit: A none, B 0123"] and lines[-1] == "vision: only in a.json"
    assert lines[4].split() == ["median", "ms", "A", "B", "B/A", "95%", "interval"]
    assert lines[5].split() == [
        "decode",
        "d2169",
        "r0.25",
        "1,234",
        "1,240",
        "1.004",
        "0.987-1.020",
        *["no", "difference", "told"],
    ]
    assert max(map(len, lines)) <= 80


def test_the_bundle_has_its_engines() -> None:
    (first, *_) = write(make_result(*ROWS, bundle=BUNDLE | {"engines": "tensorrt 10.16"}), MARKDOWN)
    assert first == "demo for cpu, fp32, experts float, tensorrt 10.16, bundle abababababab"
    linears = {"dense": "int8", "head": "float", "vision": "bf16"}
    (first, *_) = write(make_result(*ROWS, bundle=BUNDLE | {"linears": linears}), MARKDOWN)
    assert first == "demo for cpu, fp32, experts float, dense int8, vision bf16, bundle abababababab"
