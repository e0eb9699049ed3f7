# SPDX-License-Identifier: Apache-2.0
"""Settings and prune sites of a policy."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from fastmmoe.runtime.method.policy import METHODS, SETTINGS, Policy
from tests.support.policies import DEEPSEEK

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


def test_sites_of_a_method_are_its_own() -> None:
    """sparsevlm and fastv prune after layers, never at one site."""
    policy = replace(ALL, prune_layers={"fastv": (3,), "sparsevlm": (2,), "random": (2,)})
    found = [(site.layer, site.point, site.methods) for site in policy.sites]
    assert found == [(2, "moe", ("random",)), (2, "output", ("fastv",)), (2, "output", ("sparsevlm",))]
    assert replace(policy, prune_layers={}).sites == ()


def test_what_a_request_may_choose() -> None:
    assert (DEEPSEEK.methods, DEEPSEEK.default_method) == (("none", "fastmmoe"), "fastmmoe")
    none = replace(DEEPSEEK, method="none", prune_layers={})
    assert (none.methods, none.default_method) == (("none",), "none")


def test_settings_are_the_described_fields() -> None:
    assert list(SETTINGS) == [
        "retention",
        "alpha",
        "merge_ratio",
        "window",
        "merge",
        "reduction_weights",
        "sparsevlm_positions",
    ]
    assert {name for name, setting in SETTINGS.items() if not setting.in_file} == {"sparsevlm_positions"}
    assert {name: setting.default for name, setting in SETTINGS.items() if setting.default is not None} == {
        "retention": 0.5,
        "window": 3,
        "merge": "mlerp",
        "reduction_weights": "preserve_sum",
        "sparsevlm_positions": "compact",
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_a_number_or_one_of_its_words(name: str) -> None:
    setting = SETTINGS[name]
    assert setting.what and (setting.type in (int, float)) is (setting.choices == ()) is bool(setting.metavar)
    assert setting.default is None or is_taken(name, setting.default)
    assert all(is_taken(name, choice) for choice in setting.choices)
    assert not is_taken(name, "other")


def is_taken(name: str, value: Any) -> bool:
    """Whether a stored policy may have the value."""
    stored = msgspec.to_builtins(ALL) | {name: value}
    try:
        msgspec.convert(stored, Policy)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "legal", "illegal"),
    [
        ("retention", (1e-9, 1), (0, 1.0001, -0.5)),
        ("alpha", (0, 1), (-0.001, 1.001)),
        ("merge_ratio", (0, 1), (-0.001, 1.001)),
        ("window", (1, 64), (0, 65, 2.5)),
        ("stage_exponents", ([], [1]), ([0], [1.5])),
        ("prune_layers", ({}, {"fastv": [1]}), ({"fastv": []}, {"none of them": [1]}, {"fastv": [-1]})),
        ("visual_top_k", ([], [1]), ([0], 1)),
        ("method", ("none", "all"), ("every",)),
        ("unknown", (), (1,)),
    ],
)
def test_ranges_of_a_stored_policy(name: str, legal: tuple[Any, ...], illegal: tuple[Any, ...]) -> None:
    assert [is_taken(name, value) for value in (*legal, *illegal)] == [True] * len(legal) + [False] * len(illegal)


def test_methods_are_numbered_as_the_graph_takes_them() -> None:
    """Bundles hold these numbers: a new method comes last."""
    assert METHODS == ("none", "fastmmoe", "random", "fastv", "sparsevlm")
