# SPDX-License-Identifier: Apache-2.0
"""What a request gives back: pieces become an answer, stop texts across tokens, log-probabilities, early ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.answer import Answer, Logprob, Piece, pieces_of
from fastmmoe.runtime.choices import Choice
from fastmmoe.runtime.generation import Token
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.sampling import TokenLogprobs
from tests.support.processors import MakeProcessor
from tests.support.scripted_run import ANALYSIS, FINAL, GptOss, ScriptedRun


def piece(text: str, number: int, reason: str | None = None, channel: str = "final", aside: str = "") -> Piece:
    stats: Any = f"stats {number}"
    return Piece(text, number, reason, stats, channel, aside)


def test_an_answer_of_pieces() -> None:
    pieces = [
        piece("", 1, channel="analysis", aside="Hm"),
        piece("", 2, channel="analysis", aside="."),
        piece("", 3, channel="commentary", aside="{}"),
        piece("Y", 4),
        piece("es", 5, "stop"),
    ]
    answer = Answer.of(pieces)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("Yes", (1, 2, 3, 4, 5), "stop")
    assert answer.stats == "stats 5" and answer.channels == {"analysis": "Hm.", "commentary": "{}"}
    assert (answer.logprobs, answer.stop_reason, answer.choices) == ((), None, ())


def test_an_answer_of_pieces_with_more() -> None:
    one, choices = Logprob(4, "Y", -1.0), (Choice("Yes", (4,), -1.0, 1.0),)
    last = replace(piece("", 5, "deadline"), token_id=None, stop_reason="x", choices=choices)
    answer = Answer.of([replace(piece("Y", 4), logprob=one), last])
    assert (answer.token_ids, answer.finish_reason) == ((4,), "deadline")
    assert (answer.logprobs, answer.stop_reason, answer.choices) == ((one,), "x", choices)


class EndingRun(ScriptedRun):
    """A run that is ended where its scripts end."""

    ended = "deadline"

    def __init__(self, *scripts: list[int]) -> None:
        super().__init__([*scripts], [], [[] for _ in scripts], [99] * len(scripts))

    def tokens(self) -> Iterator[list[Token]]:
        """The tokens of those that have some."""
        for count in range(max(map(len, self.scripts))):
            yield [Token(row, script[count]) for row, script in enumerate(self.scripts) if count < len(script)]


def run_of(*scripts: list[int]) -> Any:
    return ScriptedRun([*scripts], [], [[] for _ in scripts], [len(script) for script in scripts])


def asked(processor: Processor, run: Any, **options: Any) -> list[list[Piece]]:
    """Pieces of each sequence."""
    found: list[list[Piece]] = [[] for _ in run.stats]
    for i, one in pieces_of(run, processor, RequestOptions.of(options)):
        found[i].append(one)
    return found


@pytest.mark.parametrize(
    ("said", "stop", "pieces", "reason"),
    [
        # Tokens are letters.
        ("to STOP it", "STOP", ["t", "o", " ", "", "", "", ""], "STOP"),
        ("to STA it", "STOP", ["t", "o", " ", "", "", "STA", " ", "i", "t"], None),
        ("to ST", "STOP", ["t", "o", " ", "", "ST"], None),
        ("a\n\nb", ["b", "\n\n"], ["a", "", ""], "\n\n"),
        ("caf\u00e9s", ["\u00e9"], ["c", "a", "f", "", ""], "\u00e9"),
    ],
)
def test_stop_texts_across_tokens(
    said: str, stop: Any, pieces: list[str], reason: str | None, processor: MakeProcessor
) -> None:
    """No piece shows a part of the text that ends the answer."""
    run = run_of([*said.encode()])
    (found,) = asked(processor("internvl-qwen3moe"), run, stop=stop)
    assert [one.text for one in found] == pieces and found[-1].stop_reason == reason
    assert [one.finish_reason for one in found] == [None] * (len(found) - 1) + ["stop" if reason else "length"]


def test_a_text_that_ends_one_answer_of_a_batch(processor: MakeProcessor) -> None:
    make = processor("internvl-qwen3moe")
    end = make.config.stop_token_ids[0]
    first, second, third = asked(make, run_of([*b"a.b"], [*b"abc"], [*b"a", end, *b"b"]), stop=["."])
    assert ["".join(one.text for one in row) for row in (first, second, third)] == ["a", "abc", "a"]
    assert [row[-1].finish_reason for row in (first, second, third)] == ["stop", "length", "stop"]
    assert [row[-1].stop_reason for row in (first, second, third)] == [".", None, None]


def test_what_is_held_back_comes_with_a_token_that_ends_the_answer(processor: MakeProcessor) -> None:
    make = processor("internvl-qwen3moe")
    (found,) = asked(make, run_of([*b"a S", make.config.stop_token_ids[0]]), stop="STOP")
    assert [one.text for one in found] == ["a", " ", "", "S"]
    assert (found[-1].finish_reason, found[-1].stop_reason) == ("stop", None)


def test_stop_texts_are_those_of_the_answer_alone(gpt_oss: GptOss) -> None:
    said = f"{ANALYSIS}No stop.<|end|><|start|>assistant{FINAL}A stop."
    (found,) = asked(gpt_oss.processor, run_of(gpt_oss.encode(said)), stop="stop")
    answer = Answer.of(found)
    assert (answer.text, answer.channels, answer.stop_reason) == ("A ", {"analysis": "No stop."}, "stop")


def test_a_text_that_waited_for_what_would_follow_ends_the_answer(gpt_oss: GptOss) -> None:
    """gpt-oss's " to=" may begin a header until nothing follows."""
    for stop, text, reason in (("to=", " ", "stop"), ("x", " to=", "length"), ("=f", " to=", "length")):
        (found,) = asked(gpt_oss.processor, run_of(gpt_oss.encode(" to=functions")[:4]), stop=stop)
        assert (Answer.of(found).text, found[-1].finish_reason) == (text, reason)


