# SPDX-License-Identifier: Apache-2.0
"""A run whose sequences say given tokens, and the processor of gpt-oss that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastmmoe.runtime.generation import Token
from fastmmoe.runtime.request.processor import Processor

GPT_OSS = "internvl-gptoss"
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"
NEXT = "<|start|>assistant"
RETURN = 372
CALL_TEXT = 'commentary to=functions.find <|constrain|>json<|message|>{"a": 1}'


@dataclass
class GptOss:
    """The processor of gpt-oss, with the token for calls that the golden tokenizer lacks."""

    processor: Processor
    encode: Callable[[str], list[int]]


@dataclass
class ScriptedRun:
    """A run whose sequences say given tokens; what it is extended by is recorded."""

    scripts: list[list[int]]
    inputs: list[Any]
    fed: list[list[int]]
    max_new_tokens: list[int]
    stats: list[Any] = field(default_factory=list)
    unfed: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stats = [SimpleNamespace(preprocess_ms=0.0) for _ in self.scripts]
        self.unfed = [[] for _ in self.scripts]
        self._rows = list(range(len(self.scripts)))

    def tokens(self) -> Iterator[list[Token]]:
        """As `Run.tokens`."""
        for row, inputs in enumerate(self.inputs):
            self.fed[row] += inputs.input_ids.tolist()
        count = 0
        while self._rows:
            for row in self._rows:
                self.fed[row] += self.unfed[row]
                self.unfed[row] = [self.scripts[row][count]]
            count += 1
            yield [Token(row, self.scripts[row][count - 1], np.zeros(1)) for row in self._rows]
            self._rows = [row for row in self._rows if count < self.max_new_tokens[row]]

    def finish(self, row: int) -> None:
        """As `Run.finish`."""
        self._rows = [one for one in self._rows if one != row]
