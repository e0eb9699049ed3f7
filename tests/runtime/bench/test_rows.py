# SPDX-License-Identifier: Apache-2.0
"""Rows of made requests: which there are, what they count, and their least times."""

from __future__ import annotations

from typing import Any

import pytest

from fastmmoe.runtime.bench.measuring import Bench, Request, Round
from fastmmoe.runtime.bench.rows import make_rows
from fastmmoe.runtime.bench.settings import BenchOptions, Setting
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.cost.flops import vision_flops
from fastmmoe.runtime.cost.rates import matrix_bytes
from fastmmoe.runtime.cost.roofline import Rates, prefill_work
from fastmmoe.runtime.generation import RequestStats
from fastmmoe.runtime.method.schedule import plan_request
from tests.support.echo import echo_vlm
from tests.support.manifests import toy_manifest
from tests.support.processors import MakeProcessor

RATES = Rates(1e9, 1e9, "made")
TEXT, VISUAL = 20, 8


@pytest.fixture
def manifest() -> Manifest:
    return toy_manifest("deepseek_vl2")


def request(manifest: Manifest, retention: float, whole_ms: float, steps: int = 3) -> Request:
    info = manifest.language_model
    counts: Any = {"visual_tokens": VISUAL, "moe_layers": info.moe_layers, "top_k": info.top_k}
    schedule = plan_request(manifest.policy, **counts, retention=retention)
    stats = RequestStats(
        method=schedule.method,
        retention=retention,
        text_tokens=TEXT,
        visual_tokens=VISUAL,
        kept_visual_tokens=schedule.kept_visual_tokens,
        merged_vectors=schedule.merged_vectors,
        visual_top_k=schedule.visual_top_k,
        tiles=2,
        past_tokens=0,
        prefill_flops=1,
        prefill_flops_unmodified=1,
        vision_flops=1,
        cache_lengths=[TEXT] * info.layers,
    )
    part = whole_ms / 10
    return Request(0.0, part, 2 * part, 3 * part, (part,) * steps, whole_ms, stats, schedule)


def rounds_of(manifest: Manifest, setting: Setting, *whole: float, joules: float | None = None) -> list[Round]:
    at_once = setting.concurrency
    return [
        Round(setting, tuple(request(manifest, setting.retention, one) for _ in range(at_once)), 1.5 * one, joules)
        for one in whole
    ]


def test_rows_of_requests_that_ran_alone(manifest: Manifest) -> None:
    rounds = rounds_of(manifest, Setting(0.5), 10.0, 30.0, 20.0) + rounds_of(manifest, Setting(1.0), 40.0)
    rows = list(make_rows(rounds, manifest, None))
    parts = ["prefill", "decode", "first_token", "request"]
    assert [(row.test, row.retention) for row in rows] == [
        ("vision", None),
        *((part, 0.5) for part in parts),
        *((part, 1.0) for part in parts),
    ]
    by_test = {row.test: row for row in rows[:5]}
    assert by_test["vision"].samples_ms == (2.0, 6.0, 4.0, 8.0) and by_test["vision"].tokens == VISUAL
    assert by_test["prefill"].samples_ms == (3.0, 9.0, 6.0) and by_test["prefill"].tokens == TEXT + VISUAL
    assert by_test["prefill"].tokens_per_s == pytest.approx(1e3 * (TEXT + VISUAL) / 6)
    assert by_test["decode"].samples_ms == (1.0, 3.0, 2.0) and by_test["decode"].depth == TEXT + VISUAL
    assert by_test["decode"].tokens_per_s == pytest.approx(500.0)
    assert by_test["first_token"].samples_ms == (6.0, 18.0, 12.0) and by_test["first_token"].tokens_per_s is None
    whole = by_test["request"]
    assert (whole.median_ms, whole.mean_ms, whole.sd_ms, whole.p90_ms) == (20.0, 20.0, 10.0, 28.0)
    # Of the round's time.
    assert whole.tokens == 4 and whole.tokens_per_s == pytest.approx(4 / 0.03)
    assert whole.requests_per_s == pytest.approx(1 / 0.03)
    assert all(row.roofline_ms is None and row.roofline_share is None and row.joules is None for row in rows)


def test_batches_and_requests_at_once(manifest: Manifest) -> None:
    rounds = rounds_of(manifest, Setting(0.5, batch=3), 10.0, joules=6.0)
    rounds += rounds_of(manifest, Setting(0.5, concurrency=2), 20.0, joules=6.0)
    rows = list(make_rows(rounds, manifest, None))
    assert [(row.test, row.batch, row.concurrency) for row in rows] == [
        ("prefill", 3, 1),
        ("decode", 3, 1),
        ("request", 3, 1),
        ("first_token", 1, 2),
        ("request", 1, 2),
    ]
    prefill, decode, packed, _, at_once = rows
    assert (prefill.tokens, decode.tokens, packed.tokens) == (3 * (TEXT + VISUAL), 3, 12)
    assert packed.requests_per_s == pytest.approx(3 / 0.015) and packed.joules == 2.0
    assert len(at_once.samples_ms) == 2 and at_once.joules == 3.0
    assert at_once.tokens_per_s == pytest.approx(2 * 4 / 0.03)


def test_least_times_stand_beside_the_medians(manifest: Manifest) -> None:
    rounds = rounds_of(manifest, Setting(0.5), 10.0) + rounds_of(manifest, Setting(0.5, batch=2), 10.0)
    rows = {(row.test, row.batch): row for row in make_rows(rounds, manifest, RATES)}
    info, parts = manifest.language_model, matrix_bytes(manifest)
    vision = max(vision_flops(manifest.vision, info.hidden_size, 2), parts["vision"]) / 1e6
    assert rows["vision", 1].roofline_ms == pytest.approx(vision)
    assert rows["vision", 1].roofline_share == pytest.approx(vision / 2.0)
    first = rounds[0].requests[0]
    one, two = (
        prefill_work(manifest, parts, RATES, first.schedule, TEXT + VISUAL, sequences=count).ms for count in (1, 2)
    )
    assert (rows["prefill", 1].roofline_ms, rows["prefill", 2].roofline_ms) == (pytest.approx(one), pytest.approx(two))
    assert rows["first_token", 1].roofline_ms == pytest.approx(vision + one)
    step = rows["decode", 1].roofline_ms
    assert step is not None and rows["request", 1].roofline_ms == pytest.approx(vision + one + 3 * step)
    step = rows["decode", 2].roofline_ms
    assert step is not None and rows["request", 2].roofline_ms == pytest.approx(2 * vision + two + 3 * step)


def test_times_of_nothing_have_no_rates(manifest: Manifest) -> None:
    rows = list(make_rows(rounds_of(manifest, Setting(0.5), 0.0), manifest, RATES))
    assert rows[0].tokens_per_s is None and rows[0].roofline_share is None


def test_rows_of_real_requests(processor: MakeProcessor) -> None:
    vlm, _ = echo_vlm(processor("dsvl2-mha"))
    options = BenchOptions((1.0, 0.5), repetitions=2, warmup=0, new_tokens=3)
    rows = list(make_rows(Bench(vlm, options).run(), vlm.manifest, RATES))
    assert len(rows) == 9 and len(rows[0].samples_ms) == 4
    assert {len(row.samples_ms) for row in rows[1:]} == {2}
