# SPDX-License-Identifier: Apache-2.0
"""FmmAttention in NumPy: plain loops over sequences, heads and rows, in float64 where asked for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastmmoe.exporter.ops.attention.contract import check_attention_inputs
from fastmmoe.exporter.ops.contract import Attributes
from fastmmoe.runtime.types import Array


def attention_reference(attributes: Attributes, inputs: Mapping[str, Array], dtype: Any = np.float32) -> list[Array]:
    """The outputs of FmmAttention.

    Args:
        attributes: all of the contract.
        inputs: by name, `ATTENTION.inputs_for(attributes)`; none is written to.
        dtype: of everything that is computed; float64 gives the exact result of what is stored.
    Returns:
        output, present_key, present_value (without value_width), present_position_ids (writes_position_ids), lse
        (has_lse); the computed ones of `dtype`, the others as their inputs.
    Raises:
        ValueError: the contract does not allow the attributes or inputs.
    """
    check_attention_inputs(attributes, inputs)
    window, width = int(attributes["window"]), int(attributes["value_width"])
    query, offsets = inputs["query"], inputs["sequence_offsets"].tolist()
    written = {"key": inputs["past_key"].copy()}
    if not width:
        written["value"] = inputs["past_value"].copy()
    if attributes["writes_position_ids"]:
        written["position_ids"] = inputs["past_position_ids"].copy()
    T, N, _ = query.shape
    output = np.empty((T, N, width or inputs["value"].shape[2]), dtype)
    lse = np.empty((T, N), dtype)
    for first, end in itertools.pairwise(offsets):
        b = int(inputs["sequence_ids"][first])
        past = int(inputs["past_lengths"][b])
        used = past + end - first
        _write_rows(written, inputs, b, slice(past, used), slice(first, end))
        key = written["key"][b, :, :used].astype(dtype)
        value = key[..., :width] if width else written["value"][b, :, :used].astype(dtype)
        is_seen = np.arange(used) <= past + np.arange(end - first)[:, None]
        if window:
            own = inputs["position_ids"][first:end].astype(np.int64)
            is_seen &= _in_window(own, np.concatenate((inputs["past_position_ids"][b, :past], own)), window)
        sinks = inputs["sink_logits"].astype(dtype) if attributes["has_sinks"] else None
        scale = dtype(attributes["scale"])
        for n in range(N):
            k = n // (N // key.shape[0])
            scores = query[first:end, n].astype(dtype) @ key[k].T * scale
            output[first:end, n], lse[first:end, n] = _attend(
                np.where(is_seen, scores, -np.inf), value[k], None if sinks is None else sinks[n]
            )
    present = [written["key"]] if width else [written["key"], written["value"]]
    if attributes["writes_position_ids"]:
        present.append(written["position_ids"])
    return [output, *present, *([lse] if attributes["has_lse"] else [])]


def _write_rows(caches: dict[str, Array], inputs: Mapping[str, Array], b: int, to: slice, rows: slice) -> None:
    """Rows of the call to rows of the caches of sequence b."""
    for name, cache in caches.items():
        if name == "position_ids":
            cache[b, to] = inputs[name][rows]
        else:
            cache[b, :, to] = inputs[name][rows].swapaxes(0, 1)


def _in_window(own: Array, positions: Array, window: int) -> Array:
    """Which positions [used] the rows at `own` [rows] see: those less than `window` behind and none ahead."""
    distance = own[:, None] - positions
    is_seen: Array = (distance >= 0) & (distance < window)
    return is_seen


def _attend(scores: Array, value: Array, sink: Any) -> tuple[Array, Array]:
    """scores [rows, used] and value [used, W] -> output [rows, W] and lse [rows]. Each row sees a key: itself."""
    greatest = scores.max(1) if sink is None else np.maximum(scores.max(1), sink)
    weights = np.exp(scores - greatest[:, None])
    total = weights.sum(1) + (0 if sink is None else np.exp(sink - greatest))
    return weights @ value / total[:, None], np.log(total) + greatest
