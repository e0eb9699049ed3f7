# SPDX-License-Identifier: Apache-2.0
"""A conversation: its arguments, and what each question appends to the cache."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fastmmoe.runtime.conversation import Conversation
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.generation import Token
from fastmmoe.runtime.vlm import VLM
from tests.support.scripted_run import ANALYSIS, CALL_TEXT, FINAL, GptOss, ScriptedRun


def test_a_conversation_is_one_with_a_loaded_bundle() -> None:
    vlm: Any = "demo-cpu"
    with pytest.raises(InvalidRequest, match=r"^vlm is of type str: expected a loaded bundle, VLM.directory.$"):
        Conversation(vlm)
    vlm, system = object.__new__(VLM), ["Be brief."]
    with pytest.raises(InvalidRequest, match=r"^system is of type list: expected a string, or None$"):
        Conversation(vlm, system=system)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "is_cut", "kept"),
    [
        (f"{FINAL}Yes.<|end|>", False, f"{FINAL}Yes."),
        (f"{FINAL}Yes.<|return|>", False, f"{FINAL}Yes."),
        (f"{FINAL}Yes.", True, f"{FINAL}Yes."),
        (f"{ANALYSIS}Hm.", True, f"{ANALYSIS}Hm."),
        (f"{ANALYSIS}Hm.<|end|>", True, f"{ANALYSIS}Hm."),
        (f"{ANALYSIS}Hm.<|end|><|start|>", True, f"{ANALYSIS}Hm."),
        (f"{ANALYSIS}Hm.<|end|><|start|>u", False, f"{ANALYSIS}Hm."),
        (f"<|channel|>{CALL_TEXT}<|call|>", False, f"<|channel|>{CALL_TEXT}"),
        ("No header", True, "No header"),
        ("No header<|end|>", False, "No header"),
    ],
)
def test_what_a_conversation_goes_on_with(
    said: str, is_cut: bool, kept: str, gpt_oss: GptOss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache holds each turn once, whatever ended the answer; what ended it is not fed."""
    script = gpt_oss.encode(said)
    fed: list[list[int]] = [[]]
    batch = SimpleNamespace(lengths=[0])

    def new_run(_manifest: Any, _backend: Any, inputs: list[Any], _options: Any, _batch: Any, **_: Any) -> ScriptedRun:
        return ScriptedRun([script], inputs, fed, [len(script)])

    monkeypatch.setattr("fastmmoe.runtime.vlm.Run", new_run)
    monkeypatch.setattr("fastmmoe.runtime.conversation.Batch", lambda _backend: batch)
    vlm: Any = object.__new__(VLM)
    vlm.processor, vlm.manifest, vlm.backend = gpt_oss.processor, None, None
    conversation = Conversation(vlm)
    assert conversation.ask("First?").finish_reason == ("length" if is_cut else "stop")
    batch.lengths[0] = len(fed[0])
    conversation.ask("Second?")
    question = gpt_oss.processor.follow_up("Second?").input_ids.tolist()
    first = gpt_oss.processor([{"role": "user", "content": "First?"}]).input_ids.tolist()
    assert fed[0][: -len(script) + 1 or None] == [*first, *gpt_oss.encode(kept), *question]


def scripted_conversation(gpt_oss: GptOss, monkeypatch: pytest.MonkeyPatch) -> Conversation:
    """Every answer is "a b"."""
    monkeypatch.setattr("fastmmoe.runtime.conversation.Batch", lambda _backend: SimpleNamespace(lengths=[0]))
    script = gpt_oss.encode(f"{FINAL}a b")

    def new_run(_manifest: Any, _backend: Any, inputs: list[Any], _options: Any, _batch: Any, **_: Any) -> ScriptedRun:
        return ScriptedRun([script], inputs, [[]], [len(script)])

    monkeypatch.setattr("fastmmoe.runtime.vlm.Run", new_run)
    vlm: Any = object.__new__(VLM)
    vlm.processor, vlm.manifest, vlm.backend = gpt_oss.processor, None, None
    return Conversation(vlm, system="Be brief.")


