# SPDX-License-Identifier: Apache-2.0
"""The custom operators, one a file: contract and NumPy reference."""

from fastmmoe.exporter.ops.contract import DOMAIN, Attribute, OpSpec, Tensor
from fastmmoe.exporter.ops.sparse_moe import SPARSE_MOE, sparse_moe_reference
from fastmmoe.exporter.ops.token_prune import TOKEN_PRUNE, token_prune_reference

OPS: tuple[OpSpec, ...] = (SPARSE_MOE, TOKEN_PRUNE)

__all__ = [
    "DOMAIN",
    "OPS",
    "SPARSE_MOE",
    "TOKEN_PRUNE",
    "Attribute",
    "OpSpec",
    "Tensor",
    "sparse_moe_reference",
    "token_prune_reference",
]
