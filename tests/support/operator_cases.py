# SPDX-License-Identifier: Apache-2.0
"""The tables of cases of both operators, for reference, CPU kernels and CUDA kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastmmoe.exporter.ops.token_prune.contract import merge_capacity
from fastmmoe.runtime.types import Array
from tests.support.operators import MLERP, MOE_ATTRIBUTES, moe_inputs, pack_prune_inputs, prune_inputs

MoeCase = tuple[dict[str, Array], dict[str, Any]]


# Attributes that choose groups of experts, by topk_method; they need a number of experts that 8 divides.
MOE_GROUPS: dict[str, dict[str, int]] = {
    "greedy": {},
    "group_limited_greedy": {"n_group": 8, "topk_group": 4},
    "noaux_tc": {"n_group": 8, "topk_group": 4},
}


SCORING_FUNCS = ("softmax", "sigmoid", "topk_softmax")


def make_moe_cases() -> Iterator[tuple[str, MoeCase]]:
    """Names and cases of FmmSparseMoE whose H and I every kernel takes: routing, ties, sizes, uneven loads."""
    size: dict[str, Any] = {"H": 32, "I": 48}
    for (method, groups), scoring in itertools.product(MOE_GROUPS.items(), SCORING_FUNCS):
        routing = MOE_ATTRIBUTES | groups | {"topk_method": method, "scoring_func": scoring}
        for norm, reduction in itertools.product((0, 1), ("preserve_sum", "none")):
            changes = {"norm_topk_prob": norm, "reduction_weights": reduction, "routed_scaling_factor": 2.5}
            name = f"{method}-{scoring}-norm{norm}-{reduction}"
            yield name, (moe_inputs(T=33, E=32, **size), routing | changes)
        inputs = moe_inputs(T=24, E=72, **size)
        inputs["router_logits"] = np.round(inputs["router_logits"] / 2)
        inputs["correction_bias"][:] = 0
        yield f"ties-{method}-{scoring}", (inputs, routing)
    for method in ("group_limited_greedy", "noaux_tc"):
        inputs = moe_inputs(T=8, E=128, **size)
        inputs["router_logits"] = np.round(inputs["router_logits"])
        inputs["correction_bias"][:] = 0
        routing = MOE_ATTRIBUTES | {"topk_method": method, "n_group": 64, "topk_group": 9}
        yield f"ties of many groups-{method}", (inputs, routing)
    for method, scoring in itertools.product(("group_limited_greedy", "noaux_tc"), ("softmax", "sigmoid")):
        routing = {"topk_method": method, "scoring_func": scoring, "n_group": 16, "topk_group": 3}
        yield f"groups that hold too few-{method}-{scoring}", (moe_inputs(**size), MOE_ATTRIBUTES | routing)
    for T, E in itertools.product((0, 1, 2, 17), (64, 72, 128)):
        yield f"T{T}-E{E}", (moe_inputs(T=T, E=E, **size), MOE_ATTRIBUTES)
    for activation, expert_bias in itertools.product(("swiglu", "swiglu_oai"), (0, 1)):
        changes = {"activation": activation, "expert_bias": expert_bias, "swiglu_limit": 1.5}
        for T in (5, 17):
            inputs = moe_inputs(T=T, expert_bias=bool(expert_bias), **size)
            yield f"{activation}-bias{expert_bias}-T{T}", (inputs, MOE_ATTRIBUTES | changes)
    for name, visual in (("none", np.arange(0)), ("all", np.arange(17))):
        yield f"{name} visual", (moe_inputs(visual=visual, **size), MOE_ATTRIBUTES)
        normed = MOE_ATTRIBUTES | {"norm_topk_prob": 1}
        yield f"{name} visual, one expert", (moe_inputs(visual=visual, visual_top_k=1, **size), normed)
    for T in (8, 70):
        inputs = moe_inputs(T=T, visual_top_k=1, **size)
        inputs["router_logits"][:, 5] += 50
        yield f"one expert takes all {T}", (inputs, MOE_ATTRIBUTES | {"top_k": 1})
    yield "top_k of all experts", (moe_inputs(visual_top_k=16, **size), MOE_ATTRIBUTES | {"top_k": 16})


MOE_CASES = dict(make_moe_cases())


PruneCase = tuple[dict[str, Array], dict[str, Any]]


def make_ordinary_prune_cases() -> Iterator[tuple[str, PruneCase]]:
    """Names and cases over windows, attributes and how many tokens are visual and survive."""
    for window in (1, 2, 3, 4, 7, 64):
        for merge in ("mlerp", "mean"):
            for alpha in (0.0, 0.3, 1.0):
                inputs = prune_inputs(M=min(5, merge_capacity(44, 20, window)), alpha=alpha)
                yield f"window{window}-{merge}-alpha{alpha}", (inputs, {"window": window, "merge": merge})
    yield "no merging", (prune_inputs(M=0), MLERP)
    for name, visual in (("prefill", np.r_[3:33, 40:54]), ("decode", np.arange(0))):
        inputs = prune_inputs(K=len(visual), M=0, visual=visual)
        inputs["hidden_states"][5] = np.nan
        yield f"keeping all-{name}", (inputs, MLERP)
    for T in (0, 1):
        yield f"no visual tokens of {T}", (prune_inputs(T=T, K=0, M=0, visual=np.arange(0)), MLERP)
    for name, visual in (("some", np.arange(12)), ("all", np.arange(60))):
        yield f"keeping none-{name} visual", (prune_inputs(K=0, M=0, visual=visual), MLERP)
    yield "windows of one token", (prune_inputs(visual=np.arange(0, 60, 2), K=10, M=4), MLERP)


def make_hostile_prune_cases() -> Iterator[tuple[str, PruneCase]]:
    """Names and cases of ties and of values that are not finite or too great to add."""
    inputs = prune_inputs(M=4)
    inputs["routing_probs"][:] = 0.125
    inputs["attention"] = np.round(inputs["attention"] * 4) / 4
    yield "ties of many values", (inputs, MLERP)
    inputs = prune_inputs(M=4)
    inputs["routing_probs"][:] = 0.125
    inputs["attention"][:] = 0.25
    yield "ties of one value", (inputs, MLERP)
    inputs = prune_inputs(M=4)
    inputs["routing_probs"][:] = 0.125
    inputs["attention"] = np.where(np.arange(44) % 3 == 0, np.float32(-0.0), np.float32(0.0))
    yield "ties of zero and minus zero", (inputs, MLERP)
    inputs = prune_inputs(K=40, M=1)
    inputs["routing_probs"][5, 2] = np.nan
    inputs["routing_probs"][17] = np.inf
    inputs["attention"][[8, 9]] = np.nan, -np.inf
    inputs["attention"][20:30] *= -1
    yield "rows that are not finite", (inputs, MLERP)
    inputs = prune_inputs(K=20, M=8, visual=np.flatnonzero(np.arange(60) % 3))
    inputs["routing_probs"][[4, 7, 30], 1] = np.nan
    yield "short windows beside rows that are not finite", (inputs, MLERP)
    inputs = prune_inputs()
    inputs["attention"][10:20] = 3e38
    yield "attention beyond the range of float sums", (inputs, MLERP)
    inputs = prune_inputs()
    inputs["routing_probs"][:] = np.nan
    yield "all routing rows bad", (inputs, MLERP)


def make_packed_prune_cases() -> Iterator[tuple[str, PruneCase]]:
    """Names and cases of several sequences; means and maxima differ among them, visual rows of some are adjacent."""

    def sequence(seed: int, T: int, K: int, M: int, visual: Array) -> dict[str, Array]:
        inputs = prune_inputs(T, K, M, visual=visual, seed=seed)
        inputs["attention"] *= np.float32(4.0**-seed)
        inputs["routing_probs"][:, seed] += np.float32(seed)
        return inputs

    ends, starts = sequence(1, 27, 9, 2, np.r_[2:12, 16:27]), sequence(2, 31, 7, 2, np.r_[0:11, 20:25])
    whole, text = sequence(3, 14, 11, 0, np.arange(11)), sequence(4, 5, 0, 0, np.arange(0))
    dropped, full = sequence(5, 8, 0, 0, np.arange(5)), sequence(6, 7, 3, 1, np.arange(7))
    yield "packed-one kept whole, one without images", (pack_prune_inputs(ends, whole, text), MLERP)
    yield "packed-adjacent runs", (pack_prune_inputs(text, ends, starts), MLERP)
    yield "packed-many", (pack_prune_inputs(whole, starts, ends, dropped, text, full, full, ends), MLERP)
    yield "packed-keeping all", (pack_prune_inputs(whole, text, whole), MLERP)
    ties, bad = pack_prune_inputs(ends, starts), pack_prune_inputs(starts, full, ends)
    ties["routing_probs"][:], ties["attention"][:] = 0.125, 0.25
    bad["routing_probs"][[3, 20, 21, 30], 2] = np.nan
    yield from (("packed-ties", (ties, MLERP)), ("packed-not finite", (bad, MLERP)))


PACKED_PRUNE_CASES = dict(make_packed_prune_cases())


PRUNE_CASES = dict([*make_ordinary_prune_cases(), *make_hostile_prune_cases()]) | PACKED_PRUNE_CASES
