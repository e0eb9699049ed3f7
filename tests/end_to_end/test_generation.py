# SPDX-License-Identifier: Apache-2.0
"""Choices against teacher-forced prefills, drawn tokens and stop texts, on real graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.calibration.data import Sample, load_samples
from fastmmoe.calibration.scenes import COLOR_NAMES, SHAPE_NAMES
from fastmmoe.runtime.choices import Choice
from fastmmoe.runtime.conversation import Conversation
from fastmmoe.runtime.generation import Run
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM
from tests.end_to_end.conftest import SMALL
from tests.support.messages import question

CLOSE = 1e-4
"""Of a log-likelihood."""
CHOICES = {
    "color": COLOR_NAMES,
    "shape": SHAPE_NAMES,
    "exist": ("yes", "no"),
    "side": ("yes", "no"),
    "count": tuple("0123456"),
    "cell": tuple(f"{column}{row}" for column in "ABCD" for row in "1234"),
}
WORDS = ("a red cube", "a red cube left of the mug", "a red ball", "B3 and D1")
"""Of several tokens, of which some share a beginning, and one goes on from another."""


def logits_of(vlm: VLM, inputs: ModelInputs, tokens: Sequence[int], options: RequestOptions) -> Array:
    """After the prompt and these tokens, float64 log-probabilities of one prefill of them all."""
    ids = np.concatenate([inputs.input_ids, np.array(tokens, np.int32)])
    ((token,),) = Run(vlm.manifest, vlm.backend, [replace(inputs, input_ids=ids)], options, has_logits=True).tokens()
    assert token.logits is not None
    values = token.logits.astype(np.float64)
    return np.asarray(values - np.log(np.exp(values - values.max()).sum()) - values.max())


def assert_teacher_forced(vlm: VLM, messages: object, choices: Sequence[Choice], retention: float = 1.0) -> None:
    """Each log-likelihood is that of prefills of the prompt with ever more of the choice behind it."""
    options = RequestOptions(retention=retention, max_new_tokens=1)
    inputs = vlm.processor(messages)  # type: ignore[arg-type]
    header, ends = vlm.processor.answer_header(), list(vlm.processor.config.stop_token_ids)
    found: dict[tuple[int, ...], Array] = {}

    def after(tokens: tuple[int, ...]) -> Array:
        if tokens not in found:
            found[tokens] = logits_of(vlm, inputs, [*header, *tokens], options)
        return found[tokens]

    for choice in choices:
        ids = choice.token_ids
        expected = sum(float(after(ids[:n])[ids[n]]) for n in range(len(ids)))
        if any(other.token_ids[: len(ids)] == ids for other in choices if other is not choice):
            expected += float(np.logaddexp.reduce(after(ids)[ends]))
        assert choice.log_likelihood == pytest.approx(expected, abs=CLOSE, rel=0), choice.text


def check_questions(vlm: VLM, samples: Sequence[Sample]) -> None:
    """Choices of every kind of question; one in ten gets those of several tokens, too."""
    rights = are_single = 0
    for i, sample in enumerate(samples):
        texts = CHOICES[sample.kind] + (WORDS if i % 10 == 0 else ())
        answer = vlm.generate(sample.messages, choices=texts, retention=1.0)
        assert_teacher_forced(vlm, sample.messages, answer.choices)
        assert answer.text == max(answer.choices, key=lambda one: one.log_likelihood).text
        assert sum(one.probability for one in answer.choices) == pytest.approx(1)
        rights += answer.text == sample.answer
        singles = {one.token_ids[0]: one.log_likelihood for one in answer.choices if len(one.token_ids) == 1}
        if singles:
            first = logits_of(vlm, vlm.processor(sample.messages), [], RequestOptions(retention=1.0, max_new_tokens=1))
            assert max(singles, key=lambda token: first[token]) == max(singles, key=lambda token: singles[token])
            are_single += 1
    assert rights > 0.8 * len(samples) and are_single > 0.5 * len(samples)


@pytest.fixture(scope="session")
def demo(demo_bundle: Path) -> VLM:
    """The built-in model."""
    return VLM(demo_bundle)


def test_choices_of_twenty_questions(demo: VLM) -> None:
    check_questions(demo, load_samples("builtin", split="validation", count=20))


@pytest.mark.slow
def test_choices_of_two_hundred_questions(demo: VLM) -> None:
    check_questions(demo, load_samples("builtin", split="test", count=200))


@pytest.mark.engines
@pytest.mark.parametrize("name", ["dsvl2-mha", "dsvl2-mla", "internvl-qwen3moe", "internvl-gptoss"])
def test_choices_of_every_family(name: str, vlm: Callable[..., VLM], pictures: list[str]) -> None:
    """Pruned too: the choices' rows see what the prompt's pruning has left."""
    model = vlm(name)
    for retention in (1.0, 0.5):
        messages = question("Where?", pictures[0])
        texts = ["left", "le", "left turn", "lamp", "right"]
        options: dict[str, Any] = {"choices": texts, "retention": retention, "max_tiles": 1}
        found = model.generate(messages, **options).choices
        assert [one.text for one in found] == texts
        # One after the other: a prompt, and steps of this choice alone.
        for one in found:
            (alone,) = model.generate(messages, **options | {"choices": [one.text]}).choices
            ids = one.token_ids
            goes_on = any(other.token_ids[: len(ids)] == ids for other in found if other is not one)
            if goes_on:
                assert one.log_likelihood < alone.log_likelihood
            else:
                assert one.log_likelihood == pytest.approx(alone.log_likelihood, abs=CLOSE, rel=0)


def test_choices_of_a_batch(demo: VLM) -> None:
    """As each by itself, in as many calls as one."""
    samples = load_samples("builtin", split="validation", count=3)
    texts = [*WORDS, "red"]
    together = demo.generate_batch([one.messages for one in samples], choices=texts)
    for sample, answer in zip(samples, together, strict=True):
        alone = demo.generate(sample.messages, choices=texts)
        assert (alone.text, alone.token_ids) == (answer.text, answer.token_ids)
        ours, theirs = ([one.log_likelihood for one in every.choices] for every in (answer, alone))
        assert ours == pytest.approx(theirs, abs=CLOSE, rel=0)


def test_a_conversation_goes_on_from_a_choice(demo: VLM) -> None:
    """Of which no token is in the caches yet: as if the answer had been written."""
    (sample,) = load_samples("builtin", split="validation", count=1)
    first, second = (Conversation(demo, retention=1.0) for _ in range(2))
    text = first.ask(sample.messages[0]["content"]).text
    chosen = second.ask(sample.messages[0]["content"], choices=["a red cube left of the mug", text])
    assert chosen.text == text
    for word in ("What color is the mug?", "Is there a red cube?"):
        ours, theirs = (one.ask(word, logprobs=3) for one in (second, first))
        assert ours.token_ids == theirs.token_ids
        for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=CLOSE, rel=0)
    assert second._batch.lengths == first._batch.lengths


@pytest.mark.engines
def test_seeds_and_neighbours(vlm: Callable[..., VLM], pictures: list[str]) -> None:
    """The same seed gives the same answer, alone and in a batch; others give others."""
    model = vlm("dsvl2-mha")
    asked = [question("Where?", picture) for picture in pictures]
    options: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": 8, "max_tiles": 1, "logprobs": 1}
    alone = [model.generate(one, seed=11, **options) for one in asked]
    together = model.generate_batch(asked, seed=11, **options)
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    for ours, theirs in zip(together, alone, strict=True):
        assert [one.logprob for one in ours.logprobs] == pytest.approx(
            [one.logprob for one in theirs.logprobs], abs=1e-3
        )
    assert [model.generate(one, seed=12, **options).token_ids for one in asked] != [one.token_ids for one in alone]
    greedy = [model.generate(one, max_new_tokens=8, max_tiles=1).token_ids for one in asked]
    cold = [model.generate(one, temperature=1e-6, max_new_tokens=8, max_tiles=1).token_ids for one in asked]
    assert cold == greedy


@pytest.mark.engines
def test_a_deadline_and_what_there_is_by_then(vlm: Callable[..., VLM], pictures: list[str]) -> None:
    model, asked = vlm("dsvl2-mha"), question("Where?", pictures[0])
    options: dict[str, Any] = {"max_tiles": 1, "max_new_tokens": 6}
    model.warm_up(asked, **options)
    whole = model.generate(asked, deadline_ms=600_000, **options)
    late = model.generate(asked, deadline_ms=1e-3, **options)
    assert (late.text, late.token_ids, late.finish_reason, late.stats.vision_ms) == ("", (), "deadline", 0)
    cancel = threading.Event()
    stream = model.generate_stream(asked, cancel=cancel, **options)
    pieces = [next(stream), next(stream)]
    cancel.set()
    pieces += stream
    assert [piece.token_id for piece in pieces] == [*whole.token_ids[:2], None]
    assert pieces[-1].finish_reason == "cancelled" and whole.finish_reason in ("stop", "length")
    # Nothing of it is left behind.
    assert model.generate(asked, **options).token_ids == whole.token_ids


def test_a_processors_tensors_give_whole_sequences(
    vlm: Callable[..., VLM], case_tensors: Callable[[str, str], dict[str, Array]]
) -> None:
    """Two rows, one padded on the left, as tensors of torch: prompts as given, then the tokens of run_tensors."""
    torch = pytest.importorskip("torch", reason="needs torch")
    model, tensors = vlm(SMALL), case_tensors("dsvl2-mha", "batch2")
    given = {name: torch.from_numpy(value) for name, value in tensors.items()}
    ids = model.generate_ids(**given, retention=0.5, max_new_tokens=4)
    expected = model.run_tensors(tensors, retention=0.5, max_new_tokens=4)["decode_tokens"]
    assert not set(expected.ravel().tolist()) & set(model.processor.config.stop_token_ids)
    assert ids.tolist() == np.concatenate([tensors["input_ids"], expected], axis=1).tolist()
