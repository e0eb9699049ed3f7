# SPDX-License-Identifier: Apache-2.0
"""The runtime API: a bundle that answers about pictures by the method and at the retention each request picks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fastmmoe.runtime.answer import Answer, Piece, pieces_of
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.backends.load import load_backend
from fastmmoe.runtime.backends.mapped_weights import map_weights
from fastmmoe.runtime.backends.settings import AUTO, PROVIDERS, Settings
from fastmmoe.runtime.bundle.manifest import TOKENIZER, Manifest
from fastmmoe.runtime.bundle.verification import open_bundle
from fastmmoe.runtime.choices import Choices
from fastmmoe.runtime.ending import NEVER, Ending
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.generation import RequestStats, Run, Token, since
from fastmmoe.runtime.hub import bundle_of
from fastmmoe.runtime.method.policy import SPARSEVLM
from fastmmoe.runtime.request.inputs import ModelInputs, as_array, is_tensor
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.types import Array

DEFAULT_OPTIONS = RequestOptions()
_NOT_OF_TENSORS = ("stop", "logprobs", "choices", "deadline_ms", "deadline")
WARM_UP_TOKENS = 3
"""A prefill and two steps."""


class VLM:
    """A loaded bundle.

    Args:
        bundle: directory that fastmmoe-export wrote.
        provider: "cpu", "cuda" (ONNX Runtime), "tensorrt", or "auto": the best that bundle and machine have.
        portable: run without the native library, through the operators' ONNX function bodies (slow).
        threads: size of ONNX Runtime's pool; 0 = one for each core that this process may use.
        spinning: its idle threads ask for work without a pause: sooner answers where nothing else runs on the cores,
            later ones where something does.
        verify: compare the files' SHA-256 with the manifest's, where that has not been done since they changed; lines
            on stderr say so where it takes longer than a second, or cannot be remembered.
        profile: take the time of every node, for `backend.end_profiling()` (docs/profile.md); requests take longer.
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
        spinning: bool = False,
        verify: bool = True,
        profile: bool = False,
    ) -> None:
        if not isinstance(bundle, (str, os.PathLike)) or not isinstance(os.fspath(bundle), str):
            raise InvalidRequest(
                f"bundle is of type {type(bundle).__name__}: expected a str or Path, the directory that "
                "fastmmoe-export wrote"
            )
        for name, value in (("portable", portable), ("spinning", spinning), ("verify", verify), ("profile", profile)):
            if not isinstance(value, (bool, np.bool_)):
                raise InvalidRequest(f"{name} is of type {type(value).__name__}: expected True or False")
        if provider not in PROVIDERS:
            raise InvalidRequest(f"provider {provider!r}: expected one of {', '.join(PROVIDERS)}")
        opened = open_bundle(Path(bundle), verify=bool(verify))
        self.manifest: Manifest = opened.manifest
        self._directory = opened.directory
        tokenizer = opened.directory / TOKENIZER if TOKENIZER in self.manifest.files else None
        self.processor = Processor(self.manifest.processor, tokenizer)
        settings = Settings(provider, bool(portable), threads, bool(spinning), bool(profile))
        self.backend = load_backend(opened, settings)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, **settings: Any) -> VLM:
        """The bundle in a directory, or of a repository on huggingface.co; settings: arguments of `VLM`.

        Raises:
            InvalidRequest: see `bundle_of`.
            BackendMissing, BundleMismatch: see `VLM`.
        """
        return cls(bundle_of(name, revision), **settings)

    def close(self) -> None:
        """Give back what the model holds of a device; nothing may be asked any more. `with VLM(...) as vlm` does it."""
        self.backend.close()

    def __enter__(self) -> VLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate_stream(self, messages: Any, *, cancel: Any = None, **options: Any) -> Iterator[Piece]:
        """Answer a conversation token by token.

        Args:
            messages: Hugging Face schema; pictures are paths, bytes of files, PIL images or uint8 arrays
                [height, width, 3].
            cancel: a threading.Event; once it is set, by any thread, the answer ends before the next graph call.
            options: fields of `RequestOptions`.
        Raises:
            InvalidRequest: messages or options outside what the model or the method allows; before any token.
        """
        request = RequestOptions.of(options)
        ending = Ending.of(request, cancel)
        start = time.perf_counter()
        inputs = self.processor(messages, max_tiles=request.max_tiles)
        preprocess_ms = since(start)
        run = self.start([inputs], request, ending)
        run.stats[0].preprocess_ms = preprocess_ms
        return (piece for _, piece in self.pieces(run, request))

    def generate(self, messages: Any, *, cancel: Any = None, **options: Any) -> Answer:
        """As `generate_stream`, the whole answer at once."""
        return Answer.of(list(self.generate_stream(messages, cancel=cancel, **options)))

    def generate_batch(self, conversations: Sequence[Any], *, cancel: Any = None, **options: Any) -> list[Answer]:
        """Answer several conversations at once, packed without padding; sparsevlm takes one after the other.

        Args:
            conversations: messages of each, as in `generate_stream`.
            cancel, options: of `generate_stream`, for all; a deadline is that of all of them together.
        Raises:
            InvalidRequest: as `generate_stream`, or no conversations.
        """
        request = RequestOptions.of(options)
        ending = Ending.of(request, cancel)
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
        for run in [self.start(group, request, ending) for group in self.groups(inputs, request)]:
            pieces: list[list[Piece]] = [[] for _ in run.stats]
            for sequence, piece in self.pieces(run, request):
                pieces[sequence].append(piece)
            answers += [Answer.of(of_row) for of_row in pieces]
        return answers

    def warm_up(self, messages: Any = None, **options: Any) -> None:
        """Answer once for nothing, so that no request pays for what only the first one does.

        That is weights read from disk and pages of them, of all experts where memory has room for these, memory,
        threads, and on devices the capture of decode steps.

        Args:
            messages: like those to come; None = one gray tile and two words.
            options: likewise; max_new_tokens and deadlines have no effect.
        Raises:
            InvalidRequest: as `generate_stream`.
        """
        map_weights(self._directory)
        if messages is None:
            side = self.processor.config.tile_size
            picture = {"type": "image", "image": np.full((side, side, 3), 127, np.uint8)}
            messages = [{"role": "user", "content": [picture, {"type": "text", "text": "Warm up"}]}]
        others = {name: value for name, value in options.items() if name not in ("deadline", "deadline_ms")}
        self.generate(messages, **others | {"max_new_tokens": WARM_UP_TOKENS})

    def start(
        self,
        inputs: Sequence[ModelInputs],
        request: RequestOptions,
        ending: Ending = NEVER,
        batch: Batch | None = None,
    ) -> Run:
        """A run of these inputs, for `pieces`; the arguments are those of `Run`.

        Raises:
            InvalidRequest: options outside what the model or the method allows, or no room for a choice.
        """
        if request.choices is None:
            return Run(self.manifest, self.backend, inputs, request, batch, ending=ending)
        choices = Choices.of(request.choices, self.processor)
        request = msgspec.structs.replace(request, max_new_tokens=choices.longest)
        header = np.array(choices.header, np.int32)
        inputs = [replace(one, input_ids=np.concatenate([one.input_ids, header])) for one in inputs]
        run = Run(self.manifest, self.backend, inputs, request, batch, ending=ending)
        choices.check_room(run)
        return run

    def pieces(self, run: Run, request: RequestOptions = DEFAULT_OPTIONS) -> Iterator[tuple[int, Piece]]:
        """(number, piece) of every sequence of a run until each has ended."""
        return pieces_of(run, self.processor, request)

    def run_tensors(self, tensors: Mapping[str, Array], **options: Any) -> dict[str, Array]:
        """Run ready-made tensors and decode exactly max_new_tokens tokens, stop tokens or not.

        Args:
            tensors: names and shapes of the official processors, one or more rows, left padding allowed.
            options: fields of `RequestOptions` but those of text and time: stop, logprobs, choices, deadlines
                (max_tiles has no effect).
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
        request = _options_of_tensors(options)
        groups = self.groups(self._rows(tensors), request)
        for run in [Run(self.manifest, self.backend, group, request, has_logits=True) for group in groups]:
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

    def generate_ids(self, **inputs: Any) -> Array:
        """As `generate` of transformers takes and gives it: a processor's tensors and options by name, token ids.

        `ids = vlm.generate_ids(**processor(images=image, text=text, return_tensors="pt"), max_new_tokens=32)`

        Args:
            inputs: tensors, NumPy's or torch's, see `Processor.from_tensors`; anything else is an option, see
                `run_tensors`.
        Returns:
            int64 [B, T + N]: each row's prompt as it was given and the new tokens, its stop token among them; after
            it the padding token.
        Raises:
            InvalidRequest: tensors or options outside what the model or the method allows, or no rows.
        """
        tensors = {name: as_array(value) for name, value in inputs.items() if is_tensor(value)}
        request = _options_of_tensors({name: value for name, value in inputs.items() if name not in tensors})
        rows = self._rows(tensors)
        found: list[list[int]] = []
        for run in [self.start(group, request) for group in self.groups(rows, request)]:
            found += _until_stop(run, self.processor.config.stop_token_ids)
        config = self.processor.config
        padding = config.stop_token_ids[0] if config.pad_token_id is None else config.pad_token_id
        new = np.full((len(rows), max(map(len, found))), padding, np.int64)
        for row, ids in zip(new, found, strict=True):
            row[: len(ids)] = ids
        return np.concatenate([tensors["input_ids"].astype(np.int64), new], axis=1)

    def _rows(self, tensors: Mapping[str, Array]) -> list[ModelInputs]:
        rows = self.processor.from_tensors(tensors)
        if not rows:
            raise InvalidRequest("input_ids has no rows: expected at least one")
        return rows

    def groups(self, inputs: Sequence[ModelInputs], request: RequestOptions) -> list[list[ModelInputs]]:
        """The rows of each packed run: all, or one each where the method cannot prune several at once."""
        method = request.method or self.manifest.policy.default_method
        return [[one] for one in inputs] if method == SPARSEVLM else [list(inputs)]


def _options_of_tensors(options: Mapping[str, Any]) -> RequestOptions:
    """Options of a request that gives tensors; raises InvalidRequest where one is of text or time."""
    request = RequestOptions.of(options)
    if without_effect := [name for name in _NOT_OF_TENSORS if options.get(name) is not None]:
        raise InvalidRequest(
            f"tensors are answered by tokens, without text and deadline: leave out {without_effect[0]}"
        )
    return request


def _until_stop(run: Run, stop_token_ids: Sequence[int]) -> list[list[int]]:
    """The tokens of every sequence of a run, each to its stop token or its last."""
    found: list[list[int]] = [[] for _ in run.stats]
    for tokens in run.tokens():
        for token in tokens:
            found[token.sequence].append(token.id)
            if token.id in stop_token_ids:
                run.finish(token.sequence)
    return found
