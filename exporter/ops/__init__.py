# SPDX-License-Identifier: Apache-2.0
"""The custom operators, one a folder: contract, NumPy reference, function body, torch op."""

from fastmmoe.exporter.ops.attention.contract import ATTENTION
from fastmmoe.exporter.ops.attention.reference import attention_reference
from fastmmoe.exporter.ops.contract import DOMAIN, Attribute, OpSpec, Tensor
from fastmmoe.exporter.ops.linear.contract import LINEAR
from fastmmoe.exporter.ops.linear.reference import linear_reference
from fastmmoe.exporter.ops.rotary.contract import ROTARY
from fastmmoe.exporter.ops.rotary.reference import rotary_reference
from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE
from fastmmoe.exporter.ops.sparse_moe.reference import sparse_moe_reference
from fastmmoe.exporter.ops.token_prune.contract import TOKEN_PRUNE
from fastmmoe.exporter.ops.token_prune.reference import token_prune_reference
from fastmmoe.exporter.ops.vision_attention.contract import VISION_ATTENTION
from fastmmoe.exporter.ops.vision_attention.reference import vision_attention_reference

ENGINE_OPS: tuple[OpSpec, ...] = (SPARSE_MOE, TOKEN_PRUNE, ATTENTION, LINEAR)
"""Those that GPUs run, too."""

OPS: tuple[OpSpec, ...] = (*ENGINE_OPS, VISION_ATTENTION, ROTARY)

__all__ = [
    "ATTENTION",
    "DOMAIN",
    "ENGINE_OPS",
    "LINEAR",
    "OPS",
    "ROTARY",
    "SPARSE_MOE",
    "TOKEN_PRUNE",
    "VISION_ATTENTION",
    "Attribute",
    "OpSpec",
    "Tensor",
    "attention_reference",
    "linear_reference",
    "rotary_reference",
    "sparse_moe_reference",
    "token_prune_reference",
    "vision_attention_reference",
]
