# SPDX-License-Identifier: Apache-2.0
"""Summaries that a calibration leaves beside the policy: front.json for programs, calibration.md for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fastmmoe.calibration.choose import Candidate
from fastmmoe.calibration.confirm import Confirmed
from fastmmoe.calibration.evaluate import Kind, Outcomes
from fastmmoe.calibration.front import RESAMPLES, front, gain_interval, quality_interval
from fastmmoe.calibration.measure.bootstrap import Bootstrap
from fastmmoe.calibration.options import CalibrationOptions
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.files import write_atomically

QUALITY_WORDS = {
    "accuracy": "share of right answers",
    "kl": "exp(-KL) of the next token after the prompt, 1 for the full model",
}
GAIN_WORDS = {"accuracy": "share of right answers more", "kl": "nats of KL less"}


@dataclass(frozen=True)
class Comparison:
    """The full model, the default schedule and the chosen settings on the same questions.

    Attributes:
        what: the data in words.
        scenes: [N], of each question.
    """

    what: str
    scenes: Any
    full: Outcomes
    default: Outcomes
    chosen: Outcomes


@dataclass(frozen=True)
class Findings:
    """All that the summary tells.

    Attributes:
        default: the default schedule that spends no more FLOPs than the chosen settings.
        default_cost: its share of the full model's.
    """

    kind: Kind
    options: CalibrationOptions
    chosen: Candidate
    default: PolicyOptions
    default_cost: float
    comparisons: tuple[Comparison, ...]
    confirmed: Confirmed
    predicted_ms: float | None
    candidates: int
    trials: int


def front_points(candidates: Sequence[Candidate], scenes: Any, seed: int) -> list[dict[str, Any]]:
    """The front of all candidates for front.json, cheapest first."""
    found, bootstrap = [], Bootstrap(scenes, resamples=RESAMPLES, seed=seed)
    for place in front([(c.outcomes.score, c.cost) for c in candidates]):
        c = candidates[place]
        interval = quality_interval(c.outcomes, bootstrap)
        found.append(
            {
                "name": c.name,
                "settings": settings_of(c.options),
                "quality": c.outcomes.quality,
                "quality_interval": (interval.low, interval.high),
                "flops_share": c.cost,
                "flops_reduction": 1 - c.cost,
            }
        )
    return found


def settings_of(options: PolicyOptions) -> dict[str, Any]:
    """What tells one schedule from another, under the names of policy.json."""
    names = ("prune_layers", "stage_exponents", "retention", "alpha", "merge_ratio", "window", "merge", "visual_top_k")
    return {name: getattr(options, name) for name in names}


def write_front(path: Path, kind: Kind, questions: int, full: Outcomes, points: list[dict[str, Any]]) -> None:
    """Write front.json."""
    contents = {
        "format": 1,
        "quality": QUALITY_WORDS[kind],
        "questions": questions,
        "full_quality": full.quality,
        "points": points,
    }
    write_atomically(path, msgspec.json.format(msgspec.json.encode(contents), indent=2) + b"\n")


def summary(f: Findings) -> str:
    """calibration.md."""
    goal, value = f.options.goal
    chosen = f.chosen
    lines = [
        "# Calibration",
        "",
        f"Goal: `--{goal.replace('_', '-')} {value:g}`. Quality: {QUALITY_WORDS[f.kind]}. {f.trials} trials on the "
        f"first {f.options.search_questions} questions; {f.candidates} candidates on all of them.",
        "",
        f"Chosen: {chosen.name}, {1 - chosen.cost:.1%} fewer FLOPs in the prefill. Default: the default schedule at "
        f"retention {f.default.retention:g}, {1 - f.default_cost:.1%} fewer.",
        "",
        *_settings_lines(chosen.options),
    ]
    for comparison in f.comparisons:
        lines += ["", *_comparison_lines(f, comparison)]
    lines += ["", *_confirmed_lines(f)]
    return "\n".join(lines) + "\n"


def _settings_lines(options: PolicyOptions) -> list[str]:
    rows = ["| setting | value |", "| --- | --- |"]
    for name, value in settings_of(options).items():
        shown = ", ".join(f"{v:.4g}" for v in value) if isinstance(value, tuple) else value
        rows.append(f"| {name} | {shown} |")
    return rows


def _comparison_lines(f: Findings, c: Comparison) -> list[str]:
    bootstrap = Bootstrap(c.scenes, resamples=RESAMPLES, seed=f.options.seed)
    rows = [
        f"## {c.what}: {len(c.scenes)} questions, {len(np.unique(c.scenes))} pictures",
        "",
        "| | quality | 95 % interval | share of the full model's | FLOPs saved |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, outcomes, cost in (
        ("full model", c.full, 1.0),
        ("default", c.default, f.default_cost),
        ("chosen", c.chosen, f.chosen.cost),
    ):
        i = quality_interval(outcomes, bootstrap)
        share = outcomes.quality / c.full.quality
        rows.append(f"| {name} | {i.value:.4f} | {i.low:.4f} to {i.high:.4f} | {share:.1%} | {1 - cost:.1%} |")
    if f.chosen.options == f.default:
        return [*rows, "", "The chosen settings are the default ones: of what was compared nothing is better."]
    gain = gain_interval(c.chosen, c.default, bootstrap)
    verdict = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else "not told apart from"
    return [
        *rows,
        "",
        f"The chosen settings against the default ones, {GAIN_WORDS[f.kind]}: {gain.value:+.4f} (95 % interval "
        f"{gain.low:+.4f} to {gain.high:+.4f}, paired, pictures resampled): {verdict} the default.",
    ]


def _confirmed_lines(f: Findings) -> list[str]:
    r = f.confirmed
    what = (
        f"it answers {r.values.mean():.4f} of the calibration questions rightly and" if f.kind == "accuracy" else "it"
    )
    lines = [
        f"The exported graph, run by ONNX Runtime: {what} does what torch does on {r.agreement:.1%}. Median time to "
        f"the first token on this machine: {r.ttft_ms:.1f} ms."
    ]
    if f.predicted_ms is not None:
        lines.append(f"Predicted from FLOPs: {f.predicted_ms:.1f} ms.")
    return lines
