# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from fastmmoe.exporter.ops import SPARSE_MOE, sparse_moe_reference
from tests.support.moe_layouts import KINDS, LAYOUTS, Kind, stored_case
from tests.support.operator_bodies import run_body
from tests.support.operators import assert_close


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_stored_weights(kind: Kind, layout: str) -> None:
    """Every format and layout, one expert at a time; sizes that fill no panel, word or group."""
    if not kind.has(layout):
        pytest.skip(f"there is no {kind} as {layout}")
    for expert_bias in (0, 1):
        inputs, attributes = stored_case(kind, layout, T=9, expert_bias=expert_bias)
        (output,) = run_body(SPARSE_MOE, attributes, list(inputs.values()))
        assert_close(output, sparse_moe_reference(**inputs, **attributes))
