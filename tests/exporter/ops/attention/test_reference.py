# SPDX-License-Identifier: Apache-2.0
"""FmmAttention's reference against what it must equal: plain attention, a sequence alone, one row at a time."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastmmoe.exporter.ops import ATTENTION, attention_reference
from fastmmoe.runtime.types import Array
from tests.support.attention_cases import OTHER_WIDTHS, SMALL, Case, alone, make_inputs

BY_NAME = {case.name: case for case in SMALL}


def run(case: Case, inputs: dict[str, Array]) -> dict[str, Array]:
    outputs = attention_reference(case.attributes, inputs, np.float64)
    return dict(zip((t.name for t in ATTENTION.outputs_for(case.attributes)), outputs, strict=True))


@pytest.mark.parametrize("name", ["prefill", "prefill after a prefix", "group of 16"])
def test_equals_attention_of_torch(name: str) -> None:
    case = BY_NAME[name]
    x = make_inputs(case)
    past, rows = case.lengths[0], case.call[0][1]
    key, value = (
        np.concatenate((x[f"past_{part}"][0, :, :past], x[part].swapaxes(0, 1)), axis=1) for part in ("key", "value")
    )
    mask = torch.arange(past + rows) <= past + torch.arange(rows)[:, None]
    q, k, v = (torch.from_numpy(a).double()[None] for a in (x["query"].swapaxes(0, 1), key, value))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)
    np.testing.assert_allclose(run(case, x)["output"], expected, rtol=1e-6, atol=1e-6)


def test_sinks_take_their_share_and_lse_counts_them() -> None:
    case = BY_NAME["sinks"]
    x = make_inputs(case)
    without = run(Case(**{**vars(case), "has_sinks": False}), {n: a for n, a in x.items() if n != "sink_logits"})
    y = run(case, x)
    total = np.logaddexp(without["lse"], x["sink_logits"].astype(np.float64))
    np.testing.assert_allclose(y["lse"], total, rtol=1e-12)
    np.testing.assert_allclose(y["output"], without["output"] * np.exp(without["lse"] - total)[..., None], rtol=1e-9)


def test_a_window_counts_original_positions() -> None:
    """Of positions 0, 5, 6, 20 the row at 20 sees within 15: 6 and itself; by row numbers it would see all."""
    case = Case("", 1, 1, 2, 4, (3,), ((0, 1),), window=15, writes_position_ids=True)
    key, zero = np.zeros((1, 1, 4, 2), np.float32), np.zeros((1, 1, 2), np.float32)
    value = np.array([[[[100, 0], [10, 0], [1, 0], [np.nan, 0]]]], np.float32)
    x = {
        "query": zero,
        "key": zero,
        "past_key": key,
        "past_lengths": np.array([3], np.int32),
        "sequence_ids": np.zeros(1, np.int32),
        "sequence_offsets": np.array([0, 1], np.int32),
        "value": zero + 3,
        "past_value": value,
        "position_ids": np.array([20], np.int32),
        "past_position_ids": np.array([[0, 5, 6, 99]], np.int32),
    }
    y = run(case, x)
    assert y["output"][0, 0, 0] == pytest.approx((1 + 3) / 2)
    assert y["present_position_ids"].tolist() == [[0, 5, 6, 20]]


@pytest.mark.parametrize("case", [case for case in SMALL if len(case.call) > 1], ids=lambda case: case.name)
def test_a_sequence_comes_out_as_it_does_alone(case: Case) -> None:
    x = make_inputs(case)
    together = run(case, x)
    offsets = x["sequence_offsets"].tolist()
    for a, (first, end) in enumerate(itertools.pairwise(offsets)):
        b = case.call[a][0]
        own: dict[str, Any] = {}
        for name, array in x.items():
            by_row, by_cache = array.shape[0] == offsets[-1], name.startswith("past_")
            own[name] = array[b : b + 1] if by_cache else array[first:end] if by_row else array
        own["sequence_ids"] = np.zeros(end - first, np.int32)
        own["sequence_offsets"] = np.array([0, end - first], np.int32)
        if "sink_logits" in x:
            own["sink_logits"] = x["sink_logits"]
        np.testing.assert_array_equal(run(alone(case, a), own)["output"], together["output"][first:end])


@pytest.mark.parametrize("case", [*SMALL, *OTHER_WIDTHS], ids=lambda case: case.name)
def test_leaves_inputs_and_other_rows_alone(case: Case) -> None:
    x = make_inputs(case)
    before = {name: array.copy() for name, array in x.items()}
    y = run(case, x)
    for name, array in x.items():
        np.testing.assert_array_equal(array, before[name])
    assert np.isfinite(y["output"]).all()
    changed = ~np.isclose(y["present_key"], x["past_key"], rtol=0, atol=0, equal_nan=True)
    assert changed.any((1, 3)).sum() == sum(rows for _, rows in case.call)


def test_refuses_what_the_contract_does_not_allow() -> None:
    case = BY_NAME["decode"]
    inputs = make_inputs(case) | {"past_lengths": np.array([0, 257, 0, 0, 0], np.int32)}
    with pytest.raises(ValueError, match=r"past_lengths\[1\] is 257, expected 0 to 256"):
        attention_reference(case.attributes, inputs)
