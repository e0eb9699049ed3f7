# SPDX-License-Identifier: Apache-2.0
"""A backend that computes nothing: it says what it is told to, and keeps what it was fed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmmoe.runtime.backends.base import Feeds, Steps, place_features
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.bundle.signatures import layer_groups
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM
from tests.support.manifests import toy_manifest


@dataclass
class EchoCaches:
    """How many rows there are, and how many there is room for.

    Attributes:
        capacities: of each layer group.
        lengths: rows of every sequence in use, int64 [groups, sequences].
    """

    capacities: tuple[int, ...]
    lengths: Array
    is_replaced: bool = False


@dataclass
class Echo:
    """See `Backend`. Its caches count rows, and it checks that they are those of the call before and have room.

    Attributes:
        made: all caches, in the order of `new_caches`.
        calls: what the language model was fed, call by call.
        pictures: inputs of the vision graph.
        logits: of every token, or a function of the call's feeds that gives them for each sequence.
        longest: positions of a sequence at most.
        steps_ahead: whether it decodes by itself.
        may_rewind: whether a call may come with fewer rows in use than there were.
        prompts_together: prompts of one call.
        provider: its name in statistics.
    """

    info: LanguageModelInfo
    policy: Policy
    made: list[EchoCaches] = field(default_factory=list)
    calls: list[dict[str, Array]] = field(default_factory=list)
    pictures: list[dict[str, Array]] = field(default_factory=list)
    logits: float | Array | Callable[[dict[str, Array]], Array] = 0.5
    longest: int = 1 << 16
    steps_ahead: bool = False
    may_rewind: bool = False
    prompts_together: int = 1 << 16
    provider: str = "echo"

    def close(self) -> None:
        """There is nothing to give back."""

    def image_features(self, vision_inputs: dict[str, Array]) -> Array:
        """-1 for every row of the layout."""
        self.pictures.append(vision_inputs)
        return np.full((len(vision_inputs[graph_io.LAYOUT_INDEX]), self.info.hidden_size), -1, np.float32)

    def embed(self, input_ids: Array, visual_index: Array = NO_VISUAL_TOKENS, features: Array | None = None) -> Array:
        """Rows of the ids themselves."""
        embeds = np.repeat(np.asarray(input_ids, np.float32)[:, None], self.info.hidden_size, axis=1)
        return place_features(embeds, visual_index, features)

    def new_caches(self, sequences: int, capacities: Sequence[int], before: EchoCaches | None = None) -> EchoCaches:
        """Caches of no rows, or of those before."""
        lengths = np.zeros((len(capacities), sequences), np.int64)
        if before is not None:
            assert (before.lengths.shape, before.is_replaced) == (lengths.shape, False)
            assert all(a <= b for a, b in zip(before.capacities, capacities, strict=True))
            lengths, before.is_replaced = before.lengths.copy(), True
        self.made.append(EchoCaches(tuple(capacities), lengths))
        return self.made[-1]

    def has_room_for(self, chunks: Sequence[Chunk]) -> bool:
        """As many as `prompts_together`."""
        return len(chunks) <= self.prompts_together

    def extend(self, feeds: Feeds, caches: EchoCaches, wanted: Sequence[str]) -> dict[str, Array]:
        """A site keeps the first rows."""
        self._write(feeds, caches)
        self.calls.append(feeds)
        sequences = len(feeds[graph_io.SEQUENCE_OFFSETS]) - 1
        found = self.logits(feeds) if callable(self.logits) else np.float32(self.logits)
        logits = np.broadcast_to(np.asarray(found, np.float32), (sequences, self.info.vocab_size))
        outputs = {graph_io.LOGITS: logits, graph_io.NEXT_IDS: logits.argmax(1).astype(np.int32)}
        visual, rows = len(feeds[graph_io.VISUAL_INDEX]), len(feeds[graph_io.POSITION_IDS])
        for s in range(len(self.policy.sites)):
            kept = len(feeds[graph_io.keep_slots(s)])
            rows, visual = rows - visual + kept, kept
            outputs[graph_io.kept_index(s)] = np.arange(rows)
        return {name: outputs[name] for name in wanted} | {"more": np.array([7])}

    def decode(self, feeds: Feeds, caches: EchoCaches, steps: int) -> Steps | None:
        """One call after the other, where `steps_ahead` says so."""
        return self._steps(feeds, caches, steps) if self.steps_ahead else None

    def _steps(self, feeds: Feeds, caches: EchoCaches, steps: int) -> Steps:
        for _ in range(steps):
            next_ids = self.extend(feeds, caches, [graph_io.NEXT_IDS])[graph_io.NEXT_IDS]
            yield next_ids
            lengths = {graph_io.past_lengths(g): one.astype(np.int32) for g, one in enumerate(caches.lengths)}
            positions = feeds[graph_io.POSITION_IDS] + 1
            feeds = feeds | lengths | {graph_io.INPUTS_EMBEDS: self.embed(next_ids), graph_io.POSITION_IDS: positions}

    def _write(self, feeds: dict[str, Array], caches: EchoCaches) -> None:
        """Count the rows of a call."""
        assert not caches.is_replaced, "these caches have been replaced"
        sequences = feeds[graph_io.SEQUENCE_IDS][feeds[graph_io.SEQUENCE_OFFSETS][:-1]]
        for g, layers in enumerate(layer_groups(self.info.layers, self.policy.sites)):
            past = feeds[graph_io.past_lengths(g)]
            if self.may_rewind:
                caches.lengths[g] = np.minimum(caches.lengths[g], past)
            assert past.tolist() == caches.lengths[g].tolist(), "lengths of other caches"
            rows = np.diff(feeds[graph_io.SEQUENCE_OFFSETS])
            before = [s for s, site in enumerate(self.policy.sites) if site.layer < layers[0]]
            if before:
                kept = np.diff(feeds[graph_io.keep_offsets(before[-1])])
                rows = rows - np.diff(feeds[graph_io.VISUAL_OFFSETS]) + kept
            caches.lengths[g, sequences] += rows
            assert caches.lengths[g].max() <= caches.capacities[g], "no room"


def scores_of(*chosen: int, vocab_size: int) -> Array:
    """Logits [sequences, vocab] whose greatest are these tokens'."""
    return np.eye(vocab_size, dtype=np.float32)[list(chosen)]


def echo_vlm(processor: Processor | None = None) -> tuple[VLM, Echo]:
    """The small manifest's, on a backend that computes nothing, and that backend.

    Args:
        processor: instead of the manifest's, whose positions it takes.
    """
    manifest = toy_manifest("deepseek_vl2")
    vlm: Any = object.__new__(VLM)
    vlm._directory = Path("nowhere")
    vlm.processor = Processor(manifest.processor, None) if processor is None else processor
    longest = vlm.processor.config.max_position_embeddings
    echo = Echo(manifest.language_model, manifest.policy, longest=longest)
    vlm.manifest, vlm.backend = manifest, echo
    return vlm, echo