def test_answers_that_are_ended_early(processor: MakeProcessor) -> None:
    """What was held back comes with the reason, and with no token."""
    make = processor("internvl-qwen3moe")
    first, second, third = asked(make, EndingRun([*b"a S"], [*b"b."], []), stop=["STOP", "."])
    assert [one.text for one in first] == ["a", " ", "", "S"]
    assert [(one.token_id, one.finish_reason) for one in first[-2:]] == [(ord("S"), None), (None, "deadline")]
    assert (second[-1].text, second[-1].finish_reason) == ("", "stop")
    assert [(one.text, one.token_id, one.finish_reason) for one in third] == [("", None, "deadline")]
    assert Answer.of(third).token_ids == ()


def test_log_probabilities_have_the_tokens_texts(processor: MakeProcessor) -> None:
    make = processor("internvl-qwen3moe")
    end = make.config.stop_token_ids[0]

    class One(ScriptedRun):
        def tokens(self) -> Iterator[list[Token]]:
            yield [Token(0, ord("a"), None, TokenLogprobs(-0.25, ((ord("b"), -0.125), (end, -2.0))))]

    ((found,),) = asked(make, One([[ord("a")]], [], [[]], [1]), logprobs=2)
    top = (Logprob(ord("b"), "b", -0.125), Logprob(end, "<|im_end|>", -2.0))
    assert found.logprob == Logprob(ord("a"), "a", -0.25, top)


class ChosenRun:
    """A run whose choices are as likely as their tokens say."""

    def __init__(self, ended: str | None = None) -> None:
        self.stats, self.ended, self.went_on = ["first", "second"], ended, None

    def logits_after(self, tokens: Any) -> Any:
        """Of the first prompt the greater tokens are likelier, of the second the smaller."""
        rising = np.arange(400, dtype=np.float32) / 100
        return None if self.ended else np.stack([rising, -rising])

    def answer_with(self, tokens: Any) -> None:
        """Kept."""
        self.went_on = tokens


def test_a_choice_is_an_answer(processor: MakeProcessor) -> None:
    run = ChosenRun()
    first, second = asked(processor("internvl-qwen3moe"), run, choices=["ac", "ab"])
    assert run.went_on == [(*b"ac",), (*b"ab",)]
    for found, text, stats in ((first, "ac", "first"), (second, "ab", "second")):
        answer = Answer.of(found)
        assert (answer.text, answer.token_ids, answer.finish_reason) == (text, (*text.encode(),), "stop")
        assert answer.stats == stats and [one.text for one in found] == ["", text] and found[0].choices == ()
        assert [choice.text for choice in answer.choices] == ["ac", "ab"]
        assert sum(choice.probability for choice in answer.choices) == pytest.approx(1)
        likely = math.exp(answer.choices[0].log_likelihood - answer.choices[1].log_likelihood)
        assert likely == pytest.approx(math.exp(0.01 if text == "ac" else -0.01), rel=1e-4)


def test_choices_that_are_ended_early(processor: MakeProcessor) -> None:
    for found in asked(processor("internvl-qwen3moe"), ChosenRun("cancelled"), choices=["ac", "ab"]):
        answer = Answer.of(found)
        assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), "cancelled") and not answer.choices
