# SPDX-License-Identifier: Apache-2.0
"""Judging answers: teacher forcing through the caches of a pruned prompt, packed, is greedy decoding step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from fastmmoe.calibration.evaluate import FULL_MODEL, Evaluator, Outcomes, run_pack
from fastmmoe.calibration.prompts import Prompts
from fastmmoe.calibration.torch_model import Prefilled, TorchModel
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.exporter.torch_backend import TorchBackend
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.types import Array

MODELS = ("dsvl2-mha", "internvl-qwen3moe", "internvl-gptoss")
PRUNED = PolicyOptions(retention=0.3)
ANSWER_TOKENS = 2


def step(model: TorchModel, decoder: TorchBackend, before: Prefilled, token: int) -> Prefilled:
    """One decode step of one sequence, as the runtime makes it."""
    chunk = Chunk(0, model.embed([token]), NO_VISUAL_TOKENS, model.plan(decoder.policy, 0))
    return Prefilled(before.batch.extend([chunk], alpha=0.5), before.batch)


def greedy(model: TorchModel, decoder: TorchBackend, prompts: Prompts, place: int) -> tuple[list[int], list[Array]]:
    """The tokens of an answer and one more, and the logits each was chosen from."""
    run, tokens, logits = run_pack(model, decoder, prompts, [place]), [], []
    for _ in range(ANSWER_TOKENS + 1):
        logits.append(run.logits[0])
        tokens.append(int(logits[-1].argmax()))
        run = step(model, decoder, run, tokens[-1])
    return tokens, logits


@pytest.mark.parametrize("name", MODELS)
def test_answers_continue_a_pruned_prompt(
    golden_model: Callable[[str], TorchModel],
    golden_prompts: Callable[[str], Prompts],
    assert_close: Callable[..., None],
    name: str,
) -> None:
    model, prompts = golden_model(name), golden_prompts(name)
    decoder = model.decoder(model.resolve(PRUNED))
    expected = [greedy(model, decoder, prompts, place) for place in range(2)]
    before = run_pack(model, decoder, prompts, [0, 1])
    # The second answer is shorter.
    answers = [expected[0][0][:2], expected[1][0][:1]]
    logits = model.continue_with(decoder, before, answers)
    layers = len(decoder.language_model.layers)
    assert_close("logits", before.logits, np.stack([e[1][0] for e in expected]), layers)
    assert_close("logits", logits, np.stack([*expected[0][1][1:3], expected[1][1][1]]), layers)


@pytest.mark.parametrize("name", MODELS[:2])
def test_an_answer_is_right_if_greedy_decoding_writes_it(
    golden_model: Callable[[str], TorchModel],
    golden_prompts: Callable[[str], Prompts],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    model, prompts = golden_model(name), golden_prompts(name)
    decoder = model.decoder(model.resolve(PRUNED))
    tokens, logits = greedy(model, decoder, prompts, 0)
    config = msgspec.structs.replace(model.processor.config, stop_token_ids=(tokens[-1], 0))
    monkeypatch.setattr(model.processor, "config", config)

    def judge(answer: list[int]) -> Outcomes:
        question = replace(prompts.questions[0], answer_ids=np.array(answer, np.int32))
        return Evaluator(model, Prompts((question,), prompts.features), "accuracy").outcomes(PRUNED)

    right = judge(tokens[:ANSWER_TOKENS])
    assert (right.quality, right.first_tokens.tolist()) == (1.0, tokens[:1])
    steps = [torch.from_numpy(values).double().softmax(0) for values in logits]
    probability = steps[0][tokens[0]] * steps[1][tokens[1]] * (steps[2][tokens[2]] + steps[2][0])
    assert right.probabilities[0] == pytest.approx(float(probability), rel=1e-3)
    assert right.score == pytest.approx((1 + float(probability)) / 2, rel=1e-3)
    assert judge([tokens[0], (tokens[1] + 1) % 300]).quality == 0
    assert judge(tokens[:1]).quality == float(tokens[1] == tokens[2])
    assert judge(tokens).quality == 0


@pytest.mark.parametrize("name", MODELS)
def test_divergence_from_the_full_model(
    golden_model: Callable[[str], TorchModel], golden_prompts: Callable[[str], Prompts], name: str
) -> None:
    model, prompts = golden_model(name), golden_prompts(name)
    evaluator = Evaluator(model, prompts, "kl")
    full = evaluator.outcomes(FULL_MODEL)
    assert full.quality == pytest.approx(1, abs=1e-6)
    pruned = evaluator.outcomes(PolicyOptions(retention=0.05), 2)
    assert len(pruned.values) == 2
    logs = []
    for options in (FULL_MODEL, PolicyOptions(retention=0.05)):
        before = run_pack(model, model.decoder(model.resolve(options)), prompts, [1])
        logs.append(torch.from_numpy(before.logits[0]).double().log_softmax(0))
    expected = float((logs[0].exp() * (logs[0] - logs[1])).sum())
    assert expected > 1e-4
    assert pruned.values[1] == pytest.approx(expected, rel=1e-2)
    assert pruned.quality == pytest.approx(np.exp(-pruned.values.mean()))


def test_score_counts_accuracy_and_probability() -> None:
    def outcomes(values: list[float], probability: float) -> Outcomes:
        return Outcomes("accuracy", np.array(values), np.full(len(values), probability), np.zeros(len(values), int))

    assert outcomes([1, 0, 0, 0], 0.75).score == 0.5
    assert outcomes([1, 0, 0], 0.9).score > outcomes([0, 1, 0], 0.2).score
    assert outcomes([1, 1, 0], 0.5).score > outcomes([0, 1, 0], 0.5).score
    assert outcomes([1, 0, 0], 0.5).part(1).quality == 1