def test_an_answer_ends_where_another_question_is_asked(gpt_oss: GptOss, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = scripted_conversation(gpt_oss, monkeypatch)
    first = conversation.ask_stream("First?")
    next(first)
    overtaken: Any = conversation._run
    assert conversation.ask("Second?").text == "a b"
    fed = list(overtaken.fed[0])
    with pytest.raises(InvalidRequest, match=r"^another question has been asked since: this answer has ended$"):
        next(first)
    # Another step would have written to the caches that both share.
    assert overtaken.fed[0] == fed


def test_a_question_that_was_overtaken_is_not_asked(gpt_oss: GptOss, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = scripted_conversation(gpt_oss, monkeypatch)
    first, second = conversation.ask_stream("First?"), conversation.ask_stream("Second?")
    next(second)
    with pytest.raises(InvalidRequest, match=r"^another question has been asked since: ask this one again$"):
        next(first)


def test_what_cannot_be_asked_leaves_the_conversation_as_it_is(
    gpt_oss: GptOss, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = scripted_conversation(gpt_oss, monkeypatch)
    with pytest.raises(InvalidRequest, match="has content of type int: expected a string or a list"):
        conversation.ask(3)
    assert conversation.ask("First?").text == "a b"


def test_only_the_first_question_comes_with_the_system_prompt(gpt_oss: GptOss, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = scripted_conversation(gpt_oss, monkeypatch)
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "First?"}]
    assert conversation._inputs("First?", None).input_ids.tolist() == gpt_oss.processor(system).input_ids.tolist()
    conversation.ask("First?")
    # The last token of an answer that ran out of tokens was not fed.
    follow_up = gpt_oss.processor.follow_up("Second?").input_ids.tolist()
    assert conversation._inputs("Second?", None).input_ids.tolist() == [*gpt_oss.encode("b"), *follow_up]


def test_options_are_those_of_a_request(gpt_oss: GptOss) -> None:
    vlm: Any = object.__new__(VLM)
    with pytest.raises(InvalidRequest, match="retention 2"):
        Conversation(vlm, retention=2)


def scripted(gpt_oss: GptOss, monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> tuple[Conversation, list[Any]]:
    """A conversation whose questions are answered by these runs, and the options and inputs of each."""
    given: list[Any] = []

    def new_run(_manifest: Any, _backend: Any, inputs: list[Any], options: Any, _batch: Any, **_: Any) -> Any:
        given.append((options, inputs[0].input_ids.tolist()))
        return runs[len(given) - 1]

    monkeypatch.setattr("fastmmoe.runtime.conversation.Batch", lambda _backend: SimpleNamespace(lengths=[0]))
    monkeypatch.setattr("fastmmoe.runtime.vlm.Run", new_run)
    vlm: Any = object.__new__(VLM)
    vlm.processor, vlm.manifest, vlm.backend = gpt_oss.processor, None, None
    return Conversation(vlm, max_new_tokens=9), given


class Ended(ScriptedRun):
    """A run that is ended before its first token."""

    ended = "deadline"

    def tokens(self) -> Iterator[list[Token]]:
        """None."""
        yield from ()


def test_a_question_that_is_ended_before_its_first_token_was_not_asked(
    gpt_oss: GptOss, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [[], gpt_oss.encode("a b"), [], gpt_oss.encode("c")]
    runs = [(ScriptedRun if said else Ended)([said], [], [[]], [len(said)]) for said in answers]
    conversation, given = scripted(gpt_oss, monkeypatch, runs)
    assert conversation.ask("First?").finish_reason == "deadline"
    conversation.ask("Second?")
    first = gpt_oss.processor([{"role": "user", "content": "Second?"}]).input_ids.tolist()
    assert given[1][1] == first
    assert conversation.ask("Third?").finish_reason == "deadline"
    conversation.ask("Fourth?")
    follow_up = gpt_oss.processor.follow_up("Fourth?").input_ids.tolist()
    assert given[3][1] == [*gpt_oss.encode("a b")[-1:], *follow_up]


def test_a_question_may_have_options_of_its_own(gpt_oss: GptOss, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [ScriptedRun([gpt_oss.encode("a")], [], [[]], [1]) for _ in range(2)]
    conversation, given = scripted(gpt_oss, monkeypatch, runs)
    conversation.ask("First?", temperature=0.5)
    conversation.ask("Second?")
    assert [(options.temperature, options.max_new_tokens) for options, _ in given] == [(0.5, 9), (0.0, 9)]
    with pytest.raises(InvalidRequest, match="temperature -1"):
        conversation.ask("Third?", temperature=-1)


def test_a_text_that_ended_the_answer_is_a_part_of_the_conversation(
    gpt_oss: GptOss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the cache has its tokens: the last one, which was not fed, comes first."""
    runs = [ScriptedRun([gpt_oss.encode(f"{FINAL}a. b")], [], [[]], [99]) for _ in range(2)]
    conversation, given = scripted(gpt_oss, monkeypatch, runs)
    assert conversation.ask("First?", stop=".").text == "a"
    next(conversation.ask_stream("Second?"))
    follow_up = gpt_oss.processor.follow_up("Second?").input_ids.tolist()
    assert given[1][1] == [*gpt_oss.encode("."), *follow_up]
