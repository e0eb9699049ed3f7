# SPDX-License-Identifier: Apache-2.0
"""The runtime API: a bundle that answers about pictures by the method and at the retention each request picks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmmoe.runtime.backends.load import load_backend
from fastmmoe.runtime.backends.settings import AUTO, PROVIDERS, Settings
from fastmmoe.runtime.bundle.manifest import TOKENIZER, Manifest
from fastmmoe.runtime.bundle.verification import open_bundle
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.generation import RequestStats, Run, Token, since
from fastmmoe.runtime.method.policy import SPARSEVLM
from fastmmoe.runtime.request.answers import FINAL
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.types import Array


@dataclass(frozen=True)
class Piece:
    """One decoded token.

    Attributes:
        text: the part of the answer that this token completes.
        finish_reason: why generation ended ("stop", "length") or None.
        channel: the one that the token belongs to: "final" in the answer, and always with templates without channels.
        aside: text that it completes in another channel, such as "analysis".
    """

    text: str
    token_id: int
    finish_reason: str | None
    stats: RequestStats
    channel: str = FINAL
    aside: str = ""


@dataclass(frozen=True)
class Answer:
    """A whole answer: its text, and by channel what else the model wrote (analysis, tool calls)."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stats: RequestStats
    channels: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(pieces: Sequence[Piece]) -> Answer:
        """The answer whose pieces these are, to the last."""
        reason = pieces[-1].finish_reason
        assert reason is not None
        channels: dict[str, str] = {}
        for piece in pieces:
            if piece.aside:
                channels[piece.channel] = channels.get(piece.channel, "") + piece.aside
        text, ids = "".join(p.text for p in pieces), tuple(p.token_id for p in pieces)
        return Answer(text, ids, reason, pieces[-1].stats, channels)


