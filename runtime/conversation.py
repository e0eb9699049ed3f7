# SPDX-License-Identifier: Apache-2.0
"""A conversation about pictures that keeps its key-value cache: a question costs its own tokens alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from types import NoneType
from typing import Any

import numpy as np

from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.generation import Run, since
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.vlm import VLM, Answer, Piece


class Conversation:
    """Questions and answers in turn. Visual tokens that a question's prefill prunes stay pruned in all that follow.

    Args:
        vlm: the loaded bundle.
        system: system prompt (default: the model's own).
        options: fields of `RequestOptions`, for every question.
    Raises:
        InvalidRequest: arguments of another type, or options outside what the model or the method allows.
    """

    def __init__(self, vlm: VLM, *, system: str | None = None, **options: Any) -> None:
        if not isinstance(vlm, VLM):
            raise InvalidRequest(f"vlm is of type {type(vlm).__name__}: expected a loaded bundle, VLM(directory)")
        if not isinstance(system, (str, NoneType)):
            raise InvalidRequest(f"system is of type {type(system).__name__}: expected a string, or None")
        self._vlm, self._system = vlm, system
        self._options = RequestOptions.of(options)
        self._batch = Batch(vlm.backend)
        self._run: Run | None = None
        self._pictures = 0
        # The last answer: its tokens without the one that ended it, and whether one did.
        self._written: list[int] = []
        self._has_stopped = False

    def ask_stream(self, content: Any) -> Iterator[Piece]:
        """The answer, token by token. A stream that is left early counts as an answer that ended there.

        Args:
            content: a user's message: a string, or a list of text and image parts.
        Raises:
            InvalidRequest: the content is not legal, or the conversation has grown too long; before any token.
        """
        start = time.perf_counter()
        inputs = self._inputs(content)
        preprocess_ms = since(start)
        run = Run(self._vlm.manifest, self._vlm.backend, [inputs], self._options, self._batch)
        run.stats[0].preprocess_ms = preprocess_ms
        return self._stream(run, self._run, len(inputs.tile_counts))

    def _stream(self, run: Run, previous: Run | None, pictures: int) -> Iterator[Piece]:
        if self._run is not previous:
            raise InvalidRequest("another question has been asked since: ask this one again")
        self._run, self._pictures = run, self._pictures + pictures
        self._written, self._has_stopped = [], False
        for _, piece in self._vlm.pieces(run):
            self._has_stopped = piece.finish_reason == "stop"
            self._written += [] if self._has_stopped else [piece.token_id]
            yield piece
            # Before the next step, which would write to the caches that the other question has extended.
            if piece.finish_reason is None and self._run is not run:
                raise InvalidRequest("another question has been asked since: this answer has ended")

    def ask(self, content: Any) -> Answer:
        """As `ask_stream`, the whole answer at once."""
        return Answer.of(list(self.ask_stream(content)))

    def _inputs(self, content: Any) -> ModelInputs:
        processor, max_tiles = self._vlm.processor, self._options.max_tiles
        if self._run is None:
            system = [] if self._system is None else [{"role": "system", "content": self._system}]
            return processor([*system, {"role": "user", "content": content}], max_tiles=max_tiles)
        unfed = self._run.unfed[0]
        # What ends an answer is part of the next question's tokens, whichever way the answer ended.
        rest = [] if unfed is None or self._has_stopped else [unfed]
        inputs = processor.follow_up(
            content,
            pictures_before=self._pictures,
            tokens_before=self._batch.lengths[0] + len(rest),
            max_tiles=max_tiles,
        )
        ids = inputs.input_ids.tolist()
        # A turn that the model invented, or a message of gpt-oss that just ended, may have begun with these tokens.
        count = next(n for n in range(min(len(ids), len(self._written)), -1, -1) if self._written[-n:][:n] == ids[:n])
        input_ids = np.array([*rest, *ids[count:]], inputs.input_ids.dtype)
        return replace(inputs, input_ids=input_ids, visual_index=inputs.visual_index + np.int32(len(rest) - count))
