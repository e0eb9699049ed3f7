# SPDX-License-Identifier: Apache-2.0
"""Numbers of config.json that must go together: on either side of each line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models.config_checks import MoeConfig, check_heads, check_moe, check_rotary, check_tower
from fastmmoe.runtime.errors import UnsupportedModel

READER = ConfigReader({"num_key_value_heads": 3}, prefix="text_config")
MOE = MoeConfig(num_experts=12, top_k=4, intermediate_size=8, scoring_func="softmax")


def refusal(check: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(UnsupportedModel) as raised:
        check(READER, *arguments, **keywords)
    return str(raised.value)


def test_key_value_heads() -> None:
    for kv_heads in (1, 2, 4, 8):
        check_heads(READER, heads=8, kv_heads=kv_heads)
    for kv_heads in (3, 16):
        assert refusal(check_heads, heads=8, kv_heads=kv_heads) == (
            f"config.json: text_config.num_key_value_heads is {kv_heads}, expected a divisor of num_attention_heads = 8"
        )


def test_rotated_dimensions() -> None:
    check_rotary(READER, "head_dim", 64)
    assert refusal(check_rotary, "head_dim", 63) == (
        "config.json: text_config.head_dim is missing, which means 63, expected an even number: rotary positions turn "
        "pairs"
    )


def test_experts_of_a_token() -> None:
    check_moe(READER, replace(MOE, top_k=12))
    message = "text_config.num_experts_per_tok is missing, which means 13, expected at most the 12 experts of a layer"
    assert message in refusal(check_moe, replace(MOE, top_k=13))


@pytest.mark.parametrize("method", ["group_limited_greedy", "noaux_tc"])
def test_groups(method: str) -> None:
    grouped = replace(MOE, topk_method=method, n_group=3, topk_group=3)
    check_moe(READER, grouped)
    assert "n_group is missing, which means 5, expected a divisor of the 12" in refusal(
        check_moe, replace(grouped, n_group=5)
    )
    assert "topk_group is missing, which means 4, expected at most n_group = 3" in refusal(
        check_moe, replace(grouped, topk_group=4)
    )


def test_groups_of_one_expert() -> None:
    """The score of a group is the sum of its two best for one of the methods only."""
    single = replace(MOE, topk_method="group_limited_greedy", n_group=12)
    check_moe(READER, single)
    message = (
        "n_group is missing, which means 12, expected at most half of the 12 experts: two of a group are its score"
    )
    assert message in refusal(check_moe, replace(single, topk_method="noaux_tc"))
    check_moe(READER, replace(single, topk_method="noaux_tc", n_group=6))


def test_groups_do_not_count_without_them() -> None:
    check_moe(READER, replace(MOE, n_group=5, topk_group=9))


def test_the_tower() -> None:
    sizes: dict[str, int] = {"width": 72, "heads": 4, "image_size": 28, "patch": 28}
    check_tower(READER, "width", **sizes)
    assert (
        "text_config.hidden_size is missing, which means 74, expected a multiple of the 4 attention heads"
        in refusal(check_tower, "hidden_size", **sizes | {"width": 74})
    )
    assert "patch_size is missing, which means 29, expected at most image_size = 28" in refusal(
        check_tower, "width", **sizes | {"patch": 29}
    )
