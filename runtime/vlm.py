# SPDX-License-Identifier: Apache-2.0
"""The runtime API: a bundle that answers about images at the retention the caller picks for each request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.bundle import TOKENIZER, Manifest, read_manifest
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.flops import prefill_flops, vision_flops
from fastmmoe.runtime.model_inputs import ModelInputs
from fastmmoe.runtime.policy import Schedule, plan_request
from fastmmoe.runtime.processor import Processor
from fastmmoe.runtime.session import Graphs, Sequence

Array = npt.NDArray[Any]
NO_VISUAL_TOKENS = np.zeros(0, np.int32)


@dataclass(frozen=True)
class RequestOptions:
    """What a caller may choose for one request; None = the bundle's default.

    Attributes:
        retention: share of visual tokens left after the last stage, (0, 1]. pruning_rate: 1 - retention; give one.
        visual_top_k: experts per visual token from the reduction's first layer on.
        alpha: weight of redundancy against importance, [0, 1].
        max_tokens: of the answer, at least 1. max_tiles: the most local tiles of a picture.
    """

    retention: float | None = None
    pruning_rate: float | None = None
    visual_top_k: int | None = None
    alpha: float | None = None
    max_tokens: int = 64
    max_tiles: int | None = None

    def resolved_retention(self) -> float | None:
        """Retention from either of the two; InvalidRequest if both are given or the pruning rate is not in [0, 1)."""
        if self.pruning_rate is None:
            return self.retention
        if self.retention is not None:
            raise InvalidRequest("give retention or pruning_rate, not both")
        if not 0 <= self.pruning_rate < 1:
            raise InvalidRequest(f"pruning_rate {self.pruning_rate}: expected a number in [0, 1), the share to remove")
        return 1 - self.pruning_rate


@dataclass
class RequestStats:
    """What a request did. Times in milliseconds; FLOPs of the language model's prefill, as spec section 5 counts."""

    retention: float
    text_tokens: int
    visual_tokens: int
    kept_visual_tokens: tuple[int, ...]
    merged_windows: tuple[int, ...]
    visual_top_k: tuple[int, ...]
    tiles: int
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
class Piece:
    """One decoded token: the text it completes, and why generation ended ("stop", "length") or None."""

    text: str
    token_id: int
    finish_reason: str | None
    stats: RequestStats


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stats: RequestStats


class VLM:
    """A loaded bundle.

    Args:
        bundle: directory that fastmmoe-export wrote.
        portable: run without the native library, through the operators' ONNX function bodies (slow).
        threads: of ONNX Runtime; 0 = one per core.
    Raises:
        BundleMismatch: the directory is no bundle of this version, is damaged, or is for another target.
    """

    def __init__(self, bundle: str | Path, *, portable: bool = False, threads: int = 0) -> None:
        directory = Path(bundle)
        self.manifest: Manifest = read_manifest(directory)
        tokenizer = directory / TOKENIZER if TOKENIZER in self.manifest.files else None
        self.processor = Processor(self.manifest.processor, tokenizer)
        self.graphs = Graphs(directory, self.manifest, portable=portable, threads=threads)

    def generate_stream(self, messages: Any, **options: Any) -> Iterator[Piece]:
        """Answer a conversation token by token, greedily.

        Args:
            messages: Hugging Face schema; pictures are paths, PIL images or uint8 arrays [height, width, 3].
            options: fields of `RequestOptions`.
        Raises:
            InvalidRequest: messages or options outside what the model or the method allows; before any token.
        """
        request = RequestOptions(**options)
        start = time.perf_counter()
        inputs = self.processor(messages, max_tiles=request.max_tiles)
        preprocess_ms = _since(start)
        run = _Run(self, inputs, request)
        run.stats.preprocess_ms = preprocess_ms
        return self._pieces(run)

    def generate(self, messages: Any, **options: Any) -> Answer:
        """As `generate_stream`, the whole answer at once."""
        pieces = list(self.generate_stream(messages, **options))
        reason = pieces[-1].finish_reason
        assert reason is not None
        return Answer("".join(p.text for p in pieces), tuple(p.token_id for p in pieces), reason, pieces[-1].stats)

    def _pieces(self, run: _Run) -> Iterator[Piece]:
        stream = self.processor.new_stream()
        stop = set(self.manifest.processor.stop_token_ids)
        for count, (token, _) in enumerate(run.tokens(), start=1):
            stopped = token in stop
            reason = "stop" if stopped else "length" if count == run.max_tokens else None
            yield Piece("" if stopped else stream.push(token), token, reason, run.stats)
            if stopped:
                return

    def run_tensors(self, tensors: Mapping[str, Array], **options: Any) -> dict[str, Array]:
        """Run ready-made tensors and decode exactly max_tokens tokens, stop tokens or not.

        Args:
            tensors: names and shapes of the official processors, one or more rows, left padding allowed.
            options: fields of `RequestOptions` (max_tiles has no effect).
        Returns:
            logits [B, vocab] float32 of each prompt's last row; decode_tokens [B, N] and decode_logits [N - 1, B,
            vocab], the logits of the cached steps; cache_lengths [B, layers] after the prompt; kept_index_stage{s}
            [B, T_s] from s = 1, positions of the prompt that survive stage s. One row: decode_tokens, cache_lengths
            and kept_index_stage{s} without B. Rows whose kept_index differ in length: row{b}_kept_index_stage{s}.
        Raises:
            InvalidRequest: tensors or options outside what the model or the method allows, or no rows.
        """
        request = RequestOptions(**options)
        runs = [_Run(self, inputs, request) for inputs in self.processor.from_tensors(tensors)]
        if not runs:
            raise InvalidRequest("input_ids has no rows: expected at least one")
        steps = [list(run.tokens()) for run in runs]
        logits = np.stack([[row for _, row in step] for step in steps], axis=1)
        tokens = np.array([[token for token, _ in step] for step in steps], np.int64)
        lengths = np.array([run.stats.cache_lengths for run in runs], np.int64)
        single = len(runs) == 1
        result = {
            "logits": logits[0],
            "decode_logits": logits[1:],
            "decode_tokens": tokens[0] if single else tokens,
            "cache_lengths": lengths[0] if single else lengths,
        }
        for stage in range(len(self.manifest.policy.prune_layers)):
            for row, run in enumerate(runs):
                name = f"kept_index_stage{stage + 1}"
                result[name if single else f"row{row}_{name}"] = run.stats.kept_index[stage]
        return result


