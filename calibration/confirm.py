# SPDX-License-Identifier: Apache-2.0
"""Settings in the exported graph: the answers and times of the runtime that users run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmmoe.calibration.data import Sample
from fastmmoe.calibration.evaluate import Kind, Outcomes
from fastmmoe.calibration.options import CalibrationFailed
from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.exporter.config import ExportConfig
from fastmmoe.exporter.export import export
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM

MOST_DIFFERENT = 0.02
"""Share of the questions on which torch and the runtime may differ: near ties of experts, tokens and answers."""
TIMED_QUESTIONS = 12
TIMED_RETENTIONS = (1.0, 0.75, 0.5, 0.25, 0.1)


@dataclass(frozen=True)
class Confirmed:
    """Outcomes of the questions in the runtime.

    Attributes:
        values: float64 [N]: 1 where the answer is right ("accuracy"), or where the first token is that of torch ("kl").
        agreement: share of the questions on which it did what torch does.
        ttft_ms: median time to the first token.
    """

    values: Array
    agreement: float
    ttft_ms: float


@dataclass(frozen=True)
class LatencyModel:
    """Time to the first token from counted FLOPs: linear between measured prefills.

    Attributes:
        flops, prefill_ms: ascending; of one prompt.
        other_ms: preprocessing and vision, which no setting changes.
    """

    flops: tuple[float, ...]
    prefill_ms: tuple[float, ...]
    other_ms: float

    def predict(self, flops: float) -> float:
        """Milliseconds."""
        return self.other_ms + float(np.interp(flops, self.flops, self.prefill_ms))


def export_with(checkpoint: Path, options: PolicyOptions, out: Path) -> VLM:
    """The runtime on a bundle with these settings.

    Raises:
        CalibrationFailed: the export's own check fails.
    """
    try:
        export(ExportConfig(model=str(checkpoint), out=out, policy=options), say=lambda _: None)
    except CheckFailed as error:
        raise CalibrationFailed(f"the export with the chosen settings fails its check: {error}") from error
    return VLM(out)


def confirm(vlm: VLM, samples: Sequence[Sample], expected: Outcomes, kind: Kind, max_new_tokens: int) -> Confirmed:
    """Ask the runtime what torch was asked.

    Args:
        expected: outcomes of torch for the same questions.
        max_new_tokens: the most tokens of an answer, the stop token included.
    Raises:
        CalibrationFailed: both differ on more questions than near ties explain.
    """
    values, times = [], []
    for sample, token in zip(samples, expected.first_tokens.tolist(), strict=True):
        answer = vlm.generate(sample.messages, max_new_tokens=max_new_tokens)
        assert answer.stats.ttft_ms is not None, "nothing ends these requests early"
        times.append(answer.stats.ttft_ms)
        is_right = answer.text.strip() == sample.answer if kind == "accuracy" else answer.token_ids[0] == token
        values.append(float(is_right))
    found = np.array(values)
    reference = expected.values if kind == "accuracy" else np.ones(len(found))
    differing = int((found != reference).sum())
    if differing > max(1, MOST_DIFFERENT * len(found)):
        raise CalibrationFailed(
            f"the exported graph and torch differ on {differing} of {len(found)} questions, at most "
            f"{MOST_DIFFERENT:.0%} are expected; policy.json was not written"
        )
    return Confirmed(found, 1 - differing / len(found), statistics.median(times))


def measure_latency(vlm: VLM, samples: Sequence[Sample]) -> LatencyModel:
    """Prefill times at several retentions, in turn, so that a drift of the machine hits all alike."""
    points: dict[float, list[tuple[float, float]]] = {R: [] for R in TIMED_RETENTIONS}
    other = []
    for sample in samples[: TIMED_QUESTIONS + 1]:
        for R in TIMED_RETENTIONS:
            stats = vlm.generate(sample.messages, max_new_tokens=1, retention=R).stats
            points[R].append((stats.prefill_flops, stats.prefill_ms))
            other.append(stats.preprocess_ms + stats.vision_ms)
    # The first question warms up.
    kept = {R: found[1:] or found for R, found in points.items()}
    medians = sorted(
        (statistics.mean(f for f, _ in found), statistics.median(t for _, t in found)) for found in kept.values()
    )
    flops, times = zip(*medians, strict=True)
    return LatencyModel(flops, times, statistics.median(other))
