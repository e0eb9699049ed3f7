# SPDX-License-Identifier: Apache-2.0
"""The torch modules with FastMMoE on against recorded runs that loop over the official modules."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fastmmoe.exporter import torch_ops
from fastmmoe.runtime import abi

Array = npt.NDArray[Any]

# Noise of 1e-6 on the embeddings, which is what another order of float32 sums amounts to, moves the recorded logits by
# up to 2e-4 (tests/golden/README.md): the deepest of these random models amplifies it.
FLOAT32_TOLERANCE = 3e-4
DECODE_STEPS = 6
SETTINGS = {"dsvl2-mha": 6, "dsvl2-mla": 4, "internvl-qwen3moe": 7, "internvl-gptoss": 7}
EVERY_SETTING = [(name, i) for name, count in SETTINGS.items() for i in range(count)]
# Router logits this close may fall either way between two correct float32 implementations.
NEAR_TIE = 3e-5
MOST_NEAR_TIES = 4


class RouterFlips:
    """Stands in for torch_ops.route: notes every near tie at the edge of a choice and resolves some the other way.

    Calls are numbered from the prefill's first MoE layer through the decode steps.
    """

    def __init__(self, route: Callable[..., Any]) -> None:
        self.route = route
        self.start(())

    def start(self, flips: tuple[tuple[int, int, int], ...]) -> None:
        """Forget what was noted and flip these (call, row, rank) from now on."""
        self.flips, self.calls, self.near_ties = flips, 0, list[tuple[int, int, int]]()

    def __call__(
        self, router_logits: torch.Tensor, is_visual: torch.Tensor, visual_top_k: int, bias: torch.Tensor, a: Any
    ) -> Any:
        logits, order = router_logits.sort(dim=1, descending=True)
        for rank, rows in ((a["top_k"], ~is_visual | (visual_top_k == a["top_k"])), (visual_top_k, is_visual)):
            if rank < logits.shape[1]:
                near = rows & (logits[:, rank - 1] - logits[:, rank] < NEAR_TIE)
                found = [(self.calls, int(row), rank) for row in near.nonzero()]
                self.near_ties += [tie for tie in found if tie not in self.near_ties]
        flipped = router_logits.clone()
        for call, row, rank in self.flips:
            if call == self.calls:
                flipped[row, order[row, rank - 1 : rank + 1]] = logits[row, rank - 1 : rank + 1].flip(0)
        self.calls += 1
        return self.route(flipped, is_visual, visual_top_k, bias, a)
