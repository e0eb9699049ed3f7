# SPDX-License-Identifier: Apache-2.0
"""What a plan says: the verdict in words, lines within 80 columns, JSON without anything but plain values."""

from __future__ import annotations

import json
import re

import pytest

from fastmmoe.exporter.config import ExportConfig, Weights
from fastmmoe.exporter.fit.cli import make_report
from fastmmoe.exporter.fit.plan import PlanOptions
from fastmmoe.exporter.fit.sizes import published_configs
from fastmmoe.exporter.fit.text import as_json, describe, verdict
from fastmmoe.runtime.machines.devices import DEVICES


@pytest.mark.parametrize(
    ("model", "target", "expected"),
    [
        ("deepseek-vl2-tiny", "orin-nx-16gb", r"fits, \d\.\d\d GB to spare"),
        (
            "deepseek-vl2-small",
            "orin-nx-16gb",
            r"does not fit, 1\d\.\d\d GB too much; --weights int4 does, with 2\.\d\d GB to spare",
        ),
        ("InternVL3_5-241B-A28B", "orin-nx-16gb", "does not fit, .* GB too much; no other way of storing it does"),
    ],
)
def test_verdicts(model: str, target: str, expected: str) -> None:
    report = make_report(model, PlanOptions(target))
    assert re.fullmatch(expected, verdict(report))
    assert as_json(report)["verdict"] == verdict(report)


@pytest.mark.parametrize("word", ["bf16", "int8"])
def test_a_word_for_all_formats_is_not_what_would_fit(word: Weights) -> None:
    report = make_report("deepseek-vl2-small", PlanOptions("orin-nx-16gb", export=ExportConfig(weights=word)))
    assert "; --weights int4 does, with" in verdict(report)


@pytest.mark.parametrize("model", ["demo", *published_configs()])
def test_lines_fit_a_terminal(model: str) -> None:
    for machine in DEVICES:
        wide = [line for line in describe(make_report(model, PlanOptions(machine))) if len(line) > 80]
        assert not wide


def test_the_build_that_needs_swap_says_so() -> None:
    report = make_report("deepseek-vl2-small", PlanOptions("orin-nano-8gb"))
    found = as_json(report)["memory"]
    assert found["build_swap"] == found["build_peak"] - 6 * 10**9 > 0
    assert any("add swap" in line for line in describe(report))
    # A card's engines are built in its host's memory, which nobody knows here.
    assert as_json(make_report("InternVL3_5-241B-A28B", PlanOptions("l4")))["memory"]["build_swap"] == 0


def test_numbers_of_the_json_are_those_of_the_text() -> None:
    report = make_report("deepseek-vl2-tiny", PlanOptions("orin-nx-16gb"), (1.0, 0.3))
    found = json.loads(json.dumps(as_json(report)))
    memory = found["memory"]
    parts = sum(memory["weights"].values()) + memory["caches"] + memory["vision_activations"] + memory["workspace"]
    assert memory["total"] == parts
    assert memory["spare"] == memory["machine"] - memory["reserve"] - parts
    assert found["fits"] and found["others"] == [] and found["larger_machine"] is None
    assert [request["retention"] for request in found["requests"]] == [1.0, 0.3]
    first = found["requests"][0]
    assert first["first_token_ms"] == pytest.approx(found["vision"]["ms"] + first["prefill"]["ms"])
    assert first["total"] == first["prefill"]["flops"]
