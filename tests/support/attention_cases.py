# SPDX-License-Identifier: Apache-2.0
"""One table of cases for every implementation of FmmAttention.

Widths are those of the published models (64, 128, latent 576 / 512) and of the small ones that tests and the demo
export (16, 32, latent 40 / 32): each kernel takes all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastmmoe.exporter.ops import ATTENTION
from fastmmoe.runtime.types import Array

UNUSED_POSITION = -(2**31)


@dataclass(frozen=True)
class Case:
    """Sizes and attributes of a call.

    Attributes:
        lengths: rows in use of each of the B caches.
        call: (sequence, new rows) of the A sequences in the call, in their order.
        pruned: share of the original positions that are missing among the rows.
    """

    name: str
    heads: int
    key_heads: int
    width: int
    capacity: int
    lengths: tuple[int, ...]
    call: tuple[tuple[int, int], ...]
    value_width: int = 0
    own_value_width: int = 0
    window: int = 0
    has_sinks: bool = False
    writes_position_ids: bool = False
    has_lse: bool = False
    pruned: float = 0.0

    @property
    def attributes(self) -> dict[str, Any]:
        """All attributes of the contract."""
        return {
            "scale": self.width**-0.5,
            "window": self.window,
            "value_width": self.value_width,
            "has_sinks": int(self.has_sinks),
            "writes_position_ids": int(self.writes_position_ids),
            "has_lse": int(self.has_lse),
        }


def _case(name: str, heads: tuple[int, int, int], capacity: int, lengths: Any, call: Any, **more: Any) -> Case:
    return Case(name, *heads, capacity, tuple(lengths), tuple(call), **more)


LATENT: dict[str, Any] = {"value_width": 512}
GPT_OSS: dict[str, Any] = {"has_sinks": True, "window": 16, "pruned": 0.6}
RAGGED = ((0, 1, 63, 64, 40, 64, 17, 5), ((6, 20), (0, 3), (2, 1), (1, 63), (7, 7)))

SMALL = (
    _case("one row", (1, 1, 16), 1, [0], [(0, 1)]),
    _case("prefill", (4, 2, 64), 80, [0], [(0, 70)]),
    _case("prefill after a prefix", (8, 1, 128), 128, [37], [(0, 50)], has_lse=True),
    _case("group of 16", (16, 1, 64), 64, [5], [(0, 33)]),
    _case("ragged", (4, 4, 64), 64, *RAGGED),
    _case("ragged, groups, lse", (8, 2, 128), 64, *RAGGED, has_lse=True),
    _case("decode", (8, 2, 64), 256, [0, 1, 255, 37, 256], [(3, 1), (0, 1), (2, 1), (1, 1)]),
    _case("decode a long cache", (8, 2, 128), 2048, [1500], [(0, 1)], has_lse=True),
    _case("decode two long caches", (4, 1, 64), 1024, [1023, 700], [(1, 1), (0, 1)]),
    _case("sinks", (8, 2, 64), 64, [10], [(0, 30)], has_sinks=True, has_lse=True),
    _case("window", (8, 2, 64), 128, [60], [(0, 50)], **GPT_OSS, writes_position_ids=True),
    _case("window, lse", (8, 1, 64), 128, [60, 0], [(1, 5), (0, 40)], **GPT_OSS, has_lse=True),
    _case("window, decode", (8, 2, 64), 512, [300, 2], [(0, 1), (1, 1)], **GPT_OSS, writes_position_ids=True),
    _case("window of 1", (2, 1, 16), 32, [0, 9], [(0, 4), (1, 1)], window=1, writes_position_ids=True, has_lse=True),
    _case("window beyond all", (2, 1, 64), 32, [9], [(0, 8)], window=2**31 - 1, pruned=0.5),
    _case("latent", (16, 1, 576), 64, [7], [(0, 21)], **LATENT, has_lse=True),
    _case("latent, decode", (16, 1, 576), 512, [300, 511], [(1, 1), (0, 1)], **LATENT),
    _case("small latent", (4, 1, 40), 32, [3, 0], [(0, 6), (1, 2)], value_width=32, has_lse=True),
    _case("small heads", (8, 2, 16), 64, [12], [(0, 40)], has_sinks=True),
    _case("demo's heads", (4, 4, 32), 96, [0, 33], [(0, 60), (1, 1)]),
)
OTHER_WIDTHS = (
    _case("values of another width", (4, 2, 192), 64, [5], [(0, 20)], own_value_width=128, has_lse=True),
    _case("odd widths", (4, 2, 20), 64, [5], [(0, 20)], own_value_width=12),
)
"""Of no model here: the contract allows them, kernels for devices may refuse them."""
LARGE = (
    _case("prefill 2048", (4, 1, 64), 2048, [0], [(0, 2048)], has_lse=True),
    _case("prefill 600 after 1000", (16, 2, 128), 1792, [1000, 3], [(0, 600), (1, 100)]),
    _case("window 128 over 1500", (8, 1, 64), 1536, [700], [(0, 800)], window=128, has_sinks=True, pruned=0.5),
)


def make_inputs(case: Case, seed: int = 0, dtype: Any = np.float32, cache_dtype: Any = None) -> dict[str, Array]:
    """Inputs by name, in the contract's order.

    Rows of caches that are not in use are NaN, and their positions impossible. Scores are decisive: queries look for
    some keys, so that the greatest weight of a row is many times the mean.
    """
    random, cache_dtype = np.random.default_rng(seed), cache_dtype or dtype
    T, B, C, W = sum(rows for _, rows in case.call), len(case.lengths), case.capacity, _value_width(case)
    ids = np.concatenate([np.full(rows, b, np.int32) for b, rows in case.call])
    offsets = np.cumsum([0, *(rows for _, rows in case.call)], dtype=np.int32)
    is_used = np.arange(C) < np.array(case.lengths)[:, None]

    def rows_of(*shape: int, scale: float = 1.0) -> Array:
        return (random.standard_normal(shape) * scale).astype(dtype)

    def cache_of(width: int) -> Array:
        values = random.standard_normal((B, case.key_heads, C, width)).astype(np.float32)
        return np.where(is_used[:, None, :, None], values, np.nan).astype(cache_dtype)

    inputs = {
        "query": rows_of(T, case.heads, case.width, scale=2.0),
        "key": rows_of(T, case.key_heads, case.width),
        "past_key": cache_of(case.width),
        "past_lengths": np.array(case.lengths, np.int32),
        "sequence_ids": ids,
        "sequence_offsets": offsets,
        "value": rows_of(T, case.key_heads, W),
        "past_value": cache_of(W),
        "sink_logits": rows_of(case.heads, scale=3.0),
    }
    positions = _positions(case, random)
    past = np.full((B, C), UNUSED_POSITION, np.int32)
    for b, length in enumerate(case.lengths):
        past[b, :length] = positions[b][:length]
    new = [positions[b][case.lengths[b] : case.lengths[b] + rows] for b, rows in case.call]
    inputs |= {"position_ids": np.concatenate(new).astype(np.int32), "past_position_ids": past}
    return {t.name: inputs[t.name] for t in ATTENTION.inputs_for(case.attributes)}


def _value_width(case: Case) -> int:
    return case.value_width or case.own_value_width or case.width


def _positions(case: Case, random: np.random.Generator) -> list[Array]:
    """Original positions of each sequence's rows, old and new: ascending, with gaps where tokens were pruned."""
    rows = dict(case.call)
    counts = [length + rows.get(b, 0) for b, length in enumerate(case.lengths)]
    steps = [1 + random.geometric(0.3, n) * (random.random(n) < case.pruned) for n in counts]
    return [np.cumsum(step) - 1 for step in steps]


def alone(case: Case, a: int) -> Case:
    """The case with one sequence of its call and no other caches."""
    b, rows = case.call[a]
    return replace(case, name=f"{case.name}, alone", lengths=(case.lengths[b],), call=((0, rows),))
