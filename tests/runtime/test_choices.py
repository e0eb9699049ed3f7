# SPDX-License-Identifier: Apache-2.0
"""Choices by likelihood: which calls find it, what counts as their end, and the caches afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.choices import Choices, log_likelihoods
from fastmmoe.runtime.ending import Ending
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.generation import Run
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.types import Array
from tests.support.echo import Echo
from tests.support.manifests import toy_manifest
from tests.support.processors import MakeProcessor

MANIFEST = toy_manifest("deepseek_vl2")
VOCAB = MANIFEST.language_model.vocab_size
END = 1
TREE = [(3,), (4, 5), (4, 6, 7), (4, 6, 8), (9,)]


def row(position: int, token: int) -> Array:
    """Logits after a token at a position."""
    return np.random.default_rng([position, token]).normal(size=VOCAB).astype(np.float32)


def log_probability(position: int, token: int, *following: int) -> float:
    """Of any of these after a token at a position, the slow way."""
    weights = np.exp(row(position, token).astype(np.float64))
    return float(np.log(weights[list(following)].sum() / weights.sum()))


@pytest.fixture
def echo() -> Echo:
    """Its logits follow from the last token of each sequence and its position."""

    def logits(feeds: dict[str, Array]) -> Array:
        last = feeds[graph_io.SEQUENCE_OFFSETS][1:] - 1
        ids = feeds[graph_io.INPUTS_EMBEDS][last, 0].astype(int)
        return np.stack([row(p, i) for p, i in zip(feeds[graph_io.POSITION_IDS][last], ids, strict=True)])

    return Echo(MANIFEST.language_model, MANIFEST.policy, logits=logits, may_rewind=True)


def run_of(echo: Echo, *prompts: int, ending: Any = None, **options: Any) -> Run:
    """Prompts of so many tokens 2."""
    inputs = [ModelInputs(np.full(n, 2, np.int32), np.zeros(0, np.int32), {}) for n in prompts]
    request = RequestOptions.of({"choices": ["a"], "max_new_tokens": 4} | options)
    return Run(MANIFEST, echo, inputs, request, ending=ending or Ending())


def by_hand(prompt: int, choice: tuple[int, ...]) -> float:
    """Token by token."""
    tokens = [2, *choice]
    return sum(log_probability(prompt - 1 + i, tokens[i], tokens[i + 1]) for i in range(len(choice)))


def test_one_prefill_and_one_step_for_each_place_where_choices_go_on(echo: Echo) -> None:
    run = run_of(echo, 5, 3)
    found = log_likelihoods(run, TREE, [END])
    assert found is not None and found.shape == (2, 5)
    assert found == pytest.approx(np.array([[by_hand(n, choice) for choice in TREE] for n in (5, 3)]), abs=1e-6)
    # After the prompts, after 4 and after 4, 6, for both prompts at once.
    fed = [call[graph_io.INPUTS_EMBEDS][:, 0].tolist() for call in echo.calls]
    assert fed == [[2] * 8, [4, 4], [6, 6]]
    assert [call[graph_io.POSITION_IDS].tolist() for call in echo.calls[1:]] == [[5, 3], [6, 4]]
    assert len(echo.made) == 1 and [len(one.decode_ms) for one in run.stats] == [2, 2]


def test_branches_begin_where_they_part(echo: Echo) -> None:
    """The second branch writes over the rows of the first."""
    choices = [(4, 5, 6), (4, 7, 8), (3, 3, 3)]
    run = run_of(echo, 5)
    found = log_likelihoods(run, choices, [END])
    assert found == pytest.approx(np.array([[by_hand(5, choice) for choice in choices]]), abs=1e-6)
    steps = [(call[graph_io.POSITION_IDS].tolist(), call[graph_io.INPUTS_EMBEDS][0, 0]) for call in echo.calls[1:]]
    assert steps == [([5], 3), ([6], 3), ([5], 4), ([6], 5), ([6], 7)]


def test_choices_of_one_token_are_an_argmax(echo: Echo) -> None:
    for prompt in range(2, 30):
        run = run_of(echo, prompt)
        found = log_likelihoods(run, [(token,) for token in (8, 3, 5)], [END])
        assert found is not None and len(echo.calls) == 1
        assert found.argmax() == np.argmax(row(prompt - 1, 2)[[8, 3, 5]])
        echo.calls.clear()


def test_the_end_counts_where_another_choice_goes_on(echo: Echo) -> None:
    """So a choice and one that begins with it exclude each other."""
    run = run_of(echo, 5)
    found = log_likelihoods(run, [(4,), (4, 6), (3,)], [END, 7])
    expected = [by_hand(5, (4,)) + log_probability(5, 4, END, 7), by_hand(5, (4, 6)), by_hand(5, (3,))]
    assert found == pytest.approx(np.array([expected]), abs=1e-6)


def test_the_run_goes_on_from_the_choice(echo: Echo) -> None:
    run = run_of(echo, 5, 3)
    choices = Choices(tuple("abcde"), tuple(TREE), (), (END,))
    found = choices.answer(run)
    assert found is not None
    for prompt, of_prompt, unfed in zip((5, 3), found, run.unfed, strict=True):
        likelihoods = [by_hand(prompt, choice) for choice in TREE]
        assert [one.log_likelihood for one in of_prompt] == pytest.approx(likelihoods, abs=1e-6)
        assert [one.probability for one in of_prompt] == pytest.approx(np.exp(likelihoods) / np.exp(likelihoods).sum())
        assert [one.text for one in of_prompt] == [*"abcde"] and unfed == list(TREE[int(np.argmax(likelihoods))])
    assert run.batch.lengths == [5, 3] and run.batch.cache_lengths.tolist() == [[5] * 4, [3] * 4]


def test_the_first_of_equal_choices(echo: Echo) -> None:
    echo.logits = 0.5
    run = run_of(echo, 5)
    assert Choices(("a", "b"), ((8,), (3,)), (), (END,)).answer(run) is not None
    assert run.unfed == [[8]]


def test_a_run_that_is_ended_leaves_the_caches_as_they_were(echo: Echo) -> None:
    class After:
        """Cancels before the third call."""

        def is_set(self) -> bool:
            return len(echo.calls) >= 2

    run = run_of(echo, 5, ending=Ending(cancel=After()))
    assert log_likelihoods(run, TREE, [END]) is None
    assert (run.ended, len(echo.calls), run.batch.lengths) == ("cancelled", 2, [0])
    assert not run.batch.cache_lengths.any()


def test_a_choice_longer_than_the_positions_that_are_left(echo: Echo) -> None:
    echo.longest = 8
    choices = Choices(("a", "long"), ((3,), (4, 5, 6, 7)), (), (END,))
    choices.check_room(run_of(echo, 5))
    with pytest.raises(InvalidRequest, match=r"^choice 'long' has 4 tokens, the model's positions leave 3 after"):
        choices.check_room(run_of(echo, 4, 6))


def test_choices_of_texts(processor: MakeProcessor) -> None:
    bytes_of = processor("internvl-qwen3moe")
    found = Choices.of(["left", "\u00e9"], bytes_of)
    assert found.token_ids == ((*b"left",), (*"\u00e9".encode(),)) and (found.header, found.longest) == ((), 4)
    assert found.ends == bytes_of.config.stop_token_ids != ()


def test_answers_of_gpt_oss_have_a_header(processor: MakeProcessor) -> None:
    make = processor("internvl-gptoss")
    header = Choices.of(["a"], make).header
    assert make._require_encoder().text("final") == list(header[1:-1]) and len(header) > 2


def test_texts_that_are_the_same_to_the_model(processor: MakeProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    make = processor("internvl-qwen3moe")
    monkeypatch.setattr(make, "encode", lambda pieces: [] if pieces == ["nothing"] else [*pieces[0].lower().encode()])
    with pytest.raises(InvalidRequest, match=r"^choices hold 'A', whose tokens are those of 'a'$"):
        Choices.of(["b", "a", "A"], make)
    with pytest.raises(InvalidRequest, match=r"^choices hold 'nothing', which has no tokens: expected texts"):
        Choices.of(["b", "nothing"], make)
