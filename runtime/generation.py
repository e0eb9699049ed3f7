# SPDX-License-Identifier: Apache-2.0
"""One call of the model's user: plan, prefill and greedy decoding of one sequence or of several packed into one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.backends.feeds import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.backends.onnxruntime import Batch, Graphs
from fastmmoe.runtime.cost.flops import count_prefill, vision_flops
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.options import RequestOptions

Array = npt.NDArray[Any]


@dataclass
class RequestStats:
    """What a request did. Times in milliseconds; FLOPs of the language model's prefill, as spec section 5 counts.

    Of packed sequences each has stats of its own, in which prefill and decode steps take the time of the whole batch.

    Attributes:
        kept_visual_tokens, merged_vectors: after each stage of the method.
        past_tokens: of the conversation so far. cache_lengths: of every layer after the prompt.
        kept_index: rows of the prompt that survive each stage.
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

    @property
    def pruning_rate(self) -> float:
        """Share of visual tokens removed."""
        return 1 - self.retention

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return self.preprocess_ms + self.vision_ms + self.prefill_ms

    @property
    def flops_reduction(self) -> float:
        """Share of the unmodified model's prefill FLOPs that was not spent."""
        return 1 - self.prefill_flops / self.prefill_flops_unmodified


@dataclass(frozen=True)
class Token:
    """A token of the sequence in this row, and the logits [vocab] it was chosen from."""

    row: int
    id: int
    logits: Array


class Run:
    """Sequences on their way from prompt to answer.

    Args:
        inputs: what each sequence is extended by. batch: sequences that go on, one for each; None = new ones.
    Raises:
        InvalidRequest: options outside what the model or the method allows.

    Attributes:
        schedules, stats, max_new_tokens: of every sequence.
        unfed: token of each that was chosen and is not in its cache, or None.
    """

    def __init__(
        self, graphs: Graphs, inputs: Sequence[ModelInputs], options: RequestOptions, batch: Batch | None = None
    ) -> None:
        self._graphs, self._inputs = graphs, inputs
        self.batch = graphs.new_batch(len(inputs)) if batch is None else batch
        self._alpha = graphs.manifest.policy.alpha if options.alpha is None else options.alpha
        self._seed = options.seed
        self.schedules = [self._plan(options, one) for one in inputs]
        self.stats = [self._stats(row) for row in range(len(inputs))]
        longest = graphs.manifest.processor.max_position_embeddings
        # The last token of an answer is never fed back, so one more than there are positions left is possible.
        room = [longest - n - len(i.input_ids) + 1 for n, i in zip(self.batch.lengths, inputs, strict=True)]
        self.max_new_tokens = [min(options.max_new_tokens, one) for one in room]
        self.unfed: list[int | None] = [None] * len(inputs)
        self._is_finished = [False] * len(inputs)

    def tokens(self) -> Iterator[list[Token]]:
        """The next token of every sequence that is not finished. Ties: the smaller token id."""
        logits, rows, count = self._prefill(), list(range(len(self._inputs))), 0
        while True:
            count += 1
            tokens = [Token(row, int(np.argmax(values)), values) for row, values in zip(rows, logits, strict=True)]
            for token in tokens:
                self.unfed[token.row] = token.id
            yield tokens
            rows = [row for row in rows if not self._is_finished[row] and count < self.max_new_tokens[row]]
            if not rows:
                return
            logits = self._decode(rows)

    def finish(self, row: int) -> None:
        """No more tokens of this sequence."""
        self._is_finished[row] = True

    def _plan(self, options: RequestOptions, inputs: ModelInputs) -> Schedule:
        info = self._graphs.manifest.language_model
        return plan_request(
            self._graphs.manifest.policy,
            visual_tokens=len(inputs.visual_index),
            moe_layers=info.moe_layers,
            top_k=info.top_k,
            method=options.method,
            retention=options.resolved_retention,
            visual_top_k=options.visual_top_k,
        )

    def _stats(self, row: int) -> RequestStats:
        manifest, inputs, schedule = self._graphs.manifest, self._inputs[row], self.schedules[row]
        info, T, V = manifest.language_model, len(inputs.input_ids), len(inputs.visual_index)
        unmodified = plan_request(
            manifest.policy, visual_tokens=V, moe_layers=info.moe_layers, top_k=info.top_k, method="none"
        )
        tiles = len(inputs.vision_inputs["pixel_values"]) if inputs.vision_inputs else 0
        past = self.batch.lengths[row]
        cached = self.batch.cache_lengths[row].tolist()
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
        )

    def _prefill(self) -> Array:
        chunks = []
        for row, (inputs, stats) in enumerate(zip(self._inputs, self.stats, strict=True)):
            start = time.perf_counter()
            embeds = self._graphs.embed(inputs.input_ids)
            if inputs.vision_inputs:
                embeds[inputs.visual_index] = self._graphs.image_features(inputs.vision_inputs)
            stats.vision_ms = since(start)
            chunks.append(Chunk(row, embeds, inputs.visual_index, self.schedules[row]))
        start = time.perf_counter()
        logits = self.batch.extend(chunks, alpha=self._alpha, seed=self._seed)
        lengths = self.batch.cache_lengths
        for row, stats in enumerate(self.stats):
            stats.prefill_ms = since(start)
            stats.cache_lengths = lengths[row].tolist()
            stats.kept_index = self._kept_index(row)
        return logits

    def _kept_index(self, row: int) -> list[Array]:
        """Rows of one prompt that survive each stage of the method."""
        starts = np.cumsum([0, *(len(inputs.input_ids) for inputs in self._inputs)])
        rows, kept = np.arange(starts[-1]), []
        for site, kept_index in enumerate(self.batch.kept_index):
            rows = rows[kept_index]
            if site in self.schedules[row].stages:
                kept.append(rows[(rows >= starts[row]) & (rows < starts[row + 1])] - starts[row])
        return kept

    def _decode(self, rows: list[int]) -> Array:
        start = time.perf_counter()
        embeds = self._graphs.embed(np.array([self.unfed[row] for row in rows]))
        chunks = [
            Chunk(row, embed[None], NO_VISUAL_TOKENS, self.schedules[row].for_text())
            for row, embed in zip(rows, embeds, strict=True)
        ]
        logits = self.batch.extend(chunks, alpha=self._alpha, seed=self._seed)
        for row in rows:
            self.unfed[row] = None
            self.stats[row].decode_ms.append(since(start))
        return logits


def since(start: float) -> float:
    """Milliseconds since a time of time.perf_counter."""
    return (time.perf_counter() - start) * 1e3
