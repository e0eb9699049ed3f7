# SPDX-License-Identifier: Apache-2.0
"""The contract of FmmSparseMoE: what it allows, and what it says of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from fastmmoe.exporter.ops import SPARSE_MOE
from tests.support.operators import (
    moe_attributes,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_format": "int8"}, "attribute group_size is 0 with weight_format int8, expected 0 with float only"),
        ({"group_size": 32}, "attribute group_size is 32 with weight_format float, expected 0 with float only"),
        ({"weight_format": "int4", "group_size": 16}, r"attribute group_size is 16, supported are \[0, 32, 64, 128\]"),
        ({"zero_points": 1}, "attribute zero_points is 1 with weight_format float, expected 0"),
        ({"weight_format": "int2"}, r"attribute weight_format is 'int2', supported are \['float', 'int8', 'int4'\]"),
        (
            {"topk_method": "noaux_tc", "n_group": 2, "topk_group": 3},
            "attribute topk_group is 3, expected at most n_group = 2",
        ),
    ],
)
def test_attributes_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^FmmSparseMoE: {message}$"):
        SPARSE_MOE.check_attributes(moe_attributes(**changes))
