# SPDX-License-Identifier: Apache-2.0
"""One call of the model's user: plan, prefill and decoding of one sequence or of several packed into one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fastmmoe.runtime.backends.base import Backend, Steps, Timed
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.cost.flops import count_prefill, vision_flops
from fastmmoe.runtime.ending import NEVER, Ending
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.sampling import TokenLogprobs, choose, logprobs_of
from fastmmoe.runtime.types import Array


@dataclass
class RequestStats:
    """A request's counts and times, in milliseconds; FLOPs of the language model's prefill, counted by docs/flops.md.

    Of packed sequences each has stats of its own, in which prefill and decode steps take the time of the whole batch.

    Attributes:
        kept_visual_tokens, merged_vectors: after each stage of the method.
        past_tokens: tokens of the conversation so far.
        cache_lengths: cached tokens of every layer after the prompt.
        kept_index: rows of the prompt that survive each stage.
        provider: what computed, as `Backend.provider` has it.
    """

    method: str
    retention: float
    text_tokens: int
    visual_tokens: int
    kept_visual_tokens: tuple[int, ...]
    merged_vectors: tuple[int, ...]
    visual_top_k: tuple[int, ...]
    tiles: int
    past_tokens: int
    prefill_flops: int
    prefill_flops_unmodified: int
    vision_flops: int
    preprocess_ms: float = 0.0
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: list[float] = field(default_factory=list)
    cache_lengths: list[int] = field(default_factory=list)
    kept_index: list[Array] = field(default_factory=list, repr=False)
    provider: str = ""

    @property
    def pruning_rate(self) -> float:
        """Share of visual tokens removed."""
        return 1 - self.retention

    @property
    def ttft_ms(self) -> float | None:
        """Time to the first token; None where the request ended before its prefill."""
        return None if self.prefill_ms == 0 else self.preprocess_ms + self.vision_ms + self.prefill_ms

    @property
    def flops_reduction(self) -> float:
        """Share of the unmodified model's prefill FLOPs that was not spent."""
        return 1 - self.prefill_flops / self.prefill_flops_unmodified

    def plain(self) -> dict[str, Any]:
        """What JSON has of a request: plain numbers, derived ones included, index arrays left out."""
        values = asdict(self)
        del values["kept_index"]
        return values | {name: getattr(self, name) for name in ("pruning_rate", "ttft_ms", "flops_reduction")}


@dataclass(frozen=True)
class Token:
    """A token of one sequence of a run; the logits [vocab] it was chosen from, where the run has them.

    Attributes: logprobs: where the options ask for them.
    """

    sequence: int
    id: int
    logits: Array | None = None
    logprobs: TokenLogprobs | None = None


