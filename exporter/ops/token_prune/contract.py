# SPDX-License-Identifier: Apache-2.0
"""FmmTokenPrune: routing-aware pruning of visual tokens between attention and MoE (contract)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastmmoe.exporter.ops.contract import Attribute, Attributes, Binding, Constant, OpSpec, Size, Tensor, check_rows
from fastmmoe.runtime.method.policy import MERGES
from fastmmoe.runtime.types import Array


def _input_rule(attributes: Attributes, binding: Binding) -> str | None:
    """What is wrong with inputs that do not go together, or None."""
    T, V, K = (binding.sizes[letter] for letter in "TVK")
    if V > T:
        return f"V is {V}, expected at most T = {T}"
    if K > V:
        return f"{K} keep slots for {V} visual tokens; at most {V} can be kept"
    return None


COSINE_FLOOR = 1e-8
IMPORTANCE_FLOOR = 1e-10
NORM_FLOOR = 1e-10

TOKEN_PRUNE = OpSpec(
    name="FmmTokenPrune",
    folder="token_prune",
    version=1,
    doc=(
        "Keeps K of V visual tokens: M windows of tokens with alike routing are merged into one token each, and of the "
        "rest the K - M most attended are kept (FastMMoE, arXiv 2511.17885, routing-aware token pruning). Text tokens "
        "pass through. The rows are those of B sequences, one after the other; each is pruned by itself, and its share "
        "of V, K and M is between two offsets. K = V is the identity; sizes travel as the lengths of keep_slots and "
        "merge_slots."
    ),
    type_variables={"F": ("float", "float16", "bfloat16")},
    inputs=(
        Tensor("hidden_states", ("T", "H"), ("F",), "Normalised states that feed router and experts."),
        Tensor("residual", ("T", "H"), ("F",), "Residual stream of the same rows."),
        Tensor("routing_probs", ("V", "E"), ("float",), "Routing distribution of the visual tokens, in order."),
        Tensor("attention", ("V",), ("float",), "Attention of the last query row on them, mean over heads."),
        Tensor("visual_index", ("V",), ("int32",), "Rows that are visual tokens, ascending."),
        Tensor("visual_offsets", ("B+1",), ("int32",), "Where in V each sequence starts: 0, ..., V, not descending."),
        Tensor("keep_slots", ("K",), ("int8",), "Only its length counts: visual tokens that survive, 0 to V."),
        Tensor("keep_offsets", ("B+1",), ("int32",), "Where in K each sequence starts: 0, ..., K, not descending."),
        Tensor("merge_slots", ("M",), ("int8",), "Only its length counts: windows merged into one token each."),
        Tensor("merge_offsets", ("B+1",), ("int32",), "Where in M each sequence starts: 0, ..., M, not descending."),
        Tensor("alpha", ("1",), ("float",), "Weight of redundancy against importance, 0 to 1."),
    ),
    outputs=(
        Tensor("hidden_states_out", ("T-V+K", "H"), ("F",), "Surviving rows of hidden_states."),
        Tensor("residual_out", ("T-V+K", "H"), ("F",), "Surviving rows of residual."),
        Tensor(
            "kept_index",
            ("T-V+K",),
            ("int32",),
            "Source row of each; a merged token gives its window's first.",
        ),
        Tensor("visual_index_out", ("K",), ("int32",), "Rows of the surviving visual tokens in the outputs."),
    ),
    attributes=(
        Attribute("window", "int", "Tokens per window.", limits=(1, 64)),
        Attribute("merge", "string", "Merged vector: mean, or mlerp (mean at the greatest norm).", choices=MERGES),
    ),
    sizes=(
        Size("B", 1, 1 << 16, "Sequences."),
        Size("T", 0, 1 << 24, "Tokens."),
        Size("V", 0, 1 << 24, "Visual tokens, at most T."),
        Size("K", 0, 1 << 24, "Visual tokens that survive, at most V."),
        Size("M", 0, 1 << 24, "Windows that are merged."),
        Size("H", 1, 1 << 18, "Hidden size."),
        Size("E", 1, 1 << 12, "Experts."),
    ),
    constants=(
        Constant("cosine_floor", COSINE_FLOOR, "double", "Least product of norms that divides a cosine."),
        Constant("importance_floor", IMPORTANCE_FLOOR, "float", "Added to the greatest mean attention, which divides."),
        Constant("norm_floor", NORM_FLOOR, "float", "Least norm that divides a mean (mlerp)."),
    ),
    input_rule=_input_rule,
)


def merge_capacity(V: int, K: int, window: int) -> int:
    """The most windows that may be merged: min(ceil(V / w) - 1, floor((V - K) / (w - 1)))."""
    if window == 1 or V == 0:
        return 0
    return max(0, min(-(-V // window) - 1, (V - K) // (window - 1)))


def check_offsets(
    visual_offsets: Array, keep_offsets: Array, merge_offsets: Array, V: int, K: int, M: int, window: int
) -> None:
    """Check what the offsets [B + 1] say of each sequence.

    Raises:
        ValueError: they do not lead from 0 to V, K and M without descending, or a sequence has more slots than the
            method allows. Where K = V merge slots are not counted.
    """
    for name, offsets, letter, end in (
        ("visual_offsets", visual_offsets, "V", V),
        ("keep_offsets", keep_offsets, "K", K),
        ("merge_offsets", merge_offsets, "M", M),
    ):
        if offsets[0] != 0 or offsets[-1] != end or (np.diff(offsets) < 0).any():
            raise ValueError(
                f"FmmTokenPrune: {name} is {offsets.tolist()}, expected 0 to {letter} = {end}, not descending"
            )
    counts = zip(*(np.diff(o).tolist() for o in (visual_offsets, keep_offsets, merge_offsets)), strict=True)
    for b, (v, k, m) in enumerate(counts):
        if k > v:
            raise ValueError(
                f"FmmTokenPrune: sequence {b}: {k} keep slots for {v} visual tokens; at most {v} can be kept"
            )
        most = min(k, merge_capacity(v, k, window))
        if K < V and m > most:
            raise ValueError(f"FmmTokenPrune: sequence {b}: {m} merge slots, at most {most}")


def check_prune_inputs(attributes: Attributes, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError unless the contract allows the inputs, arrays or CPU tensors by name, and what is in them."""
    sizes = TOKEN_PRUNE.check_inputs(attributes, inputs).sizes
    check_rows(TOKEN_PRUNE.name, "visual_index", np.asarray(inputs["visual_index"]), sizes["T"])
    visual, keep, merge = (np.asarray(inputs[f"{name}_offsets"]) for name in ("visual", "keep", "merge"))
    check_offsets(visual, keep, merge, sizes["V"], sizes["K"], sizes["M"], int(attributes["window"]))
    alpha = float(inputs["alpha"][0])
    if not 0 <= alpha <= 1:
        raise ValueError(f"{TOKEN_PRUNE.name}: alpha is {alpha:g}, expected 0 to 1")
