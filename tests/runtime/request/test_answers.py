# SPDX-License-Identifier: Apache-2.0
"""Which tokens of an answer are its text, which another channel's, and where it ends: streams, batches, follow-ups."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.conversation import Conversation
from fastmmoe.runtime.generation import Token
from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.request.tokens import load_tokenizer
from fastmmoe.runtime.vlm import VLM, Answer

GPT_OSS = "internvl-gptoss"
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"
NEXT = "<|start|>assistant"
RETURN = 372


@dataclass
class Model:
    """gpt-oss's processor, with the token for calls that the golden tokenizer lacks."""

    processor: Processor
    encode: Callable[[str], list[int]]


@pytest.fixture(scope="session")
def gpt_oss(
    processor: Callable[[str], Processor], checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Model:
    values = json.loads((checkpoint(GPT_OSS) / "tokenizer.json").read_text().replace("<unused_378>", "<|call|>"))
    values["added_tokens"].append({**values["added_tokens"][0], "id": 378, "content": "<|call|>"})
    file = tmp_path_factory.mktemp("gpt-oss") / "tokenizer.json"
    file.write_text(json.dumps(values))
    tokenizer = load_tokenizer(file)
    config = processor(GPT_OSS).config
    return Model(Processor(config, file), lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids))


@dataclass
class ScriptedRun:
    """A run whose sequences say given tokens; what it is extended by is recorded."""

    scripts: list[list[int]]
    inputs: list[Any]
    fed: list[list[int]]
    max_new_tokens: list[int]
    stats: list[Any] = field(default_factory=list)
    unfed: list[int | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stats = [SimpleNamespace(preprocess_ms=0.0) for _ in self.scripts]
        self.unfed = [None] * len(self.scripts)
        self._rows = list(range(len(self.scripts)))

    def tokens(self) -> Iterator[list[Token]]:
        for row, inputs in enumerate(self.inputs):
            self.fed[row] += inputs.input_ids.tolist()
        count = 0
        while self._rows:
            for row in self._rows:
                if self.unfed[row] is not None:
                    self.fed[row].append(self.unfed[row])  # type: ignore[arg-type]
                self.unfed[row] = self.scripts[row][count]
            count += 1
            yield [Token(row, self.scripts[row][count - 1], np.zeros(1)) for row in self._rows]
            self._rows = [row for row in self._rows if count < self.max_new_tokens[row]]

    def finish(self, row: int) -> None:
        self._rows = [one for one in self._rows if one != row]


def _answers(model: Model, *texts: str, max_new_tokens: int | None = None) -> list[Answer]:
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


CALL_TEXT = 'commentary to=functions.find <|constrain|>json<|message|>{"a": 1}'


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
def test_channels_of_an_answer(said: str, text: str, channels: dict[str, str], gpt_oss: Model) -> None:
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
        (f"{ANALYSIS}A long thought<|end|>", 14, "", {"analysis": "A l"}),
        (f"{FINAL}Yes, final.", 10, "Yes", {}),
        (f"{FINAL}Yes", 3, "", {}),
        (" to=functions", 4, " to=", {}),
        ("héllo", 2, "h", {}),
    ],
)
def test_an_answer_that_ran_out_of_tokens(
    said: str, count: int, text: str, channels: dict[str, str], gpt_oss: Model
) -> None:
    (answer,) = _answers(gpt_oss, said, max_new_tokens=count)
    assert (answer.text, dict(answer.channels), answer.finish_reason) == (text, channels, "length")


def test_the_tokens_of_an_answer_end_with_what_ended_it(gpt_oss: Model) -> None:
    said = f"{FINAL}Yes.<|end|>"
    (answer,) = _answers(gpt_oss, f"{said}<|start|>user<|message|>Really?")
    assert list(answer.token_ids) == gpt_oss.encode(said)


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
    said: str, is_cut: bool, kept: str, gpt_oss: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache holds each turn once, whatever ended the answer; what ended it is not fed."""
    script = gpt_oss.encode(said)
    fed: list[list[int]] = [[]]
    batch = SimpleNamespace(lengths=[0])

    def new_run(_manifest: Any, _backend: Any, inputs: list[Any], _options: Any, _batch: Any) -> ScriptedRun:
        return ScriptedRun([script], inputs, fed, [len(script)])

    monkeypatch.setattr("fastmmoe.runtime.conversation.Run", new_run)
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