class Run:
    """Sequences on their way from prompt to answer.

    Args:
        manifest: the manifest of the bundle that the backend runs.
        inputs: what each sequence is extended by.
        batch: sequences that go on, one for each; None = new ones.
        has_logits: whether its tokens come with logits, which then leave the device at every step; they do where the
            options cannot do without.
        ending: is asked before every graph call.
    Raises:
        InvalidRequest: options outside what the model or the method allows.

    Attributes:
        schedules, stats, max_new_tokens: one for every sequence.
        unfed: tokens of each that were chosen and are not in its cache.
        ended: why it ended before its answers did, or None.
    """

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        inputs: Sequence[ModelInputs],
        options: RequestOptions,
        batch: Batch | None = None,
        *,
        has_logits: bool = False,
        ending: Ending = NEVER,
    ) -> None:
        self._manifest, self._backend, self._inputs, self._options = manifest, backend, inputs, options
        self._result = graph_io.LOGITS if has_logits or options.needs_logits else graph_io.NEXT_IDS
        self._ahead: _Ahead | None = None
        self._runs_ahead = self._result == graph_io.NEXT_IDS
        self.batch = Batch(backend, len(inputs)) if batch is None else batch
        self._prompt_start = self._prompt_end = self.batch.mark()
        self._alpha = manifest.policy.alpha if options.alpha is None else options.alpha
        self._ending, self._waits = ending, ending != NEVER
        self.ended: str | None = None
        self.schedules = [self._plan(options, one) for one in inputs]
        self._of_steps = [schedule.for_text() for schedule in self.schedules]
        self.stats = [self._stats(sequence) for sequence in range(len(inputs))]
        longest = backend.longest
        # The last token of an answer is never fed back, so it needs no position: hence one more token than positions.
        room = [longest - n - len(i.input_ids) + 1 for n, i in zip(self.batch.lengths, inputs, strict=True)]
        self.max_new_tokens = [min(options.max_new_tokens, one) for one in room]
        self.unfed: list[list[int]] = [[] for _ in inputs]
        self._is_finished = [False] * len(inputs)

    def tokens(self) -> Iterator[list[Token]]:
        """The next token of every sequence that is not finished. Ties: the smaller token id.

        There are no more once the run has `ended`; where that was between two calls for several prompts, none of the
        sequences whose prompt was not computed.
        """
        found, open_ones, count = self._prefill(), list(range(len(self._inputs))), 0
        try:
            while len(found):
                count += 1
                tokens = [self._token(i, values) for i, values in zip(open_ones, found, strict=self.ended is None)]
                for token in tokens:
                    self.unfed[token.sequence] = [token.id]
                yield tokens
                open_ones = [i for i in open_ones if not self._is_finished[i] and count < self.max_new_tokens[i]]
                if not open_ones or self._is_over():
                    return
                found = self._decode(open_ones, min(self.max_new_tokens[i] for i in open_ones) - count)
        finally:
            self._leave_steps()

    def logits_after(self, tokens: Sequence[int]) -> Array | None:
        """Logits [sequences, vocab] after every prompt with these tokens behind it; None once the run has `ended`.

        Those after no token come first. All but the last of the tokens are those of an earlier call, and no call since
        has gone another way from where they lead: a walk through a tree, parents before children, child by child.
        """
        count, found = len(self._inputs), np.empty(0)
        if not tokens:
            found = self._prefill()
            self._prompt_end = self.batch.mark()
        elif not self._is_over():
            self.batch.rewind(self._prompt_end, len(tokens) - 1)
            self.unfed = [[tokens[-1]] for _ in range(count)]
            found = self._decode(list(range(count)), 1)
        if len(found) == count:
            return found
        self.batch.rewind(self._prompt_start)
        return None

    def answer_with(self, answers: Sequence[Sequence[int]]) -> None:
        """Have every sequence end with these tokens, after `logits_after`."""
        self.batch.rewind(self._prompt_end)
        self.unfed = [list(tokens) for tokens in answers]

    def finish(self, sequence: int) -> None:
        """No more tokens of this sequence."""
        self._is_finished[sequence] = True

    def _plan(self, options: RequestOptions, inputs: ModelInputs) -> Schedule:
        info = self._manifest.language_model
        return plan_request(
            self._manifest.policy,
            visual_tokens=len(inputs.visual_index),
            moe_layers=info.moe_layers,
            top_k=info.top_k,
            method=options.method,
            retention=options.resolved_retention,
            visual_top_k=options.visual_top_k,
        )

    def _stats(self, sequence: int) -> RequestStats:
        manifest, inputs, schedule = self._manifest, self._inputs[sequence], self.schedules[sequence]
        info, T, V = manifest.language_model, len(inputs.input_ids), len(inputs.visual_index)
        unmodified = plan_request(
            manifest.policy, visual_tokens=V, moe_layers=info.moe_layers, top_k=info.top_k, method=UNMODIFIED
        )
        tiles = len(inputs.vision_inputs["pixel_values"]) if inputs.vision_inputs else 0
        past = self.batch.lengths[sequence]
        cached = self.batch.cache_lengths[sequence].tolist()
        return RequestStats(
            method=schedule.method,
            retention=schedule.retention,
            text_tokens=T - V,
            visual_tokens=V,
            kept_visual_tokens=schedule.kept_visual_tokens,
            merged_vectors=schedule.merged_vectors,
            visual_top_k=schedule.visual_top_k,
            tiles=tiles,
            past_tokens=past,
            prefill_flops=count_prefill(info, manifest.policy, schedule, T, past=cached).total,
            prefill_flops_unmodified=count_prefill(
                info, manifest.policy, unmodified, T, past=[past] * info.layers
            ).total,
            vision_flops=vision_flops(manifest.vision, info.hidden_size, tiles),
            provider=self._backend.provider,
        )

    def _is_over(self) -> bool:
        """Whether no graph may be called any more."""
        self.ended = self.ended or self._ending.reason()
        return self.ended is not None

    def _prefill(self) -> Array:
        """Logits or tokens after the prompts, as far as these were computed before the run was ended."""
        features = []
        for inputs, stats in zip(self._inputs, self.stats, strict=True):
            if self._is_over():
                return np.empty(0)
            start = time.perf_counter()
            features.append(self._backend.image_features(inputs.vision_inputs) if inputs.vision_inputs else None)
            stats.vision_ms = since(start)
            if self._waits and isinstance(features[-1], Timed):
                # Or the deadline would pass unseen while a device computes.
                stats.vision_ms += features[-1].elapsed_ms()
        start = time.perf_counter()
        chunks = []
        for i, (inputs, of_picture, plan) in enumerate(zip(self._inputs, features, self.schedules, strict=True)):
            if self._is_over():
                return np.empty(0)
            embeds = self._backend.embed(inputs.input_ids, inputs.visual_index, of_picture)
            chunks.append(Chunk(i, embeds, inputs.visual_index, plan))
        found = self._append(chunks)
        done = len(found)
        # Features that were computed while the host went on have taken their time since.
        late = [one.elapsed_ms() if isinstance(one, Timed) and not self._waits else 0.0 for one in features[:done]]
        for i, stats in enumerate(self.stats[:done]):
            stats.vision_ms += late[i]
            stats.prefill_ms = max(since(start) - sum(late), 0.0)
            stats.cache_lengths = self.batch.cache_lengths[i].tolist()
        return found

    def _append(self, chunks: list[Chunk]) -> Array:
        """Logits or tokens after the prompts, in as few calls as the backend takes, until the run is ended."""
        # The last token of an answer is never fed back.
        coming = [count - 1 for count in self.max_new_tokens]
        calls: list[list[Chunk]] = []
        for chunk in chunks:
            if calls and self._backend.has_room_for([*calls[-1], chunk]):
                calls[-1].append(chunk)
            else:
                calls.append([chunk])
        self.batch.reserve(chunks, coming)
        found = [np.empty(0, np.int32)]
        for call in calls:
            if self._is_over():
                break
            found.append(self._extend(call))
            starts = np.cumsum([0, *(len(chunk.inputs_embeds) for chunk in call)])
            for chunk, first, end in zip(call, starts[:-1], starts[1:], strict=True):
                i = chunk.sequence_id
                self.stats[i].kept_index = self._kept_index(self.schedules[i].sites, first, end, starts[-1])
        return np.concatenate(found[1:] or found)

    def _extend(self, chunks: list[Chunk]) -> Array:
        return self.batch.extend(chunks, alpha=self._alpha, seed=self._options.seed, result=self._result)

    def _kept_index(self, stages: Sequence[int], first: int, end: int, rows_of_call: int) -> list[Array]:
        """Rows of one prompt, which are rows `first` to `end` of a call, that survive each stage of the method."""
        rows, kept = np.arange(rows_of_call), []
        for site, kept_index in enumerate(self.batch.kept_index):
            rows = rows[kept_index]
            if site in stages:
                kept.append(rows[(rows >= first) & (rows < end)] - first)
        return kept

    def _decode(self, sequences: list[int], most: int) -> Array:
        """Logits or tokens of the next step of these sequences, of whom none goes on by more than `most` steps."""
        start = time.perf_counter()
        found = self._next_ahead(sequences, most) if self._runs_ahead else None
        if found is None:
            found = self._extend(self._chunks(sequences))
        for i in sequences:
            self.unfed[i] = []
            self.stats[i].decode_ms.append(since(start))
        return found

    def _chunks(self, sequences: list[int]) -> list[Chunk]:
        return [
            Chunk(i, self._backend.embed(np.array(self.unfed[i], np.int32)), NO_VISUAL_TOKENS, self._of_steps[i])
            for i in sequences
        ]

    def _token(self, sequence: int, found: Array) -> Token:
        """found: its logits [vocab], or the id itself."""
        if not found.ndim:
            return Token(sequence, int(found))
        token = choose(found, self._options, self.batch.lengths[sequence])
        count = self._options.logprobs
        return Token(sequence, token, found, None if count is None else logprobs_of(found, token, count))

    def _next_ahead(self, sequences: list[int], most: int) -> Array | None:
        """The tokens of a step that the backend does by itself; None where it does none."""
        if self._ahead is None or self._ahead.sequences != sequences:
            self._leave_steps()
            steps = self.batch.decode(self._chunks(sequences), alpha=self._alpha, steps=most)
            if steps is None:
                self._runs_ahead = False
                return None
            self._ahead = _Ahead(sequences, steps)
        return next(self._ahead.steps)

    def _leave_steps(self) -> None:
        """Steps that nobody will read are none: their rows in the caches will be written over."""
        if self._ahead is not None:
            self._ahead.steps.close()
        self._ahead = None


@dataclass(frozen=True)
class _Ahead:
    """Steps that a backend does by itself for these sequences."""

    sequences: list[int]
    steps: Steps


def since(start: float) -> float:
    """Milliseconds since a time of time.perf_counter."""
    return (time.perf_counter() - start) * 1e3
