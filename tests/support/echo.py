# SPDX-License-Identifier: Apache-2.0
"""A backend that computes nothing: it says what it is told to, and keeps what it was fed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.types import Array


@dataclass
class Echo:
    """See `Backend`. Its caches are the number of calls so far.

    Attributes:
        calls: what the language model was fed, call by call.
        pictures: inputs of the vision graph.
        logits: of every token, or a function of the call's feeds that gives them for each sequence.
    """

    info: LanguageModelInfo
    policy: Policy
    calls: list[dict[str, Array]] = field(default_factory=list)
    pictures: list[dict[str, Array]] = field(default_factory=list)
    logits: float | Callable[[dict[str, Array]], Array] = 0.5

    def image_features(self, vision_inputs: dict[str, Array]) -> Array:
        """-1 for every row of the layout."""
        self.pictures.append(vision_inputs)
        return np.full((len(vision_inputs[graph_io.LAYOUT_INDEX]), self.info.hidden_size), -1, np.float32)

    def embed(self, input_ids: Array) -> Array:
        """Rows of the ids themselves."""
        return np.repeat(np.asarray(input_ids, np.float32)[:, None], self.info.hidden_size, axis=1)

    def new_caches(self) -> int:
        """No calls."""
        return 0

    def extend(self, feeds: dict[str, Array], caches: int) -> tuple[dict[str, Array], int]:
        """A site keeps the first rows."""
        assert caches == len(self.calls), "the caches of another call"
        self.calls.append(feeds)
        sequences = len(feeds[graph_io.SEQUENCE_OFFSETS]) - 1
        found = self.logits(feeds) if callable(self.logits) else np.float32(self.logits)
        logits = np.broadcast_to(np.asarray(found, np.float32), (sequences, self.info.vocab_size))
        outputs: dict[str, Array] = {graph_io.LOGITS: logits, "more": np.array([7])}
        visual, rows = len(feeds[graph_io.VISUAL_INDEX]), len(feeds[graph_io.POSITION_IDS])
        for s in range(len(self.policy.sites)):
            kept = len(feeds[graph_io.keep_slots(s)])
            rows, visual = rows - visual + kept, kept
            outputs[graph_io.kept_index(s)] = np.arange(rows)
        return outputs, caches + 1


def scores_of(*chosen: int, vocab_size: int) -> Array:
    """Logits [sequences, vocab] whose greatest are these tokens'."""
    return np.eye(vocab_size, dtype=np.float32)[list(chosen)]
