# SPDX-License-Identifier: Apache-2.0
"""Records about rows that the blocks of the decoder share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Rows:
    """The rows of a call that have not been pruned so far: B sequences, one after the other.

    Attributes:
        position_ids, sequence_ids: [T] int32.
        sequence_offsets: [B + 1] int32, where in T each sequence starts.
        visual_index: [V] int32.
        visual_offsets: [B + 1] int32, where in V each sequence starts; None where nothing prunes.
        random_scores: [T] float32 of method random, or None.
    """

    position_ids: torch.Tensor
    sequence_ids: torch.Tensor
    sequence_offsets: torch.Tensor
    visual_index: torch.Tensor
    visual_offsets: torch.Tensor | None
    random_scores: torch.Tensor | None

    @property
    def last(self) -> torch.Tensor:
        """[B] int32: the last row of every sequence."""
        return self.sequence_offsets[1:] - 1

    def survivors(self, kept_index: torch.Tensor, visual_index: torch.Tensor, keep_offsets: torch.Tensor) -> Rows:
        """The rows kept_index [T'], of which visual_index [K] are visual tokens from now on."""
        assert self.visual_offsets is not None
        return replace(
            self,
            position_ids=self.position_ids.index_select(0, kept_index),
            sequence_ids=self.sequence_ids.index_select(0, kept_index),
            sequence_offsets=self.sequence_offsets - self.visual_offsets + keep_offsets,
            visual_index=visual_index,
            visual_offsets=keep_offsets,
            random_scores=None if self.random_scores is None else self.random_scores.index_select(0, kept_index),
        )


@dataclass(frozen=True)
class Tokens:
    """Tensors that the attention blocks of one group of layers share.

    Attributes:
        cos, sin: [T, rotary / 2].
        mask: [T, S] bool.
        sliding_mask: the same for sliding layers, or None.
        key_position_ids: [S] int32 with sliding layers, else None.
        key_sequence_ids: [S] int32.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    mask: torch.Tensor
    sliding_mask: torch.Tensor | None
    key_position_ids: torch.Tensor | None
    key_sequence_ids: torch.Tensor


@dataclass(frozen=True)
class Watch:
    """Query rows [R] int32 whose attention a prune site asks for, and their weights [R] float32 in its sum."""

    rows: torch.Tensor
    weights: torch.Tensor
