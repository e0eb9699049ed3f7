# SPDX-License-Identifier: Apache-2.0
"""Rooflines of a whole model from the data sheets."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from fastmmoe.exporter.fit.plan import PlanOptions, find_machine, fit
from fastmmoe.exporter.fit.sizes import read_sizes
from fastmmoe.exporter.fit.times import Times, find_rates, find_times
from fastmmoe.runtime.cost import rates
from fastmmoe.runtime.cost.flops import compare_prefill
from fastmmoe.runtime.cost.roofline import FLAT
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.machines.devices import DEVICES
from tests.support.manifests import toy_manifest


def times_of(model: str, target: str, *retentions: float) -> Times:
    options = PlanOptions(target)
    machine = find_machine(options)
    return find_times(machine, fit(read_sizes(model), machine, options), retentions, options.new_tokens)


def test_rates_are_those_of_the_data_sheet() -> None:
    device = DEVICES["orin-nx-16gb"]
    found = find_rates(find_machine(PlanOptions("orin-nx-16gb")), 1, toy_manifest("deepseek_vl2"))
    assert (found.flops, found.bytes) == (device.fp16_tflops * 1e12, device.gb_per_s * 1e9)
    assert found.source == "data sheet, 40 W (Super)"


def test_rates_of_a_cpu_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "peak_flops", lambda numbers: {"float32": 5.0, "bfloat16": 9.0}[numbers])
    monkeypatch.setattr(rates, "read_bandwidth", lambda size: 2.0 * size)
    machine, manifest = find_machine(PlanOptions("cpu")), toy_manifest("deepseek_vl2")
    found = find_rates(machine, 123, manifest)
    assert (found.flops, found.bytes) == (5.0, 246.0)
    assert find_rates(machine, 123, replace(manifest, cache_dtype="bfloat16")).flops == 9.0


@pytest.mark.parametrize("target", ["orin-nano-8gb", "thor-t5000", "h100", "rtx"])
def test_time_falls_with_the_retention_down_to_where_the_weights_are_read(target: str) -> None:
    found = times_of("InternVL3_5-30B-A3B", target, 1.0, 0.5, 0.25)
    spans = [row.prefill.ms for row in found.rows]
    assert spans == sorted(spans, reverse=True)
    assert all(row.prefill.ms >= max(row.prefill.compute_ms, row.prefill.memory_ms) * 0.999 for row in found.rows)
    assert [row.caches for row in found.rows] == sorted((row.caches for row in found.rows), reverse=True)
    # A token reads the weights that it uses: no computing takes as long.
    assert all(row.decode.memory_ms > row.decode.compute_ms for row in found.rows)
    least, flat, above = (
        times_of("InternVL3_5-30B-A3B", target, r).rows[0].prefill.ms for r in (1e-4, found.flat, found.flat + 2e-4)
    )
    assert flat <= FLAT * least < above


def test_flops_are_the_counters() -> None:
    found = times_of("deepseek-vl2-small", "orin-nx-16gb", 0.5)
    options = PlanOptions("orin-nx-16gb")
    manifest = fit(read_sizes("deepseek-vl2-small"), find_machine(options), options).manifest
    counted = compare_prefill(
        manifest.language_model, manifest.policy, tokens=2105 + 64, visual_tokens=2105, retention=0.5
    )
    (row,) = found.rows
    assert row.request.prefill == counted.prefill
    assert row.prefill.flops == counted.prefill.total


def test_a_retention_that_is_none() -> None:
    with pytest.raises(InvalidRequest, match="retention 2"):
        times_of("deepseek-vl2-small", "orin-nx-16gb", 2.0)
