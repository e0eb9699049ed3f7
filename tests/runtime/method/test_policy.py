# SPDX-License-Identifier: Apache-2.0
"""Settings and prune sites of a policy."""

from __future__ import annotations

from msgspec.structs import replace

from fastmmoe.runtime.method.policy import Policy

DEEPSEEK = Policy(
    method="fastmmoe",
    prune_layers={"fastmmoe": (2, 5, 8)},
    stage_exponents=(1 / 3, 2 / 3, 1.0),
    retention=0.5,
    alpha=0.3,
    merge_ratio=0.05,
    window=3,
    merge="mlerp",
    visual_top_k=(6,) + (3,) * 25,
    reduction_weights="preserve_sum",
    sparsevlm_positions="compact",
)


ALL = replace(
    DEEPSEEK,
    method="all",
    prune_layers={"fastmmoe": (2, 5, 8), "random": (2, 5, 8), "fastv": (2,), "sparsevlm": (2, 5, 13)},
)


def test_sites_in_the_order_of_the_graph() -> None:
    """fastv prunes before layer 2, so after layer 1; fastmmoe and random share sites."""
    found = [(site.layer, site.point, site.methods) for site in ALL.sites]
    shared, rated = ("fastmmoe", "random"), ("sparsevlm",)
    assert found == [
        (1, "output", ("fastv",)),
        (2, "moe", shared),
        (2, "output", rated),
        (5, "moe", shared),
        (5, "output", rated),
        (8, "moe", shared),
        (13, "output", rated),
    ]
    assert (ALL.methods, ALL.default_method) == (("none", "fastmmoe", "random", "fastv", "sparsevlm"), "fastmmoe")
