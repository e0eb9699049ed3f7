# SPDX-License-Identifier: Apache-2.0
"""FmmAttention: causal attention of packed rows over key-value caches that it extends in place (contract)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastmmoe.exporter.ops.contract import Attribute, Attributes, Binding, OpSpec, Size, Tensor
from fastmmoe.runtime.types import Array


def _rule(attributes: Attributes) -> str | None:
    """What is wrong with attributes that do not go together, or None."""
    if attributes["writes_position_ids"] and not attributes["window"]:
        return "writes_position_ids is 1 and window is 0: only layers with a window have position_ids"
    return None


def _input_rule(attributes: Attributes, binding: Binding) -> str | None:
    """What is wrong with inputs that do not go together, or None."""
    sizes = binding.sizes
    if sizes["N"] % sizes["K"]:
        return f"N is {sizes['N']}, expected a multiple of K = {sizes['K']}"
    if sizes["A"] > sizes["B"]:
        return f"A is {sizes['A']}, expected at most B = {sizes['B']}"
    if sizes["W"] > sizes["D"] and attributes["value_width"]:
        return f"value_width is {sizes['W']}, expected at most D = {sizes['D']}"
    return None


def _known_sizes(attributes: Attributes) -> dict[str, int]:
    width = int(attributes["value_width"])
    return {"W": width} if width else {}


_HAS_VALUES = ("value_width", (0,))
_HAS_NO_WINDOW = ("window", (0,))
_HAS_SINKS = ("has_sinks", (1,))

ATTENTION = OpSpec(
    name="FmmAttention",
    folder="attention",
    version=1,
    doc=(
        "Causal attention with grouped heads over caches of fixed capacity. The T rows of a call belong to A of the B "
        "sequences that have caches, one after the other, each with at least one row. Row i of sequence b is written "
        "to its cache at past_lengths[b] + i and sees the rows 0 to past_lengths[b] + i, always itself. Rows of a "
        "cache that are not in use may hold anything. present_* are past_* with the new rows: where both have one "
        "address nothing else is written, else the cache is copied first. Every row, old or new, is read as it is "
        "stored. Sums are float32."
    ),
    type_variables={"F": ("float", "float16", "bfloat16"), "S": ("float", "float16", "bfloat16")},
    inputs=(
        Tensor("query", ("T", "N", "D"), ("F",), "After RoPE."),
        Tensor("key", ("T", "K", "D"), ("F",), "After RoPE; with value_width the latent, which is key and value."),
        Tensor("past_key", ("B", "K", "C", "D"), ("S",), "Cached keys; with value_width cached latents."),
        Tensor("past_lengths", ("B",), ("int32",), "Rows of each cache in use, 0 to C."),
        Tensor("sequence_ids", ("T",), ("int32",), "Sequence of each row, 0 to B - 1; the rows of one stand together."),
        Tensor("sequence_offsets", ("A+1",), ("int32",), "Where in T each sequence of the call starts: 0, ..., T."),
        Tensor("value", ("T", "K", "W"), ("F",), "Values.", _HAS_VALUES),
        Tensor("past_value", ("B", "K", "C", "W"), ("S",), "Cached values.", _HAS_VALUES),
        Tensor("sink_logits", ("N",), ("F",), "One more logit for each head, in the softmax only.", _HAS_SINKS),
        Tensor("position_ids", ("T",), ("int32",), "Original position of each row.", unless=_HAS_NO_WINDOW),
        Tensor(
            "past_position_ids",
            ("B", "C"),
            ("int32",),
            "Original position of each cached row in use.",
            unless=_HAS_NO_WINDOW,
        ),
    ),
    outputs=(
        Tensor("output", ("T", "N", "W"), ("F",), "Attended values."),
        Tensor("present_key", ("B", "K", "C", "D"), ("S",), "past_key with the new rows.", alias="past_key"),
        Tensor(
            "present_value",
            ("B", "K", "C", "W"),
            ("S",),
            "past_value with the new rows.",
            _HAS_VALUES,
            alias="past_value",
        ),
        Tensor(
            "present_position_ids",
            ("B", "C"),
            ("int32",),
            "past_position_ids with those of the new rows.",
            ("writes_position_ids", (1,)),
            alias="past_position_ids",
        ),
        Tensor(
            "lse",
            ("T", "N"),
            ("float",),
            "Natural logarithm of what a row's softmax divides by, sinks included.",
            ("has_lse", (1,)),
        ),
    ),
    attributes=(
        Attribute(
            "window",
            "int",
            "A row sees original positions less than this behind its own; 0: all.",
            limits=(0, 2**31 - 1),
        ),
        Attribute(
            "value_width", "int", "The values are the first so many columns of the keys; 0: tensors.", limits=(0, 1024)
        ),
        Attribute("scale", "float", "Factor of query times key."),
        Attribute("has_sinks", "int", "1: there are sink_logits.", choices=(0, 1)),
        Attribute("writes_position_ids", "int", "1: position_ids are written to the cache, too.", choices=(0, 1)),
        Attribute("has_lse", "int", "1: lse is an output.", choices=(0, 1)),
    ),
    sizes=(
        Size("A", 1, 1 << 16, "Sequences of the call."),
        Size("B", 1, 1 << 16, "Sequences with caches."),
        Size("T", 1, 1 << 24, "Rows of the call."),
        Size("C", 1, 1 << 24, "Capacity: rows of a cache."),
        Size("N", 1, 1 << 10, "Query heads, a multiple of K."),
        Size("K", 1, 1 << 10, "Key heads."),
        Size("D", 1, 1 << 10, "Width of a key."),
        Size("W", 1, 1 << 10, "Width of a value."),
    ),
    rule=_rule,
    input_rule=_input_rule,
    known_sizes=_known_sizes,
)


def check_sequences(past_lengths: Array, sequence_ids: Array, sequence_offsets: Array, C: int) -> None:
    """Check which rows belong to which sequence, and that the caches have room for them.

    Args:
        past_lengths: [B].
        sequence_ids: [T].
        sequence_offsets: [A + 1].
        C: capacity.
    Raises:
        ValueError: the offsets do not ascend from 0 to T, the rows between two of them are not those of one sequence,
            a sequence comes twice or is none of the B, or its rows do not fit into its cache.
    """
    op, B, T = ATTENTION.name, len(past_lengths), len(sequence_ids)
    if sequence_offsets[0] != 0 or sequence_offsets[-1] != T or (np.diff(sequence_offsets) < 1).any():
        raise ValueError(f"{op}: sequence_offsets is {sequence_offsets.tolist()}, expected 0 to T = {T}, ascending")
    for name, values, most in (("past_lengths", past_lengths, C), ("sequence_ids", sequence_ids, B - 1)):
        wrong = np.flatnonzero((values < 0) | (values > most))
        if wrong.size:
            raise ValueError(f"{op}: {name}[{wrong[0]}] is {values[wrong[0]]}, expected 0 to {most}")
    seen: set[int] = set()
    for first, end in itertools.pairwise(sequence_offsets.tolist()):
        b = int(sequence_ids[first])
        other = first + np.flatnonzero(sequence_ids[first:end] != b)
        if other.size:
            raise ValueError(f"{op}: sequence_ids[{other[0]}] is {sequence_ids[other[0]]}, expected {b} up to {end}")
        if b in seen:
            raise ValueError(f"{op}: sequence_ids[{first}] is {b}, which has rows before; expected them together")
        seen.add(b)
        if past_lengths[b] + end - first > C:
            raise ValueError(
                f"{op}: sequence {b} has {past_lengths[b]} rows and gets {end - first}, expected at most C = {C}"
            )


def check_attention_inputs(attributes: Attributes, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError unless the contract allows the inputs, arrays or CPU tensors by name, and what is in them."""
    sizes = ATTENTION.check_inputs(attributes, inputs).sizes
    lengths, ids, offsets = (np.asarray(inputs[n]) for n in ("past_lengths", "sequence_ids", "sequence_offsets"))
    check_sequences(lengths, ids, offsets, sizes["C"])
