# SPDX-License-Identifier: Apache-2.0
"""Which tokens of an answer are its text, which another channel's, and where it ends: streams and batches."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.answer import Answer
from fastmmoe.runtime.request.answers import StopTexts
from fastmmoe.runtime.vlm import VLM
from tests.support.scripted_run import ANALYSIS, CALL_TEXT, FINAL, NEXT, RETURN, GptOss, ScriptedRun


def _answers(model: GptOss, *texts: str, max_new_tokens: int | None = None) -> list[Answer]:
    """What a batch of sequences that say these texts is answered with."""
    scripts = [[*model.encode(text), RETURN] for text in texts]
    limits = [len(script) if max_new_tokens is None else max_new_tokens for script in scripts]
    run: Any = ScriptedRun(scripts, [], [[] for _ in texts], limits)
    vlm: Any = SimpleNamespace(processor=model.processor)
    pieces: list[list[Any]] = [[] for _ in texts]
    for row, piece in VLM.pieces(vlm, run):
        assert piece.text == "" or piece.channel == "final"
        assert piece.aside == "" or piece.channel != "final"
        pieces[row].append(piece)
    return [Answer.of(one) for one in pieces]


@pytest.mark.parametrize(
    ("said", "text", "channels"),
    [
        (f"{FINAL}Yes, final.", "Yes, final.", {}),
        ("No header, héllo 万", "No header, héllo 万", {}),
        ("<|message|>No channel", "No channel", {}),
        ("to the left", "to the left", {}),
        (" to", " to", {}),
        (" tomatoes", " tomatoes", {}),
        (" to=you <|end|>", " to=you ", {}),
        ("", "", {}),
        (f"{ANALYSIS}Hm.<|end|>{NEXT}{FINAL}One.", "One.", {"analysis": "Hm."}),
        (f"{ANALYSIS}Hm.{NEXT}{FINAL}One.", "One.", {"analysis": "Hm."}),
        (f"{ANALYSIS}Hm.<|end|>One.", "One.", {"analysis": "Hm."}),
        (f"{ANALYSIS}A.<|end|>{NEXT}{ANALYSIS}B.<|end|>{NEXT}{FINAL}C.", "C.", {"analysis": "A.B."}),
        (f"{ANALYSIS}Only thoughts", "", {"analysis": "Only thoughts"}),
        (f"{ANALYSIS}Cut header.<|end|>{NEXT}<|channel|>fin", "", {"analysis": "Cut header."}),
        (f"<|channel|>{CALL_TEXT}<|call|>", "", {"commentary to=functions.find": '{"a": 1}'}),
        (
            f"{ANALYSIS}Hm.<|end|>{NEXT} to=functions.find<|channel|>commentary<|message|>{{}}<|call|>",
            "",
            {"analysis": "Hm.", "commentary to=functions.find": "{}"},
        ),
        (" to=functions.find<|channel|>commentary<|message|>{}", "", {"commentary to=functions.find": "{}"}),
        (f"<|channel|>commentary<|message|>I look.<|end|>{NEXT}{FINAL}A.", "A.", {"commentary": "I look."}),
        # Nothing after the end of the final message, and no turn of somebody else, is part of the answer.
        (f"{FINAL}Yes.<|end|>{NEXT}{FINAL}No", "Yes.", {}),
        (f"{FINAL}Yes.{NEXT}{FINAL}No", "Yes.", {}),
        (f"{FINAL}Yes.<|channel|>analysis<|message|>No", "Yes.", {}),
        (f"{FINAL}Yes.<|end|><|start|>user<|message|>Really?<|end|>{NEXT}{FINAL}No", "Yes.", {}),
        ("Yes.<|end|><|start|>user<|message|>Really?", "Yes.", {}),
        ("Yes.<|start|>user<|message|>Really?", "Yes.", {}),
        (f"{ANALYSIS}Hm.<|end|><|start|>user<|message|>Really?<|end|>{NEXT}{FINAL}No", "", {"analysis": "Hm."}),
        (f"{ANALYSIS}Hm.<|end|><|start|>assistants<|message|>No", "", {"analysis": "Hm."}),
        (f"<|end|><|start|>user<|message|>Really?<|end|>{NEXT}{FINAL}No", "", {}),
        (f"<|channel|>{CALL_TEXT}<|call|><|start|>functions.find to=assistant<|message|>No", "",
         {"commentary to=functions.find": '{"a": 1}'}),
    ],
)  # fmt: skip
def test_channels_of_an_answer(said: str, text: str, channels: dict[str, str], gpt_oss: GptOss) -> None:
    (answer,) = _answers(gpt_oss, said)
    assert (answer.text, dict(answer.channels), answer.finish_reason) == (text, channels, "stop")
    assert gpt_oss.processor.decode(gpt_oss.encode(said)) == text
    # In a batch each sequence has its own.
    together = _answers(gpt_oss, f"{FINAL}Other.", said, f"{ANALYSIS}More.")
    assert (together[1].text, dict(together[1].channels)) == (text, channels)
    assert together[0].text == "Other." and together[2].channels == {"analysis": "More."}


@pytest.mark.parametrize(
    ("said", "count", "text", "channels"),
    [
        (f"{ANALYSIS}A long thought<|end|>", 14, "", {"analysis": "A lo"}),
        (f"{FINAL}Yes, final.", 10, "Yes", {}),
        (f"{FINAL}Yes", 3, "", {}),
        (" to=functions", 4, " to=", {}),
        ("héllo", 2, "h", {}),
    ],
)
def test_an_answer_that_ran_out_of_tokens(
    said: str, count: int, text: str, channels: dict[str, str], gpt_oss: GptOss
) -> None:
    (answer,) = _answers(gpt_oss, said, max_new_tokens=count)
    assert (answer.text, dict(answer.channels), answer.finish_reason) == (text, channels, "length")


def test_the_tokens_of_an_answer_end_with_what_ended_it(gpt_oss: GptOss) -> None:
    said = f"{FINAL}Yes.<|end|>"
    (answer,) = _answers(gpt_oss, f"{said}<|start|>user<|message|>Really?")
    assert list(answer.token_ids) == gpt_oss.encode(said)


def shown(stops: list[str], parts: list[str]) -> tuple[list[str], str | None]:
    """What is shown after each part and at the end, and what was found; nothing is pushed after that."""
    texts, found = StopTexts(stops), []
    for part in parts:
        found.append(texts.push(part))
        if texts.found is not None:
            return found, texts.found
    return [*found, texts.rest()], None


@pytest.mark.parametrize(
    ("stops", "parts", "expected", "found"),
    [
        ([], ["a", "b"], ["a", "b", ""], None),
        (["STOP"], ["to S", "TO", "P it"], ["to ", "", ""], "STOP"),
        (["STOP"], ["to S", "TO", "A"], ["to ", "", "STOA", ""], None),
        (["STOP"], ["to ST"], ["to ", "ST"], None),
        # What was held back may still start one later on.
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""], "aab"),
        (["\n\n"], ["a\n", "\nb"], ["a", ""], "\n\n"),
        # The one that ends first; of two that end together the longer.
        (["abcd", "bc"], ["abcd"], ["a"], "bc"),
        (["b", "ab"], ["xab"], ["x"], "ab"),
        (["a"], ["a"], [""], "a"),
        (["\u00e9"], ["caf\u00e9!"], ["caf"], "\u00e9"),
    ],
)
def test_stop_texts(stops: list[str], parts: list[str], expected: list[str], found: str | None) -> None:
    assert shown(stops, parts) == (expected, found)


def test_stop_texts_do_not_depend_on_the_borders_of_tokens() -> None:
    """Nothing that is shown is ever a part of the text that ends the answer, and nothing else is held to the end."""
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(2000):
        text = "".join(random.choice(list("ab"), random.integers(1, 12)))
        stops = ["".join(random.choice(list("abc"), random.integers(1, 5))) for _ in range(random.integers(1, 4))]
        ends = [(end, end - len(stop)) for stop in stops for end in range(len(text) + 1) if text[:end].endswith(stop)]
        expected = text[: min(ends)[1]] if ends else text
        borders = sorted({0, len(text), *random.integers(0, len(text), 3).tolist()})
        parts = [text[a:b] for a, b in itertools.pairwise(borders)]
        pieces, found = shown(stops, parts)
        assert "".join(pieces) == expected and (found is not None) == bool(ends), (text, stops, parts)
        outcomes.add((bool(ends), len(parts) > 1))
    assert len(outcomes) == 4
