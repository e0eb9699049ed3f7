# SPDX-License-Identifier: Apache-2.0
"""The report's headings: each says what was found, good or bad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastmmoe.calibration.report.analysis import CLAIMED_QUALITY
from fastmmoe.calibration.report.devices import Device
from fastmmoe.calibration.report.results import Point, Report
from fastmmoe.calibration.report.settings import BASELINES, FULL, LABELS, Setting


@dataclass(frozen=True)
class Findings:
    """One sentence for each section, without a full stop."""

    title: str
    flops: str
    latency: str
    devices: str
    equal: str
    kinds: str
    recommended: str


def describe(report: Report) -> Findings:
    """The headings of a report."""
    claimed = None if report.claimed is None else report.point(report.claimed)
    return Findings(
        title=_title(report, claimed),
        flops=_flops(report, claimed),
        latency=_latency(claimed),
        devices=_devices(report.devices),
        equal=_equal(report),
        kinds=_kinds(report),
        recommended=_recommended(report),
    )


def _title(report: Report, claimed: Point | None) -> str:
    if claimed is None:
        return "FastMMoE does not reach the claimed reduction on this model"
    kept = f"{claimed.quality.value:.1%} of the accuracy at {claimed.reduction:.1%} fewer prefill FLOPs"
    if all(claim.holds for claim in report.claims):
        return f"FastMMoE keeps {kept}, no worse than the baselines at equal cost"
    if report.claims[0].holds:
        return f"FastMMoE keeps {kept}, but a baseline does better at equal cost"
    if claimed.quality.value >= CLAIMED_QUALITY:
        return f"FastMMoE keeps {kept}; its interval reaches too low to confirm the claim"
    return f"FastMMoE keeps only {kept}: short of the claim"


def _flops(report: Report, claimed: Point | None) -> str:
    if claimed is None:
        return "Accuracy falls as FLOPs are saved"
    others = [
        report.point(row.other)
        for row in report.comparisons
        if row.ours == claimed.setting and row.other is not None and row.variant in BASELINES
    ]
    if not others:
        return f"FastMMoE keeps {claimed.quality.value:.1%} at {claimed.reduction:.0%} fewer FLOPs"
    ranked = sorted(others, key=lambda p: -p.quality.value)
    texts = ", ".join(f"{LABELS[p.setting.variant]} {p.quality.value:.1%}" for p in ranked)
    return f"At {claimed.reduction:.0%} fewer FLOPs FastMMoE keeps {claimed.quality.value:.1%}; {texts}"


def _latency(claimed: Point | None) -> str:
    if claimed is None:
        return "What is saved by the clock"
    saved = 1 - claimed.prefill_share
    if saved <= 0:
        return f"{claimed.reduction:.0%} fewer FLOPs save no time in the prefill on this machine"
    first = 1 - claimed.ttft_share
    return f"{claimed.reduction:.0%} fewer FLOPs are {saved:.0%} less prefill time, {first:.0%} to the first token"


def _devices(devices: Sequence[Device]) -> str:
    """Of the first machine: the greatest retention and the smallest."""
    if not devices:
        return ""
    first = devices[0]
    most, least = first.times[0], first.times[-1]
    where = f"On {first.name} ({first.provider}) the first token takes {most.first_token_ms:.3g} ms"
    if most == least:
        return f"{where}, {most.without_vision_ms:.3g} of them after the vision tower"
    return (
        f"{where} at retention {most.setting.retention:g}, {least.first_token_ms:.3g} at {least.setting.retention:g}; "
        f"without vision {most.without_vision_ms:.3g} and {least.without_vision_ms:.3g}"
    )


def _equal(report: Report) -> str:
    rows = [row for row in report.comparisons if row.variant in BASELINES and row.difference is not None]
    if not rows:
        return "There is nothing to compare at equal FLOPs"
    above, below = (sum(row.verdict == v for row in rows) for v in ("above", "below"))
    if not below:
        return f"At equal FLOPs FastMMoE is above the baselines in {above} of {len(rows)} comparisons, below in none"
    return f"At equal FLOPs FastMMoE is below a baseline in {below} of {len(rows)} comparisons, above in {above}"


def _kinds(report: Report) -> str:
    if report.claimed is None or not report.kinds:
        return "Accuracy by kind of question"
    full, ours = report.compared.index(Setting(FULL)), report.compared.index(report.claimed)
    losses = [(row.accuracies[full].value - row.accuracies[ours].value, row.kind) for row in report.kinds]
    worst, kind = max(loss for loss in losses if not math.isnan(loss[0]))
    if worst <= 0:
        return "No kind of question loses accuracy"
    return f"Questions of kind “{kind or 'no kind'}” lose most: {100 * worst:.1f} points"


def _recommended(report: Report) -> str:
    apart = ""
    if report.not_told_apart is not None:
        other = LABELS[report.not_told_apart.variant]
        apart = f"{report.origin.questions:,} questions do not tell FastMMoE from {other}"
    if report.recommended is None:
        return apart or f"No setting is sure to keep {report.min_quality:.1%} of the accuracy"
    point = report.point(report.recommended)
    if point.setting.variant == FULL:
        return apart or f"Only the full model is sure to keep {report.min_quality:.1%} of the accuracy"
    name = LABELS[point.setting.variant]
    chosen = f"Recommended: {name} at retention {point.setting.retention:g}, {point.reduction:.1%} fewer prefill FLOPs"
    return f"{chosen}; {apart}" if apart else chosen
