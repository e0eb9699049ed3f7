# SPDX-License-Identifier: Apache-2.0
"""Outcomes of a pruned model's answers, question by question, and the quality they add up to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from fastmmoe.calibration.prompts import Prompt, Prompts
from fastmmoe.calibration.torch_model import Prefilled, TorchModel
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.exporter.torch_backend import TorchBackend
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.types import Array

Kind: TypeAlias = Literal["accuracy", "kl"]
Row: TypeAlias = tuple[float, float, int]

PACKED = 4
"""Questions in one call: more share the cost of a call, but all their rows are in memory at once."""
FULL_MODEL = PolicyOptions(method=UNMODIFIED)


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of a model on each of N questions, by teacher forcing.

    Attributes:
        values: float64 [N]. accuracy: 1 where the answer is right. kl: KL(full || this), in nats, of the next token
            after the prompt.
        probabilities: float64 [N]; of the whole answer and the stop after it, or of the full model's choice.
        first_tokens: int64 [N]: the most probable first token.
    """

    kind: Kind
    values: Array
    probabilities: Array
    first_tokens: Array

    @property
    def quality(self) -> float:
        """In [0, 1], see `quality`."""
        return float(quality(self.kind, self.values.mean()))

    @property
    def score(self) -> float:
        """What settings are ranked by, in [0, 1].

        Of few questions the share of right answers hardly tells good settings apart: one question decides. How
        probable the right answers are does, so the mean of both counts.
        """
        if self.kind == "kl":
            return self.quality
        return (self.quality + float(self.probabilities.mean())) / 2

    def part(self, count: int) -> Outcomes:
        """Outcomes of the first `count` questions."""
        return Outcomes(self.kind, self.values[:count], self.probabilities[:count], self.first_tokens[:count])


def quality(kind: Kind, mean: Any) -> Any:
    """From a mean of `Outcomes.values`: the share of right answers, or exp(-KL), which is 1 for the full model."""
    return mean if kind == "accuracy" else np.exp(-mean)


class Evaluator:
    """Runs questions through decoders of one model.

    Args:
        kind: what the outcomes are; with "accuracy" every question has an answer.
    """

    def __init__(self, model: TorchModel, prompts: Prompts, kind: Kind) -> None:
        self.model, self.prompts, self.kind = model, prompts, kind
        self._stops = torch.tensor(model.processor.config.stop_token_ids)
        self._full_log_probs: dict[int, torch.Tensor] = {}

    def outcomes(self, options: PolicyOptions, count: int | None = None) -> Outcomes:
        """Outcomes of the first `count` questions (None = all), by the model pruned with these options.

        An answer counts as right if the most probable token is the next one of the answer at every step, and a stop
        token after the last: what greedy decoding would write, where the answer has one spelling only.
        """
        decoder = self.model.decoder(self.model.resolve(options))
        judge = self._judge_answers if self.kind == "accuracy" else self._judge_distributions
        return self._collect(decoder, judge, count)

    def _collect(self, decoder: TorchBackend, judge: Callable[..., list[Row]], count: int | None) -> Outcomes:
        rows = [
            row
            for places, before in run_prompts(self.model, decoder, self.prompts, count)
            for row in judge(decoder, places, before)
        ]
        values, probabilities, first = zip(*rows, strict=True)
        return Outcomes(self.kind, np.array(values), np.array(probabilities), np.array(first, np.int64))

    def _judge_answers(self, decoder: TorchBackend, places: range, before: Prefilled) -> list[Row]:
        questions = [self.prompts.questions[i] for i in places]
        answers = [_answer(q) for q in questions]
        after = torch.from_numpy(self.model.continue_with(decoder, before, answers))
        starts = [0, *itertools.accumulate(map(len, answers))]
        rows = []
        for logits, answer, start in zip(torch.from_numpy(before.logits), answers, starts, strict=False):
            steps = torch.cat((logits[None], after[start : start + len(answer)])).double().log_softmax(-1)
            best = steps.argmax(-1)
            stops = torch.isin(best[-1], self._stops)
            is_right = bool(stops) and best[:-1].tolist() == list(answer)
            log_probability = steps[-1, self._stops].logsumexp(0)
            for step, token in zip(steps, answer, strict=False):
                log_probability = log_probability + step[int(token)]
            rows.append((float(is_right), float(log_probability.exp()), int(best[0])))
        return rows

    def _judge_distributions(self, decoder: TorchBackend, places: range, before: Prefilled) -> list[Row]:
        rows = []
        for place, logits in zip(places, torch.from_numpy(before.logits), strict=True):
            ours, full = logits.double().log_softmax(-1), self._full(place)
            divergence = float((full.exp() * (full - ours)).sum())
            rows.append((divergence, float(ours[full.argmax()].exp()), int(ours.argmax())))
        return rows

    def _full(self, place: int) -> torch.Tensor:
        """Log-probabilities [vocab] that the full model gives the next token of a question."""
        if place not in self._full_log_probs:
            decoder = self.model.decoder(self.model.resolve(FULL_MODEL))
            first = place - place % PACKED
            places = range(first, min(first + PACKED, len(self.prompts.questions)))
            full = run_pack(self.model, decoder, self.prompts, places)
            for i, logits in zip(places, torch.from_numpy(full.logits), strict=True):
                # Kept for every question: half the memory.
                self._full_log_probs[i] = logits.double().log_softmax(-1).float()
        return self._full_log_probs[place].double()


def run_prompts(
    model: TorchModel, decoder: TorchBackend, prompts: Prompts, count: int | None = None, *, method: str | None = None
) -> Iterator[tuple[range, Prefilled]]:
    """(places of some questions, `TorchModel.prefill` of them) until the first `count` have been run."""
    total = len(prompts.questions) if count is None else min(count, len(prompts.questions))
    for first in range(0, total, PACKED):
        places = range(first, min(first + PACKED, total))
        yield places, run_pack(model, decoder, prompts, places, method=method)


def run_pack(
    model: TorchModel, decoder: TorchBackend, prompts: Prompts, places: Sequence[int], *, method: str | None = None
) -> Prefilled:
    """`TorchModel.prefill` of these questions."""
    questions = [prompts.questions[i] for i in places]
    embeds = []
    for question in questions:
        x = model.embed(question.input_ids)
        x[question.visual_index] = prompts.features[question.picture]
        embeds.append(x)
    return model.prefill(decoder, embeds, [q.visual_index for q in questions], method=method)


def _answer(question: Prompt) -> list[int]:
    assert question.answer_ids is not None
    tokens: list[int] = question.answer_ids.tolist()
    return tokens
