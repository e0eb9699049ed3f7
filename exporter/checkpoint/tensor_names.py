# SPDX-License-Identifier: Apache-2.0
"""Names of many tensors in one line, and what unexpected names say about where a checkpoint comes from."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any

_MAX_LISTED = 5
_LONGEST_SHOWN = 200
_NUMBER = re.compile("0|[1-9][0-9]{0,8}")


_DEQUANTISE = (
    "16-bit or float32 weights are needed: export the unquantised checkpoint, or dequantise this one and save it"
)
_UNWRAP = "save the model inside the wrapper, or take this prefix off every name"

_ADVICE = (
    (
        r"\.lora_(A|B|embedding_[AB]|magnitude_vector)\b",
        "a LoRA adapter that is not merged: load both with peft, call "
        "merge_and_unload() and save the result with save_pretrained",
    ),
    (
        r"\.(base_layer|modules_to_save)\.",
        "saved with peft's layers inside: call merge_and_unload() and save the result with save_pretrained",
    ),
    (
        r"(^|\.)base_model\.model\.",
        "saved from inside peft's wrapper, whose names hold base_model.model.: call "
        "merge_and_unload() and save the result with save_pretrained",
    ),
    (r"^module\.", f"saved from a DistributedDataParallel wrapper, whose names start with module.: {_UNWRAP}"),
    (r"^_orig_mod\.", f"saved from a compiled model, whose names start with _orig_mod.: {_UNWRAP}"),
    (r"_fsdp_wrapped_module\.", f"saved from an FSDP wrapper, whose names hold _fsdp_wrapped_module.: {_UNWRAP}"),
    (
        r"_proj_(blocks|scales)$|_weight\.(blocks|scales)$",
        f"MXFP4 weights: {_DEQUANTISE} (transformers: Mxfp4Config(dequantize=True), then save_pretrained)",
    ),
    (r"weight_scale_inv$", f"FP8 weights with block scales: {_DEQUANTISE}"),
    (r"\.(weight_packed|weight_shape|weight_zero_point)$", f"compressed-tensors weights: {_DEQUANTISE}"),
    (r"\.((weight|input|output|activation|k|v)_scale(_2)?)$", f"FP8 or FP4 weights: {_DEQUANTISE}"),
    (r"\.g_idx$", f"GPTQ weights: {_DEQUANTISE}"),
    (r"\.(qweight|qzeros)$", f"AWQ or GPTQ weights: {_DEQUANTISE}"),
    (
        r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|quant_state",
        f"bitsandbytes weights: {_DEQUANTISE} (transformers: model.dequantize(), then save_pretrained)",
    ),
)
"""(pattern of tensor names, what such a checkpoint is and what to do), the more telling first."""

_QUANTISED_DTYPES = {
    "F8_E4M3": "FP8",
    "F8_E5M2": "FP8",
    "F4": "FP4",
    "U8": "packed integer",
    "I8": "integer",
    "I32": "packed integer",
}


def advice(names: Iterable[str], dtypes: Iterable[str]) -> str:
    """What to do about tensors that do not fit: by the names of unexpected ones, else by dtypes that are not read."""
    lines = "\n".join(names)
    for pattern, what in _ADVICE:
        if re.search(pattern, lines, re.MULTILINE):
            return what
    for dtype in dtypes:
        if dtype in _QUANTISED_DTYPES:
            return f"{_QUANTISED_DTYPES[dtype]} weights: {_DEQUANTISE}"
    return "check that both belong to the same model and were downloaded completely"


def problem(what: str, groups: dict[str, list[str]]) -> str:
    """One clause about tensors ("" if there is nothing to tell); the keys of `groups` follow the names."""
    count = sum(len(names) for names in groups.values())
    if count == 0:
        return ""
    entries = [_shown(pattern) + suffix for suffix, names in groups.items() for pattern in abbreviate(names)]
    more = f", and {len(entries) - _MAX_LISTED} more such groups" if len(entries) > _MAX_LISTED else ""
    return f"{count} tensor{'s' if count > 1 else ''} {what}: {', '.join(entries[:_MAX_LISTED])}{more}"


def _shown(name: str) -> str:
    """A name as part of one line, whatever a damaged file says it is."""
    shown = name if name.isprintable() else repr(name)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}..."


def abbreviate(names: Iterable[str]) -> list[str]:
    """Join dotted names that differ in numbers only: a.0.w, a.1.w, a.2.w -> a.{0..2}.w. Exact: nothing else matches."""
    groups: set[tuple[Any, ...]] = {
        tuple((int(p),) if _NUMBER.fullmatch(p) else p for p in name.split(".")) for name in names
    }
    # From the right, so that experts are joined within their layer before layers are joined with each other.
    for position in range(max((len(parts) for parts in groups), default=0) - 1, -1, -1):
        numbers: dict[tuple[Any, ...], set[int]] = {}
        for parts in [p for p in groups if len(p) > position and isinstance(p[position], tuple)]:
            groups.remove(parts)
            rest = (parts[:position], parts[position + 1 :])
            numbers.setdefault(rest, set()).update(parts[position])
        for (before, after), joined in numbers.items():
            groups.add((*before, tuple(sorted(joined)), *after))
    return sorted(".".join(p if isinstance(p, str) else _number_set(p) for p in parts) for parts in groups)


def _number_set(numbers: tuple[int, ...]) -> str:
    """(4,) -> "4"; (0, 1, 2, 5) -> "{0..2,5}"."""
    runs = []
    for _, members in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in members]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}")
    return str(numbers[0]) if len(numbers) == 1 else "{" + ",".join(runs) + "}"
