# SPDX-License-Identifier: Apache-2.0
"""The options of one calibration; the command line takes its defaults from here. Imports neither torch nor optuna."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from fastmmoe.exporter.config import DEMO
from fastmmoe.runtime.errors import FastmmoeError, InvalidRequest
from fastmmoe.runtime.machines.threads import check_threads, usable_cores

Backend: TypeAlias = Literal["loky", "dask", "ray"]
BACKENDS: tuple[Backend, ...] = ("loky", "dask", "ray")
QualityOption: TypeAlias = Literal["auto", "accuracy", "kl"]
QUALITY_OPTIONS: tuple[QualityOption, ...] = ("auto", "accuracy", "kl")
Goal: TypeAlias = Literal["flops_reduction", "min_quality", "max_ttft_ms"]
FLOPS_REDUCTION = 0.55
"""The goal of a user who names none."""


class CalibrationFailed(FastmmoeError):
    """The calibration ended without a policy: nothing meets the goal, or the exported graph does not confirm it."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Everything a calibration depends on.

    Attributes:
        model: checkpoint directory, or "demo" for the built-in checkpoint.
        out: None = ./MODEL-calibration.
        data: "builtin" = drawn scenes, or a directory with pictures and questions.jsonl.
        target: what the policy's export is for.
        trials: how many the search makes, the default schedules included.
        questions: calibration questions (None = what `load_samples` gives).
        held_out_questions: questions about drawn scenes that the search has not seen, for the comparison.
        search_questions: the part a trial is judged by.
        quality: what is compared: "accuracy" of the answers, "kl" to the full model, "auto" = accuracy where the data
            has answers.
        flops_reduction, min_quality, max_ttft_ms: the goal, one of the three; None of them = FLOPS_REDUCTION.
        jobs: trials at a time, 0 = one per core.
        threads: threads of torch in each trial.
        backend: joblib's, by name.
        scheduler: address of the cluster of dask or ray.
        activations: record the statistics that quantisation needs, and do not search.
    """

    model: str = DEMO
    out: Path | None = None
    data: str = "builtin"
    target: str = "cpu"
    trials: int = 200
    questions: int | None = None
    held_out_questions: int = 600
    search_questions: int = 240
    seed: int = 0
    quality: QualityOption = "auto"
    flops_reduction: float | None = None
    min_quality: float | None = None
    max_ttft_ms: float | None = None
    jobs: int = 0
    threads: int = 1
    backend: Backend = "loky"
    scheduler: str | None = None
    activations: bool = False

    @property
    def directory(self) -> Path:
        """Where the results go."""
        name = DEMO if self.model == DEMO else Path(self.model).resolve().name
        return Path(f"{name}-calibration") if self.out is None else self.out

    @property
    def goal(self) -> tuple[Goal, float]:
        """What the policy must reach, and how much of it."""
        goals: tuple[Goal, ...] = ("flops_reduction", "min_quality", "max_ttft_ms")
        for name in goals:
            value = getattr(self, name)
            if value is not None:
                return name, value
        return "flops_reduction", FLOPS_REDUCTION

    @property
    def worker_count(self) -> int:
        """Trials at a time on this machine."""
        return self.jobs or usable_cores()

    def validate(self) -> None:
        """Raise InvalidRequest for a value outside its range, or options that contradict each other."""
        least = {"trials": 1, "search_questions": 1, "held_out_questions": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InvalidRequest(f"--{name.replace('_', '-')} {getattr(self, name)}: expected {low} or more")
        check_threads("--jobs", self.jobs)
        check_threads("--threads", self.threads, least=1)
        if self.questions is not None and self.questions < 1:
            raise InvalidRequest(f"--questions {self.questions}: expected 1 or more")
        given = [name for name in ("flops_reduction", "min_quality", "max_ttft_ms") if getattr(self, name) is not None]
        if len(given) > 1:
            shown = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InvalidRequest(f"{shown}: expected one goal")
        self._check_goal()
        if self.backend == "loky" and self.scheduler is not None:
            raise InvalidRequest("--scheduler: backend loky runs on this machine; give --backend dask or ray")
        if self.backend != "loky" and self.scheduler is None:
            raise InvalidRequest(f"--backend {self.backend}: give the cluster's address with --scheduler")

    def _check_goal(self) -> None:
        name, value = self.goal
        if name == "max_ttft_ms":
            if not (math.isfinite(value) and value > 0):
                raise InvalidRequest(f"--max-ttft-ms {value}: expected a positive number")
            if self.target != "cpu":
                raise InvalidRequest(
                    f"--max-ttft-ms with --target {self.target}: times are measured by this machine's CPU runtime, "
                    "which says nothing of that device; give --flops-reduction or --min-quality"
                )
        elif not 0 < value < 1:
            raise InvalidRequest(f"--{name.replace('_', '-')} {value}: expected a number between 0 and 1")
