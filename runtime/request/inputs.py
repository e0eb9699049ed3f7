# SPDX-License-Identifier: Apache-2.0
"""Inputs of one sequence for the graphs, and the checks of tensors that official processors made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.types import Array

Ids: TypeAlias = npt.NDArray[np.int32]
Tensors: TypeAlias = Mapping[str, Array]


@dataclass(frozen=True)
class ModelInputs:
    """One sequence, without padding.

    Attributes:
        input_ids: int32 [T].
        visual_index: int32 [V], ascending: the positions that take vision features.
        vision_inputs: inputs of the vision graph, empty without pictures. `pixel_values` float32
            [n_tiles, 3, S, S]; for DeepSeek-VL2 also `layout_index` int32 [V], rows of concat(features of all
            tiles, image_newline, view_seperator).
        tile_counts: tiles of every picture.
        picture_sizes: (width, height) of every picture; empty where the inputs came as tensors.
    """

    input_ids: Ids
    visual_index: Ids
    vision_inputs: dict[str, Array]
    tile_counts: tuple[int, ...] = ()
    picture_sizes: tuple[tuple[int, int], ...] = ()


def check_length(inputs: ModelInputs, config: ProcessorConfig) -> ModelInputs:
    """Return the inputs unchanged; InvalidRequest if they do not fit the model's positions."""
    check_tokens(len(inputs.input_ids), len(inputs.visual_index), config.max_position_embeddings)
    return inputs


def check_tokens(new: int, visual: int, limit: int, tokens_before: int = 0) -> None:
    """InvalidRequest if so many new tokens, so many of them visual, do not fit the model's positions after others."""
    tokens = tokens_before + new
    if tokens > limit:
        advice = "give fewer tiles (--max-tiles), fewer pictures or a shorter text"
        parts = f"{visual} of them visual"
        if tokens_before:
            parts = f"{tokens_before} of them of earlier turns and {visual} of the new ones visual"
            advice += ", or start a new conversation"
        raise InvalidRequest(f"the sequence has {tokens} tokens, {parts}: the model takes at most {limit}; {advice}")


def no_ids() -> Ids:
    """No token ids, no positions."""
    return np.empty(0, np.int32)


def check_names(tensors: Tensors, required: Sequence[str], optional: Sequence[str]) -> None:
    """Raise InvalidRequest unless all required tensors are there, and no others but optional ones."""
    missing = sorted(set(required) - tensors.keys())
    unknown = sorted(map(str, tensors.keys() - {*required, *optional}))
    if missing or unknown:
        raise InvalidRequest(
            f"input tensors: missing {', '.join(missing) or 'none'}; unknown {', '.join(unknown) or 'none'}; "
            f"expected {', '.join(required)} and, optionally, {', '.join(optional)}"
        )


def check_tensor(tensors: Tensors, name: str, shape: tuple[int | None, ...], kinds: str) -> Array:
    """The tensor, if its shape (None = any size) and its type (NumPy kinds, or "f4" = float32) are as given."""
    tensor = tensors[name]
    if not isinstance(tensor, np.ndarray):
        raise InvalidRequest(f"{name} is of type {type(tensor).__name__}: expected a NumPy array")
    fits = tensor.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
    )
    is_type = tensor.dtype == np.float32 if kinds == "f4" else tensor.dtype.kind in kinds
    if not (fits and is_type):
        words = {"f4": "float32", "b": "bool", "iu": "integer", "biu": "bool or integer"}
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise InvalidRequest(
            f"{name} is {tensor.dtype} {list(tensor.shape)}: expected {words[kinds]} of shape [{expected}]"
        )
    if kinds == "f4" and not np.isfinite(tensor).all():
        place = np.unravel_index(int(np.argmin(np.isfinite(tensor))), tensor.shape)
        raise InvalidRequest(f"{name} holds {tensor[place]} at {[int(i) for i in place]}: expected finite numbers")
    return tensor


def is_tensor(value: Any) -> bool:
    """Whether it is an array of NumPy or a tensor of torch."""
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def as_array(value: Any) -> Array:
    """A tensor of torch, on any device, as an array, 16-bit numbers as float32; an array of NumPy as it is."""
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    array: Array = (value.float() if value.is_floating_point() else value).numpy()
    return array


def read_rows(tensors: Tensors, vocab_size: int) -> list[tuple[Ids, int]]:
    """(ids without padding, where they start) of every row."""
    ids = check_tensor(tensors, "input_ids", (None, None), "iu")
    mask = np.ones(ids.shape, bool)
    if "attention_mask" in tensors:
        given = check_tensor(tensors, "attention_mask", ids.shape, "biu")
        mask = given.astype(bool)
        if not np.array_equal(mask, given):
            raise InvalidRequest(f"attention_mask holds values from {given.min()} to {given.max()}: expected 0 and 1")
    rows = []
    for row in range(len(ids)):
        length = int(mask[row].sum())
        start = ids.shape[1] - length
        if length == 0 or not mask[row, start:].all():
            raise InvalidRequest(
                f"attention_mask, row {row}: {length} of {ids.shape[1]} positions are set and not all of them at the "
                "end; expected left padding and at least one token"
            )
        kept = ids[row, start:]
        if kept.min() < 0 or kept.max() >= vocab_size:
            raise InvalidRequest(
                f"input_ids, row {row}: ids from {kept.min()} to {kept.max()}, expected 0 to {vocab_size - 1}"
            )
        rows.append((kept.astype(np.int32), start))
    return rows