class VLM:
    """A loaded bundle.

    Args:
        bundle: directory that fastmmoe-export wrote.
        provider: "cpu", "cuda" (ONNX Runtime), "tensorrt", or "auto": the best that bundle and machine have.
        portable: run without the native library, through the operators' ONNX function bodies (slow).
        threads: size of ONNX Runtime's pool; 0 = one for each core that this process may use.
        verify: compare the files' SHA-256 with the manifest's, where that has not been done since they changed; lines
            on stderr say so where it takes longer than a second, or cannot be remembered.
    Raises:
        BackendMissing: what runs the bundle is not installed, or twice, or finds no GPU.
        InvalidRequest: an argument of another type or value, threads below 0 or more than four for each core, or a
            provider that cannot run the bundle.
        BundleMismatch: the directory is no bundle of this version, is damaged, or is for another target.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        provider: str = AUTO,
        portable: bool = False,
        threads: int = 0,
        verify: bool = True,
    ) -> None:
        if not isinstance(bundle, (str, os.PathLike)) or not isinstance(os.fspath(bundle), str):
            raise InvalidRequest(
                f"bundle is of type {type(bundle).__name__}: expected a str or Path, the directory that "
                "fastmmoe-export wrote"
            )
        for name, value in (("portable", portable), ("verify", verify)):
            if not isinstance(value, (bool, np.bool_)):
                raise InvalidRequest(f"{name} is of type {type(value).__name__}: expected True or False")
        if provider not in PROVIDERS:
            raise InvalidRequest(f"provider {provider!r}: expected one of {', '.join(PROVIDERS)}")
        opened = open_bundle(Path(bundle), verify=bool(verify))
        self.manifest: Manifest = opened.manifest
        tokenizer = opened.directory / TOKENIZER if TOKENIZER in self.manifest.files else None
        self.processor = Processor(self.manifest.processor, tokenizer)
        self.backend = load_backend(opened, Settings(provider=provider, portable=bool(portable), threads=threads))

    def close(self) -> None:
        """Give back what the model holds of a device; nothing may be asked any more. `with VLM(...) as vlm` does it."""
        self.backend.close()

    def __enter__(self) -> VLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate_stream(self, messages: Any, **options: Any) -> Iterator[Piece]:
        """Answer a conversation token by token, greedily.

        Args:
            messages: Hugging Face schema; pictures are paths, PIL images or uint8 arrays [height, width, 3].
            options: fields of `RequestOptions`.
        Raises:
            InvalidRequest: messages or options outside what the model or the method allows; before any token.
        """
        request = RequestOptions.of(options)
        start = time.perf_counter()
        inputs = self.processor(messages, max_tiles=request.max_tiles)
        preprocess_ms = since(start)
        run = Run(self.manifest, self.backend, [inputs], request)
        run.stats[0].preprocess_ms = preprocess_ms
        return (piece for _, piece in self.pieces(run))

    def generate(self, messages: Any, **options: Any) -> Answer:
        """As `generate_stream`, the whole answer at once."""
        return Answer.of(list(self.generate_stream(messages, **options)))

    def generate_batch(self, conversations: Sequence[Any], **options: Any) -> list[Answer]:
        """Answer several conversations at once, packed without padding; sparsevlm takes one after the other.

        Args:
            conversations: messages of each, as in `generate_stream`.
            options: fields of `RequestOptions`, for all.
        Raises:
            InvalidRequest: as `generate_stream`, or no conversations.
        """
        request = RequestOptions.of(options)
        is_other = isinstance(conversations, (str, bytes, Mapping, np.ndarray))
        if is_other or not isinstance(conversations, Iterable):
            raise InvalidRequest(
                f"conversations is of type {type(conversations).__name__}: expected a list of messages"
            )
        conversations = list(conversations)
        if not conversations:
            raise InvalidRequest("no conversations: expected at least one")
        inputs = [self.processor(messages, max_tiles=request.max_tiles) for messages in conversations]
        answers = []
        for run in self._runs(inputs, request):
            pieces: list[list[Piece]] = [[] for _ in run.stats]
            for sequence, piece in self.pieces(run):
                pieces[sequence].append(piece)
            answers += [Answer.of(of_row) for of_row in pieces]
        return answers

    def pieces(self, run: Run) -> Iterator[tuple[int, Piece]]:
        """(number, piece) of every sequence of a run until each has ended."""
        streams = [self.processor.new_stream() for _ in run.stats]
        for count, tokens in enumerate(run.tokens(), start=1):
            for token in tokens:
                i, stream = token.sequence, streams[token.sequence]
                text = stream.push(token.id)
                reason = "stop" if stream.has_ended else "length" if count == run.max_new_tokens[i] else None
                if reason == "stop":
                    run.finish(i)
                elif reason == "length":
                    text += stream.rest()
                yield i, Piece(text, token.id, reason, run.stats[i], stream.channel, stream.aside)

    def run_tensors(self, tensors: Mapping[str, Array], **options: Any) -> dict[str, Array]:
        """Run ready-made tensors and decode exactly max_new_tokens tokens, stop tokens or not.

        Args:
            tensors: names and shapes of the official processors, one or more rows, left padding allowed.
            options: fields of `RequestOptions` (max_tiles has no effect).
        Returns:
            logits [B, vocab] float32 of each prompt's last row; decode_tokens [B, N] and decode_logits [N - 1, B,
            vocab], the logits of the cached steps; cache_lengths [B, layers] after the prompt; kept_index_stage{s}
            [B, T_s] from s = 1, positions of the prompt that survive stage s. One row: decode_tokens, cache_lengths
            and kept_index_stage{s} without B; several rows: row{b}_kept_index_stage{s}.
        Raises:
            InvalidRequest: tensors or options outside what the model or the method allows, or no rows.
        """
        steps: list[list[Token]] = []
        stats: list[RequestStats] = []
        rows = self.processor.from_tensors(tensors)
        if not rows:
            raise InvalidRequest("input_ids has no rows: expected at least one")
        for run in self._runs(rows, RequestOptions.of(options), has_logits=True):
            of_rows: list[list[Token]] = [[] for _ in run.stats]
            for tokens in run.tokens():
                for token in tokens:
                    of_rows[token.sequence].append(token)
            steps += of_rows
            stats += run.stats
        # A row near the model's longest sequence may have room for fewer tokens.
        count = min(map(len, steps))
        logits = np.stack([[np.asarray(token.logits) for token in row[:count]] for row in steps], axis=1)
        ids = np.array([[token.id for token in row[:count]] for row in steps], np.int64)
        lengths = np.array([one.cache_lengths for one in stats], np.int64)
        single = len(steps) == 1
        result = {
            "logits": logits[0],
            "decode_logits": logits[1:],
            "decode_tokens": ids[0] if single else ids,
            "cache_lengths": lengths[0] if single else lengths,
        }
        for row, one in enumerate(stats):
            for stage, kept in enumerate(one.kept_index, start=1):
                result[f"kept_index_stage{stage}" if single else f"row{row}_kept_index_stage{stage}"] = kept
        return result

    def _runs(self, inputs: Sequence[ModelInputs], request: RequestOptions, *, has_logits: bool = False) -> list[Run]:
        """The rows in one packed run, or in one each where the method cannot prune several at once."""
        method = request.method or self.manifest.policy.default_method
        groups = [[one] for one in inputs] if method == SPARSEVLM else [list(inputs)]
        return [Run(self.manifest, self.backend, group, request, has_logits=has_logits) for group in groups]
