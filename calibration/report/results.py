# SPDX-License-Identifier: Apache-2.0
"""Results of a report: plain data, as report.json holds it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from fastmmoe.calibration.measure.bootstrap import Interval
from fastmmoe.calibration.report.devices import Device
from fastmmoe.calibration.report.latency import Machine
from fastmmoe.calibration.report.settings import Setting

Verdict: TypeAlias = Literal["above", "within the interval", "below", "out of reach"]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A measured setting.

    Attributes:
        options: the fields of `RequestOptions` that give the setting.
        kept: visual tokens of the most frequent prompt, before and after each stage.
        gflops: FLOPs of the language model's prefill, a mean.
        reduction, reduction_with_vision: shares saved.
        accuracy: share of right answers.
        quality: accuracy over that of the full model.
        prefill_ms, ttft_ms: medians.
        prefill_share, ttft_share: medians of the ratio to the full model's, by request.
        on_flops_front, on_latency_front: no other setting is as accurate, as cheap and better in one of both.
    """

    setting: Setting
    options: dict[str, Any]
    kept: tuple[int, ...]
    gflops: float
    reduction: float
    reduction_with_vision: float
    accuracy: Interval
    quality: Interval
    prefill_ms: float
    prefill_share: float
    ttft_ms: float
    ttft_share: float
    on_flops_front: bool = False
    on_latency_front: bool = False


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """fastmmoe and another method where both cost the same by count.

    Attributes:
        other: None where no retention of the other method costs so little; `why` says so.
        difference: accuracy of fastmmoe minus that of the other, on the same questions.
    """

    ours: Setting
    variant: str
    other: Setting | None
    ours_reduction: float
    other_reduction: float | None
    ours_accuracy: float
    other_accuracy: float | None
    difference: Interval | None
    verdict: Verdict
    why: str = ""


class KindRow(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of question: how many there are and the accuracy of some settings, in the order of `Report.compared`."""

    kind: str
    questions: int
    accuracies: tuple[Interval, ...]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A statement that was tested, what was found, and whether it holds."""

    statement: str
    found: str
    holds: bool


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Sources of the numbers.

    Attributes:
        command: the one that made the report.
        bundle, model: their names.
        bundle_identity: SHA-256 of the bundle's manifest.
        data: "builtin" or the directory's name.
        split: the part of builtin data.
        data_seed: which scenes of it.
        data_identity: SHA-256 of pictures, questions and answers.
        unlabelled: questions without an answer, left out.
        seeds: those of method random.
        requests: how many were measured in time.
        machine: what the times were measured on.
    """

    command: str
    version: str
    bundle: str
    model: str
    dtype: str
    bundle_identity: str
    checkpoint_identity: str
    prune_layers: dict[str, tuple[int, ...]]
    data: str
    split: str
    data_identity: str
    data_seed: int
    questions: int
    unlabelled: int
    scenes: int
    max_new_tokens: int
    seeds: tuple[int, ...]
    resamples: int
    bootstrap_seed: int
    requests: int
    machine: Machine


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but the pictures.

    Attributes:
        min_quality: what the recommended setting's lower bound must reach.
        claimed: fastmmoe's setting that saves the claimed share; None where none does.
        recommended, not_told_apart: see `recommend`.
        compared: settings of the tables by kind.
        devices: other machines, from results of fastmmoe bench.
    """

    origin: Origin
    min_quality: float
    points: tuple[Point, ...]
    claimed: Setting | None
    claims: tuple[Claim, ...]
    comparisons: tuple[Comparison, ...]
    compared: tuple[Setting, ...]
    kinds: tuple[KindRow, ...]
    recommended: Setting | None
    not_told_apart: Setting | None
    devices: tuple[Device, ...] = ()

    def point(self, setting: Setting) -> Point:
        """The point of a setting."""
        return next(point for point in self.points if point.setting == setting)