class _Run:
    """One sequence on its way: plan, prefill and decoding."""

    def __init__(self, vlm: VLM, inputs: ModelInputs, request: RequestOptions) -> None:
        manifest, info = vlm.manifest, vlm.manifest.language_model
        self._graphs, self._inputs = vlm.graphs, inputs
        self.max_tokens = _checked_max_tokens(request.max_tokens, len(inputs.input_ids), vlm)
        self._alpha = manifest.policy.alpha if request.alpha is None else request.alpha
        if not 0 <= self._alpha <= 1:
            raise InvalidRequest(f"alpha {self._alpha}: expected a number in [0, 1]")
        self.schedule = self._plan(vlm, request.resolved_retention(), request.visual_top_k)
        T, V = len(inputs.input_ids), len(inputs.visual_index)
        tiles = len(inputs.vision_inputs["pixel_values"]) if inputs.vision_inputs else 0
        stages = len(self.schedule.keep)
        unmodified = Schedule(1.0, V, (V,) * stages, (0,) * stages, (info.top_k,) * len(info.moe_layers))
        self.stats = RequestStats(
            retention=self.schedule.retention,
            text_tokens=T - V,
            visual_tokens=V,
            kept_visual_tokens=self.schedule.keep,
            merged_windows=self.schedule.merge,
            visual_top_k=self.schedule.visual_top_k,
            tiles=tiles,
            prefill_flops=prefill_flops(info, manifest.policy, self.schedule, T).total,
            prefill_flops_unmodified=prefill_flops(info, manifest.policy, unmodified, T).total,
            vision_flops=vision_flops(manifest.vision, info.hidden_size, tiles),
        )

    def _plan(self, vlm: VLM, retention: float | None, visual_top_k: int | None) -> Schedule:
        info = vlm.manifest.language_model
        return plan_request(
            vlm.manifest.policy,
            visual_tokens=len(self._inputs.visual_index),
            moe_layers=info.moe_layers,
            top_k=info.top_k,
            retention=retention,
            visual_top_k=visual_top_k,
        )

    def tokens(self) -> Iterator[tuple[int, Array]]:
        """(token, logits [vocab] it was chosen from), max_tokens of them. Ties: the smaller token id."""
        sequence = self._graphs.new_sequence()
        logits = self._prefill(sequence)
        decode_schedule = self.schedule.for_decoding()
        for count in range(1, self.max_tokens + 1):
            token = int(np.argmax(logits))
            yield token, logits
            if count < self.max_tokens:
                start = time.perf_counter()
                embeds = self._graphs.embed(np.array([token]))
                logits = sequence.extend(embeds, NO_VISUAL_TOKENS, decode_schedule, self._alpha)
                self.stats.decode_ms.append(_since(start))

    def _prefill(self, sequence: Sequence) -> Array:
        inputs = self._inputs
        start = time.perf_counter()
        embeds = self._graphs.embed(inputs.input_ids)
        if inputs.vision_inputs:
            embeds[inputs.visual_index] = self._graphs.image_features(inputs.vision_inputs)
        self.stats.vision_ms = _since(start)
        start = time.perf_counter()
        logits = sequence.extend(embeds, inputs.visual_index, self.schedule, self._alpha)
        self.stats.prefill_ms = _since(start)
        self.stats.cache_lengths = sequence.cache_lengths
        positions = np.arange(len(inputs.input_ids))
        for kept in sequence.kept_index:
            positions = positions[kept]
            self.stats.kept_index.append(positions)
        return logits


def _checked_max_tokens(max_tokens: int, prompt_tokens: int, vlm: VLM) -> int:
    if max_tokens < 1:
        raise InvalidRequest(f"max_tokens {max_tokens}: expected at least 1")
    # The last token of an answer is never fed back, so one more than there are positions left is possible.
    return min(max_tokens, vlm.manifest.processor.max_position_embeddings - prompt_tokens + 1)


def _since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
