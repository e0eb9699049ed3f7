# SPDX-License-Identifier: Apache-2.0
"""One expert's weights from how they are stored to float32, in torch."""

from __future__ import annotations

from typing import Any

import torch

from fastmmoe.exporter.ops.contract import LAYOUT, TILES
from fastmmoe.exporter.ops.quantise import NIBBLE_COLUMNS, ZEROS

_FP8_OF_NAN = 480.0


def expert_floats(
    stored: list[torch.Tensor], a: dict[str, Any], rows: int, columns: int, *, is_gate_up: bool
) -> torch.Tensor:
    """float32 [2 rows or rows, columns].

    Args:
        stored: values of one expert, its scales and zeros as far as the format has them.
        a: attributes of FmmSparseMoE.
        rows, columns: I and H of gate_up, H and I of down.
    """
    is_tiled = a[LAYOUT] == TILES
    values, *groups = (_logical(tensor, rows, is_gate_up) for tensor in stored) if is_tiled else stored
    if not groups:
        return values[:, :columns].float()
    q = _numbers(values, a["weight_format"])[:, :columns]
    scale, *zero = (g.float().repeat_interleave(a["group_size"], dim=1)[:, :columns] for g in groups)
    return (q - (zero[0] if zero else ZEROS[a["weight_format"]])) * scale


def _logical(tiles: torch.Tensor, rows: int, is_gate_up: bool) -> torch.Tensor:
    """Tiles [panels, (2,) words, 16, b], or scales [panels, (2,) groups, 16], as rows."""
    has_words = tiles.ndim == (5 if is_gate_up else 4)
    if not is_gate_up:
        ordered = tiles.permute(0, 2, 1, 3) if has_words else tiles.permute(0, 2, 1)
        return ordered.reshape(tiles.shape[0] * tiles.shape[2], -1)[:rows]
    ordered = tiles.permute(1, 0, 3, 2, 4) if has_words else tiles.permute(1, 0, 3, 2)
    return ordered.reshape(2, tiles.shape[0] * tiles.shape[3], -1)[:, :rows].flatten(0, 1)


def _numbers(values: torch.Tensor, weight_format: str) -> torch.Tensor:
    """What bytes [rows, n] are without scale and zero, float32."""
    if weight_format == "int8":
        return values.float()
    if weight_format == "fp8":
        return values.view(torch.float8_e4m3fn).float().nan_to_num(nan=_FP8_OF_NAN)
    bits = values.contiguous().view(torch.uint8)
    words = torch.stack([bits & 15, bits >> 4], dim=2).reshape(len(bits), -1, len(NIBBLE_COLUMNS))
    found = torch.empty_like(words)
    found[..., list(NIBBLE_COLUMNS)] = words
    return found.flatten(1).float()
