# SPDX-License-Identifier: Apache-2.0
"""The contract of FmmAttention: what it allows, and what it says of the rest."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.exporter.ops import ATTENTION
from fastmmoe.exporter.ops.attention.contract import check_attention_inputs
from fastmmoe.runtime.types import Array
from tests.support.attention_cases import LARGE, OTHER_WIDTHS, SMALL, Case, make_inputs

BY_NAME = {case.name: case for case in SMALL}


@pytest.mark.parametrize("case", [*SMALL, *OTHER_WIDTHS, *LARGE], ids=lambda case: case.name)
def test_inputs_of_the_contract(case: Case) -> None:
    check_attention_inputs(case.attributes, make_inputs(case))


def test_outputs_that_may_have_the_address_of_an_input() -> None:
    """Those that are an input with some rows written: each of the same shape and type."""
    inputs = {tensor.name: tensor for tensor in ATTENTION.inputs}
    aliases = {tensor.name: tensor.alias for tensor in ATTENTION.outputs if tensor.alias is not None}
    assert aliases == {f"present_{name}": f"past_{name}" for name in ("key", "value", "position_ids")}
    for tensor in ATTENTION.outputs:
        if tensor.alias is not None:
            assert (tensor.shape, tensor.types) == (inputs[tensor.alias].shape, inputs[tensor.alias].types)


def refuse(case: Case, message: str, **changed: Array) -> None:
    with pytest.raises(ValueError, match=message):
        check_attention_inputs(case.attributes, make_inputs(case) | changed)


def test_rows_that_do_not_go_together() -> None:
    case = BY_NAME["decode"]
    refuse(case, r"sequence_offsets is \[0, 1, 1, 3, 4\], expected 0 to T = 4, ascending", **offsets(0, 1, 1, 3, 4))
    refuse(case, r"sequence_offsets is \[0, 1, 2, 3, 5\], expected 0 to T = 4", **offsets(0, 1, 2, 3, 5))
    refuse(case, r"sequence_ids\[2\] is 5, expected 0 to 4", sequence_ids=np.array([3, 0, 5, 1], np.int32))
    refuse(case, r"sequence_ids\[3\] is 3, which has rows before", sequence_ids=np.array([3, 0, 2, 3], np.int32))
    refuse(case, r"past_lengths\[1\] is 257, expected 0 to 256", past_lengths=np.array([0, 257, 0, 0, 0], np.int32))
    full = np.array([0, 0, 256, 0, 0], np.int32)
    refuse(case, r"sequence 2 has 256 rows and gets 1, expected at most C = 256", past_lengths=full)
    ragged = BY_NAME["ragged"]
    ids = make_inputs(ragged)["sequence_ids"]
    ids[5] = 0
    refuse(ragged, r"sequence_ids\[5\] is 0, expected 6 up to 20", sequence_ids=ids)


def offsets(*values: int) -> dict[str, Array]:
    return {"sequence_offsets": np.array(values, np.int32)}


def test_sizes_that_do_not_go_together() -> None:
    heads = Case("", 3, 2, 16, 4, (0,), ((0, 1),))
    refuse(heads, "N is 3, expected a multiple of K = 2")
    refuse(Case("", 2, 1, 16, 4, (0,), ((0, 1),), value_width=17), "value_width is 17, expected at most D = 16")
    more = Case("", 1, 1, 16, 4, (0,), ((0, 1),))
    refuse(more, "A is 2, expected at most B = 1", **offsets(0, 1, 2))
    with pytest.raises(ValueError, match="writes_position_ids is 1 and window is 0"):
        ATTENTION.check_attributes(Case("", 1, 1, 16, 4, (), (), writes_position_ids=True).attributes)
