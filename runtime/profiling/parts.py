# SPDX-License-Identifier: Apache-2.0
"""The part of a model that a node belongs to, by its name (docs/bundle.md says how nodes are named)."""

from __future__ import annotations

import re

from fastmmoe.runtime.bundle.manifest import GRAPHS
from fastmmoe.runtime.cost.weights import EXPERTS, HEAD

VISION, EMBEDDING, LANGUAGE_MODEL = GRAPHS
REST, LINEARS = "rest", "linears"

TITLES = {
    "patches": "patches",
    "embedding": "embedding",
    "norms": "norms",
    "rope": "rotary",
    "projections": "attention projections",
    "attention": "attention",
    "mlp": "MLP",
    "pruning": "pruning",
    "router": "router",
    EXPERTS: "experts",
    "shared_experts": "shared experts",
    "dense": "dense layers",
    "projector": "projector",
    HEAD: "head",
    LINEARS: "linear layers",
    REST: "rest",
}
"""Parts in the order of a call -> what they are called. All but embedding and the last two are of runtime/cost."""

# Of what is fused or named after several nodes the first place counts.
_PLACE = re.compile(
    r"(?<![\w.])(?:(?:layers|groups|blocks)\.\d+|patches|projector|head|embedding|random_scores|rater_weights)"
    r"(?:\.[\w+]+)*/\w+"
)
# Nodes that ONNX Runtime makes of a function of ours, as those of portable graphs, are named after the function alone:
# of a linear layer they do not say which part has it.
_INLINED = re.compile(r"_inlfunc_(Fmm[A-Za-z]+)")
_FUNCTIONS = {
    "FmmAttention": "attention",
    "FmmVisionAttention": "attention",
    "FmmSparseMoE": EXPERTS,
    "FmmTokenPrune": "pruning",
    "FmmLinear": LINEARS,
    "FmmRotary": "rope",
}
_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    VISION: (
        (r"patches\b", "patches"),
        (r"projector\b", "projector"),
        (r"\.norm\d*/", "norms"),
        (r"\.attn\b", "attention"),
        (r"\.mlp\b", "mlp"),
    ),
    EMBEDDING: (),
    LANGUAGE_MODEL: (
        (r"\.token_prune\b|\.watched(_rows)?\b|random_scores\b|rater_weights\b", "pruning"),
        (r"\.rotary/", "rope"),
        (r"norm/", "norms"),
        (r"\.self_attn(\.[\w+]+_proj(_with_mqa)?/|/MatMul)", "projections"),
        (r"\.self_attn\b", "attention"),
        # Beside its product, what the router's logits are made ready with.
        (r"\.mlp\.experts(\.router/|/(?!FmmSparseMoE))", "router"),
        (r"\.mlp\.experts/", EXPERTS),
        (r"\.mlp\.shared_experts\b", "shared_experts"),
        # The sum of routed and shared experts is a part of neither.
        (r"\.mlp(\.|/(?!Add))", "dense"),
        (r"head\b", HEAD),
    ),
}


def part_of(graph: str, node: str) -> str:
    """Key of TITLES.

    Args:
        graph: one of GRAPHS.
        node: its name, as the graph has it or as what fused it calls it.
    """
    if graph == EMBEDDING:
        return "embedding"
    if function := _INLINED.match(node):
        return _FUNCTIONS.get(function[1], REST)
    place = _PLACE.search(node)
    if place is None:
        return REST
    return next((part for pattern, part in _RULES[graph] if re.search(pattern, place[0])), REST)
