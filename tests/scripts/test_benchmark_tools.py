# SPDX-License-Identifier: Apache-2.0
"""The benchmark's tools: the least time of a prefill, and the rows of its tables."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.cost.flops import count_layers, count_prefill
from fastmmoe.runtime.method.schedule import plan_request
from tests.support.manifests import toy_manifest
from tests.support.scripts import script

machine, prefill, probe, roofline, tables = (
    script(f"benchmark_tools.{name}") for name in ("machine", "prefill", "probe", "roofline", "tables")
)
MANIFEST = toy_manifest("internvl3_5")
INFO = MANIFEST.language_model


def machine_of(gflops: float, bandwidth: float) -> Any:
    products = (machine.Product("slow", 1, 1, 1, gflops / 2), machine.Product("fast", 2, 3, 4, gflops))
    return machine.Machine("processor", 4, 2, "1.23", products, bandwidth)


def schedule_of(retention: float) -> Any:
    return plan_request(
        MANIFEST.policy, visual_tokens=8, moe_layers=INFO.moe_layers, top_k=INFO.top_k, retention=retention
    )


def test_the_least_time_is_that_of_the_slower_of_two() -> None:
    """Where one of them is free, the other decides; layer by layer it is at least the greater sum."""
    schedule, experts = schedule_of(0.5), [16] * INFO.layers
    counted, both = roofline.bound(machine_of(1.0, 1.0), MANIFEST, schedule, 20, experts)
    _, computing = roofline.bound(machine_of(1.0, 1e12), MANIFEST, schedule, 20, experts)
    _, reading = roofline.bound(machine_of(1e12, 1.0), MANIFEST, schedule, 20, experts)
    assert counted == count_prefill(INFO, MANIFEST.policy, schedule, 20)
    of_layers = sum(layer.total for layer in count_layers(INFO, MANIFEST.policy, schedule, 20))
    assert computing.ms == pytest.approx((of_layers + counted.head) / 1e6)
    assert (both.compute_ms, both.memory_ms) == (pytest.approx(computing.ms), pytest.approx(reading.ms))
    assert max(both.compute_ms, both.memory_ms) <= both.ms < both.compute_ms + both.memory_ms


def test_only_used_experts_are_read() -> None:
    """Of float32 experts each is 3 x 12 x 8 weights of four bytes."""
    schedule = schedule_of(1.0)
    few, many = (
        roofline.bound(machine_of(1e12, 1.0), MANIFEST, schedule, 20, [used] * INFO.layers)[1].memory_ms
        for used in (4, 5)
    )
    bytes_of_an_expert = 3 * INFO.hidden_size * INFO.moe_intermediate_size * 4
    assert many - few == pytest.approx(INFO.layers * bytes_of_an_expert / 1e6)
    half = msgspec.structs.replace(MANIFEST, dtype="bf16")
    _, bound = roofline.bound(machine_of(1e12, 1.0), half, schedule, 20, [4] * INFO.layers)
    assert few - bound.memory_ms == pytest.approx(4 * INFO.layers * bytes_of_an_expert / 2 / 1e6)


def row_of(*times: float, baseline: tuple[float, ...] = (), method: str = "fastv") -> Any:
    setting = prefill.Setting("fastv | K 2", method, 0.5)
    findings = probe.Findings((12, 9), 0.0123, 0.5)
    bound = roofline.Bound(1.0, 2.0, 2.5)
    return tables.Row(setting, (8, 4), 3 * 10**9, 4 * 10**9, bound, findings, times, baseline or times)


def test_spread_of_few_and_of_many_repeats() -> None:
    assert row_of(5.0, 3.0, 4.0).spread_ms == (3.0, 5.0)
    low, high = row_of(*map(float, range(1, 12))).spread_ms
    assert (low, high) == (pytest.approx(1.2), pytest.approx(10.8))


def test_ratios_compare_the_same_repeat() -> None:
    """Drift doubles every time of the last repeats, and changes no ratio."""
    row = row_of(1.0, 2.0, 2.0, baseline=(2.0, 4.0, 4.0))
    assert (row.time_ratio, row.median_ms, row.flops_ratio) == (0.5, 2.0, 0.75)
    found = json.loads(row.json())
    assert (found["time_ratio"], found["flops"], found["setting"]["method"]) == (0.5, 3 * 10**9, "fastv")


def test_tables_of_rows() -> None:
    row = row_of(5.0, 3.0, 4.0, baseline=(10.0, 6.0, 8.0))
    assert tables.time_table([row]).splitlines()[-1] == (
        r"| fastv \| K 2 | 0.5 | 8 > 4 | 3 | 75.0% | 1 | 2 | 2 | 4 | 3 to 5 | 50.0% | 62% |"
    )
    assert tables.share_table([row]).splitlines()[-1] == r"| fastv \| K 2 | 0.5 | 12, 9 | 1.23% | 50.00% |"
    assert tables.share_table([row_of(1.0, method="none")]).splitlines()[-1].endswith("| 12, 9 |  | 50.00% |")
    assert tables.machine_table(machine_of(3.0, 1.25)).splitlines()[2:] == [
        "| slow [1, 1] x [1, 1] | 2 GFLOP/s |",
        "| fast [2, 3] x [3, 4] | 3 GFLOP/s |",
        "| reading memory | 1.2 GB/s |",
    ]


def test_the_fastest_product_is_what_a_machine_can_do() -> None:
    assert machine_of(3.0, 1.0).gflops == 3.0


@pytest.mark.parametrize(("methods", "kinds"), [(("fastmmoe",), 2), (("fastmmoe", "random", "fastv", "sparsevlm"), 5)])
def test_settings_that_are_compared(methods: tuple[str, ...], kinds: int) -> None:
    """Each once, the unmodified model first, and those of the bundle's methods alone."""
    policy = msgspec.structs.replace(MANIFEST.policy, prune_layers=dict.fromkeys(methods, (0,)))
    settings = prefill.all_settings(policy, INFO.top_k)
    assert settings[0] == prefill.UNMODIFIED
    assert len(settings) == len({setting.name for setting in settings}) == 3 + kinds * len(prefill.RETENTIONS)
    assert {setting.method for setting in settings} == {"none", *methods}
    assert settings[1].visual_top_k == policy.visual_top_k
    assert settings[-1].visual_top_k == (INFO.top_k // 2,) * len(policy.visual_top_k)
