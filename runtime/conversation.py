# SPDX-License-Identifier: Apache-2.0
"""A conversation about pictures that keeps its key-value cache: a question costs its own tokens alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from types import NoneType
from typing import Any

import numpy as np

from fastmmoe.runtime.answer import STOP, Answer, Piece
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.ending import Ending
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.generation import Run, since
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.vlm import VLM


class Conversation:
    """Questions and answers in turn. Visual tokens that a question's prefill prunes stay pruned in all that follow.

    Args:
        vlm: the loaded bundle.
        system: system prompt (default: the model's own).
        options: fields of `RequestOptions`, for every question that does not name them itself.
    Raises:
        InvalidRequest: arguments of another type, or options outside what the model or the method allows.
    """

    def __init__(self, vlm: VLM, *, system: str | None = None, **options: Any) -> None:
        if not isinstance(vlm, VLM):
            raise InvalidRequest(f"vlm is of type {type(vlm).__name__}: expected a loaded bundle, VLM(directory)")
        if not isinstance(system, (str, NoneType)):
            raise InvalidRequest(f"system is of type {type(system).__name__}: expected a string, or None")
        self._vlm, self._system, self._options = vlm, system, options
        RequestOptions.of(options)
        self._batch = Batch(vlm.backend)
        self._run: Run | None = None
        self._pictures = 0
        # The last answer: its tokens without the one that ended it, and whether one did.
        self._written: list[int] = []
        self._has_stopped = False

    def ask_stream(self, content: Any, *, cancel: Any = None, **options: Any) -> Iterator[Piece]:
        """The answer, token by token. A stream that is left early counts as an answer that ended there.

        One that its deadline or `cancel` ends before its first token was never asked.

        Args:
            content: a user's message: a string, or a list of text and image parts.
            cancel: as in `VLM.generate_stream`.
            options: of this question.
        Raises:
            InvalidRequest: content or options are not legal, or the conversation has grown too long; before any token.
        """
        request = RequestOptions.of(self._options | options)
        ending = Ending.of(request, cancel)
        start = time.perf_counter()
        inputs = self._inputs(content, request.max_tiles)
        preprocess_ms = since(start)
        run = self._vlm.start([inputs], request, ending, self._batch)
        run.stats[0].preprocess_ms = preprocess_ms
        return self._stream(run, self._vlm.pieces(run, request), self._run, len(inputs.tile_counts))

    def _stream(
        self, run: Run, pieces: Iterator[tuple[int, Piece]], previous: Run | None, pictures: int
    ) -> Iterator[Piece]:
        if self._run is not previous:
            raise InvalidRequest("another question has been asked since: ask this one again")
        before = self._pictures, self._written, self._has_stopped
        self._run, self._pictures = run, self._pictures + pictures
        self._written, self._has_stopped = [], False
        for _, piece in pieces:
            if piece.token_id is not None:
                is_chosen = piece.stop_reason is not None or bool(piece.choices)
                self._has_stopped = piece.finish_reason == STOP and not is_chosen
                self._written += [] if self._has_stopped else [piece.token_id]
            elif not self._written:
                self._run, (self._pictures, self._written, self._has_stopped) = previous, before
            yield piece
            # Before the next step, which would write to the caches that the other question has extended.
            if piece.finish_reason is None and self._run is not run:
                raise InvalidRequest("another question has been asked since: this answer has ended")

    def ask(self, content: Any, *, cancel: Any = None, **options: Any) -> Answer:
        """As `ask_stream`, the whole answer at once."""
        return Answer.of(list(self.ask_stream(content, cancel=cancel, **options)))

    def _inputs(self, content: Any, max_tiles: int | None) -> ModelInputs:
        processor = self._vlm.processor
        if self._run is None:
            system = [] if self._system is None else [{"role": "system", "content": self._system}]
            return processor([*system, {"role": "user", "content": content}], max_tiles=max_tiles)
        # What ends an answer is part of the next question's tokens, whichever way the answer ended.
        rest = [] if self._has_stopped else self._run.unfed[0]
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
