# SPDX-License-Identifier: Apache-2.0
"""What a request gives back: an answer, piece by piece or whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fastmmoe.runtime.choices import Choice, Choices
from fastmmoe.runtime.generation import RequestStats, Run, Token
from fastmmoe.runtime.request.answers import FINAL, StopTexts
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.request.processor import Processor

STOP, LENGTH = "stop", "length"
"""Reasons of an answer's end, beside those of ending.py."""


@dataclass(frozen=True)
class Logprob:
    """A token's log-probability by the model itself, before temperature, top_k and top_p.

    Attributes:
        token: how it is written (`Processor.token_text`).
        top_logprobs: of a token of an answer, the most probable ones in its place, as many as `logprobs` asks for.
    """

    token_id: int
    token: str
    logprob: float
    top_logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Piece:
    """One decoded token.

    Attributes:
        text: the part of the answer that this token completes.
        token_id: None in the last piece of an answer that was ended early: no token came with it.
        finish_reason: why generation ended ("stop", "length", "deadline", "cancelled") or None.
        channel: the one that the token belongs to: "final" in the answer, and always with templates without channels.
        aside: text that it completes in another channel, such as "analysis".
        logprob: where the request asks for it.
        stop_reason: the text of `stop` that ended the answer; None where something else did.
        choices: in the last piece of a request that has some.
    """

    text: str
    token_id: int | None
    finish_reason: str | None
    stats: RequestStats
    channel: str = FINAL
    aside: str = ""
    logprob: Logprob | None = None
    stop_reason: str | None = None
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A whole answer: its text, and by channel what else the model wrote (analysis, tool calls).

    Attributes:
        finish_reason, stop_reason, choices: see `Piece`.
        logprobs: of each token, where the request asks for them.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stats: RequestStats
    channels: Mapping[str, str] = field(default_factory=dict)
    logprobs: tuple[Logprob, ...] = ()
    stop_reason: str | None = None
    choices: tuple[Choice, ...] = ()

    @staticmethod
    def of(pieces: Sequence[Piece]) -> Answer:
        """The answer whose pieces these are, to the last."""
        last = pieces[-1]
        assert last.finish_reason is not None
        channels: dict[str, str] = {}
        for piece in pieces:
            if piece.aside:
                channels[piece.channel] = channels.get(piece.channel, "") + piece.aside
        return Answer(
            "".join(piece.text for piece in pieces),
            tuple(piece.token_id for piece in pieces if piece.token_id is not None),
            last.finish_reason,
            last.stats,
            channels,
            tuple(piece.logprob for piece in pieces if piece.logprob is not None),
            last.stop_reason,
            last.choices,
        )


def pieces_of(run: Run, processor: Processor, options: RequestOptions) -> Iterator[tuple[int, Piece]]:
    """(number, piece) of every sequence of a run until each has ended."""
    if options.choices is not None:
        yield from _chosen(run, Choices.of(options.choices, processor))
        return
    writers = [_Writer(processor, stats, options.stops) for stats in run.stats]
    for count, tokens in enumerate(run.tokens(), start=1):
        for token in tokens:
            i = token.sequence
            piece = writers[i].write(token, is_last=count == run.max_new_tokens[i])
            if piece.finish_reason == STOP:
                run.finish(i)
            yield i, piece
    for i, writer in enumerate(writers):
        if not writer.has_ended:
            yield i, writer.break_off(run.ended)


def _chosen(run: Run, choices: Choices) -> Iterator[tuple[int, Piece]]:
    """Every token of the most likely choice; its text comes with the last."""
    found = choices.answer(run)
    for i, stats in enumerate(run.stats):
        if found is None:
            yield i, Piece("", None, run.ended, stats)
            continue
        best = max(found[i], key=lambda choice: choice.log_likelihood)
        for token_id in best.token_ids[:-1]:
            yield i, Piece("", token_id, None, stats)
        yield i, Piece(best.text, best.token_ids[-1], STOP, stats, choices=found[i])


class _Writer:
    """The pieces of one answer.

    Attributes: has_ended: the last piece has been written.
    """

    def __init__(self, processor: Processor, stats: RequestStats, stops: Sequence[str]) -> None:
        self._processor, self._stats, self.has_ended = processor, stats, False
        self._stream, self._stops = processor.new_stream(), StopTexts(stops)

    def write(self, token: Token, *, is_last: bool) -> Piece:
        """The piece of a token; is_last: none may follow."""
        text, reason = self._stops.push(self._stream.push(token.id)), None
        aside = self._stream.aside
        if self._stops.found is not None or self._stream.has_ended:
            reason = STOP
        elif is_last:
            reason, text = LENGTH, text + self._stops.push(self._stream.rest())
            # What the stream had waited with may hold a stop text, too.
            reason = LENGTH if self._stops.found is None else STOP
        if reason is not None and self._stops.found is None:
            text += self._stops.rest()
        self.has_ended = reason is not None
        stop_reason = None if self._stream.has_ended else self._stops.found
        logprob = self._logprob(token)
        return Piece(text, token.id, reason, self._stats, self._stream.channel, aside, logprob, stop_reason)

    def break_off(self, reason: str | None) -> Piece:
        """The last piece of an answer that goes no further: what was held back of it."""
        text = self._stops.push(self._stream.rest())
        return Piece(text + self._stops.rest(), None, reason, self._stats, self._stream.channel)

    def _logprob(self, token: Token) -> Logprob | None:
        if token.logprobs is None:
            return None
        top = tuple(self._named(token_id, value) for token_id, value in token.logprobs.top)
        return Logprob(token.id, self._processor.token_text(token.id), token.logprobs.chosen, top)

    def _named(self, token_id: int, logprob: float) -> Logprob:
        return Logprob(token_id, self._processor.token_text(token_id), logprob)
