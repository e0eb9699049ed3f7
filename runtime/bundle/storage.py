# SPDX-License-Identifier: Apache-2.0
"""How a bundle stores weights: the parts of its manifest that say so."""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from fastmmoe.runtime.ranges import Count, OptionalWidth, Width

ExpertDtype: TypeAlias = Literal["float32", "float16", "bfloat16", "int8"]


class ExpertTensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input of the language model's engine: where its values are in the graph's file of weights, in bytes."""

    dtype: ExpertDtype
    shape: Annotated[tuple[Width, ...], Meta(min_length=3, max_length=3)]
    offset: Count

    @property
    def bytes(self) -> int:
        """Of all values."""
        return math.prod(self.shape) * {"float32": 4, "int8": 1}.get(self.dtype, 2)


class ExpertsInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Storage of the routed experts' weights, as in FmmSparseMoE's contract; group_size 0 with float.

    Attributes:
        inputs: for engines the weights are inputs of the language model, by name; else they are in its graph.
    """

    weight_format: Literal["float", "int8", "int4", "fp8"]
    group_size: OptionalWidth
    zero_points: bool
    inputs: dict[str, ExpertTensor] = {}


class LinearInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Storage of linear layers' weights, as in FmmLinear's contract; float = of activation_dtype."""

    weight_format: Literal["float", "bf16", "int8", "int4"]
    group_size: OptionalWidth
    zero_points: bool


class LinearsInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Linear layers by part.

    Attributes:
        dense: the language model's attention projections, shared experts and dense MLPs.
        head: what gives its logits.
        vision: the vision tower and its projector.
    """

    dense: LinearInfo
    head: LinearInfo
    vision: LinearInfo
