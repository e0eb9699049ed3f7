# SPDX-License-Identifier: Apache-2.0
"""Records about rows that the blocks of the decoder share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Rows:
    """The rows of a call that have not been pruned so far: A sequences, one after the other.

    Attributes:
        position_ids, sequence_ids: [T] int32.
        sequence_offsets: [A + 1] int32, where in T each sequence starts.
        visual_index: [V] int32.
        visual_offsets: [A + 1] int32, where in V each sequence starts; None where nothing prunes.
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
        """[A] int32: the last row of every sequence."""
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
    """What the attention blocks of one group of layers share.

    Attributes:
        sequence_ids, sequence_offsets: of the rows that the group's layers see (`Rows`).
        position_ids: [T] int32 of rotary embeddings and windows; None where nothing slides.
        cos: [T, 1, rotary / 2].
        sin: [T, 1, rotary / 2].
        past_lengths: [B] int32, rows of each cache in use.
        past_position_ids: [B, C] int32 in a group with sliding layers, else None.
        has_new_positions: whether past_position_ids holds those of this call, too.
    """

    sequence_ids: torch.Tensor
    sequence_offsets: torch.Tensor
    position_ids: torch.Tensor | None
    cos: torch.Tensor
    sin: torch.Tensor
    past_lengths: torch.Tensor
    past_position_ids: torch.Tensor | None
    has_new_positions: bool = False


@dataclass(frozen=True)
class Watch:
    """Query rows [R] int32 whose attention a prune site asks for, and their weights [R] float32 in its sum."""

    rows: torch.Tensor
    weights: torch.Tensor
