# SPDX-License-Identifier: Apache-2.0
"""The legal range of each number that a configuration or a manifest may hold; every reader takes it from here.

Each name is a type as in annotations: msgspec structs use it for a field, `ConfigReader` as the kind of a key. The
upper bounds are far above every published model, and low enough that no product of a few of them leaves 64 bits: they
keep a damaged file from asking for terabytes, not a large model from being exported.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, get_args

from msgspec import Meta


def limits(kind: Any) -> tuple[float, bool, float]:
    """Least value of one of these types, whether that is itself outside, greatest value."""
    meta: Meta = get_args(kind)[1]
    least = meta.gt if meta.ge is None else meta.ge
    assert least is not None and meta.le is not None, f"{kind} lacks a limit"
    return least, meta.ge is None, meta.le


Layers: TypeAlias = Annotated[int, Meta(ge=1, le=1024)]
"""Layers of a decoder or of a vision tower."""

LayerIndex: TypeAlias = Annotated[int, Meta(ge=0, le=1023)]
"""One of them, from 0."""

Heads: TypeAlias = Annotated[int, Meta(ge=1, le=1024)]
"""Attention heads, of queries or of keys and values."""

HeadDim: TypeAlias = Annotated[int, Meta(ge=1, le=8192)]
"""Width of one head, or of a part of it."""

OptionalHeadDim: TypeAlias = Annotated[int, Meta(ge=0, le=8192)]
"""Width of a head's part that a model may lack; 0 = it does."""

Width: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 18)]
"""Features of a hidden state, of an MLP, of a latent."""

OptionalWidth: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 18)]
"""Features of a part that a model may lack; 0 = it does."""

Experts: TypeAlias = Annotated[int, Meta(ge=1, le=4096)]
"""Routed experts of a layer."""

ExpertsPerToken: TypeAlias = Annotated[int, Meta(ge=1, le=16)]
"""Routed experts that a token uses, within the limits of FmmSparseMoE's contract."""

ExpertGroups: TypeAlias = Annotated[int, Meta(ge=1, le=64)]
"""Groups of a layer's experts, within the limits of FmmSparseMoE's contract."""

OptionalExperts: TypeAlias = Annotated[int, Meta(ge=0, le=4096)]
"""Experts of a kind that a model may lack, such as shared ones."""

VocabSize: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 22)]
"""Rows of an embedding."""

TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 22) - 1)]
"""An id of a vocabulary."""

Positions: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 24)]
"""Tokens of a sequence or of a window."""

Pixels: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 14)]
"""Side of a patch, a tile or a candidate resolution."""

Tiles: TypeAlias = Annotated[int, Meta(ge=1, le=4096)]
"""Tiles of a picture."""

PatchCount: TypeAlias = Annotated[int, Meta(ge=1, le=64)]
"""Patches along one side that become one visual token, visual tokens along one side or in one window."""

Level: TypeAlias = Annotated[int, Meta(ge=0, le=255)]
"""Value of a colour channel."""

Count: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""Bytes of a file, and other counts that only a file system bounds."""

Version: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 16)]
"""Version of an operator."""

Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
"""A weight or a part of a whole."""

PositiveShare: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
"""A part of a whole that is not nothing."""

Real: TypeAlias = Annotated[float, Meta(ge=-1e12, le=1e12)]
"""Any finite number that a model may hold."""

Positive: TypeAlias = Annotated[float, Meta(gt=0, le=1e12)]
"""A scale, a limit."""

Deviation: TypeAlias = Annotated[float, Meta(ge=1e-6, le=1e6)]
"""What pixels in [0, 1] are divided by; far smaller ones are 0 in float32."""

Epsilon: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
"""What keeps a norm from dividing by zero."""

RotaryBase: TypeAlias = Annotated[float, Meta(gt=1, le=1e12)]
"""The base of rotary frequencies."""

RotaryScale: TypeAlias = Annotated[float, Meta(ge=1, le=1e6)]
"""By how much rotary positions are stretched."""

Turns: TypeAlias = Annotated[float, Meta(gt=0, le=1e6)]
"""Turns of a rotary pair over a sequence."""

WidthRatio: TypeAlias = Annotated[float, Meta(gt=0, le=1024)]
"""Features of an MLP to those of what it takes."""
