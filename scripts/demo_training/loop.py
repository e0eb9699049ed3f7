# SPDX-License-Identifier: Apache-2.0
"""A training stage: steps with warm-up and cosine, a log, and a checkpoint to go on from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from fastmmoe.runtime.machines.speed import peak_flops

SAVE_SECONDS = 120
Losses = dict[str, torch.Tensor]


@cache
def _has_bfloat16() -> bool:
    """Whether the processor has instructions for it: elsewhere torch is many times slower than with float32."""
    return peak_flops(numbers="bfloat16") > peak_flops()


def _products() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=_has_bfloat16())


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rate of a stage; the rate falls as a cosine to `final` of its top.

    Attributes:
        horizon: step at which the cosine ends; 0 = with the stage.
        log_every, evaluate_every: in steps.
    """

    steps: int
    learning_rate: float
    horizon: int = 0
    warmup: int = 200
    final: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    log_every: int = 50
    evaluate_every: int = 500

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        share = min(1.0, step / max(1, self.horizon or self.steps))
        cosine = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * cosine


class Stage:
    """One stage of training, resumable.

    Args:
        directory: holds NAME.pt, the newest state, and NAME.jsonl, the log.
        model: what is trained: parameters that require gradients.
        loss: step -> named losses; their sum is minimised. It draws its data by the step's number, so that a resumed
            run sees what an uninterrupted one would.
        evaluate: -> numbers for the log.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        model: nn.Module,
        schedule: Schedule,
        loss: Callable[[int], Losses],
        evaluate: Callable[[], dict[str, float]],
    ) -> None:
        self.state_file, self.log_file = directory / f"{name}.pt", directory / f"{name}.jsonl"
        self.model, self.schedule, self.loss, self.evaluate = model, schedule, loss, evaluate
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, schedule.learning_rate, betas=(0.9, 0.98), weight_decay=schedule.weight_decay, fused=True
        )
        self.step, self.seconds = 0, 0.0

    def run(self) -> None:
        """Train to the end, from the newest checkpoint on."""
        self._resume()
        saved = started = time.monotonic()
        sums: dict[str, float] = {}
        while self.step < self.schedule.steps:
            for name, value in self._train_step().items():
                sums[name] = sums.get(name, 0.0) + value
            self.step += 1
            if self.step % self.schedule.log_every == 0 or self.step == self.schedule.steps:
                now = time.monotonic()
                self.seconds, started = self.seconds + now - started, now
                means = {name: value / self.schedule.log_every for name, value in sums.items()}
                sums = {}
                is_due = self.step % self.schedule.evaluate_every == 0 or self.step == self.schedule.steps
                self._log(means | (self._evaluate() if is_due else {}))
                started = time.monotonic()
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
        self._save()

    def _train_step(self) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        with _products():
            losses = self.loss(self.step)
            total = torch.stack(list(losses.values())).sum()
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: value.item() for name, value in losses.items()}

    def _evaluate(self) -> dict[str, float]:
        self.model.eval()
        with torch.no_grad(), _products():
            numbers = self.evaluate()
        self.model.train()
        return numbers

    def _log(self, numbers: dict[str, float]) -> None:
        line = {
            "step": self.step,
            "minutes": self.seconds / 60,
            "learning_rate": self.schedule.rate(self.step),
        } | numbers
        text = json.dumps({key: float(f"{value:.4g}") for key, value in line.items()})
        with self.log_file.open("a", encoding="utf-8") as log:
            log.write(text + "\n")
        print(text, flush=True)

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "schedule": asdict(self.schedule),
        }
        scratch = self.state_file.with_suffix(".part")
        torch.save(state, scratch)
        scratch.rename(self.state_file)

    def _resume(self) -> None:
        if not self.state_file.exists():
            return
        state = torch.load(self.state_file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"going on from step {self.step} of {self.state_file.name}", flush=True)
