# SPDX-License-Identifier: Apache-2.0
"""The custom operators, one a folder: contract, NumPy reference, function body, torch op."""

from fastmmoe.exporter.ops.attention.contract import ATTENTION
from fastmmoe.exporter.ops.attention.reference import attention_reference
from fastmmoe.exporter.ops.contract import DOMAIN, Attribute, OpSpec, Tensor
from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE
from fastmmoe.exporter.ops.sparse_moe.reference import sparse_moe_reference
from fastmmoe.exporter.ops.token_prune.contract import TOKEN_PRUNE
from fastmmoe.exporter.ops.token_prune.reference import token_prune_reference

OPS: tuple[OpSpec, ...] = (SPARSE_MOE, TOKEN_PRUNE, ATTENTION)

__all__ = [
    "ATTENTION",
    "DOMAIN",
    "OPS",
    "SPARSE_MOE",
    "TOKEN_PRUNE",
    "Attribute",
    "OpSpec",
    "Tensor",
    "attention_reference",
    "sparse_moe_reference",
    "token_prune_reference",
]
