# SPDX-License-Identifier: Apache-2.0
"""Function bodies: what they are made of and what they declare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import pytest

from fastmmoe.exporter.ops import ATTENTION, LINEAR, OPS, ROTARY, SPARSE_MOE, TOKEN_PRUNE, VISION_ATTENTION
from fastmmoe.exporter.ops.functions import OPSET, function_for
from tests.support.attention_cases import SMALL
from tests.support.linear_cases import PACKINGS
from tests.support.operators import MERGES, moe_attributes
from tests.support.rotary_cases import CASES


def variants() -> Iterator[ir.Function]:
    yield from (function_for(TOKEN_PRUNE, {"window": 3, "merge": merge}) for merge in MERGES)
    for method, bias in (("greedy", 0), ("noaux_tc", 1)):
        yield function_for(SPARSE_MOE, moe_attributes(topk_method=method, n_group=4, topk_group=2, expert_bias=bias))
    yield from (function_for(ATTENTION, case.attributes) for case in SMALL)
    yield function_for(VISION_ATTENTION, {"scale": 0.125, "compute": "float32"})
    yield from (function_for(ROTARY, case.attributes) for case in CASES.values())
    yield from (function_for(LINEAR, packing.attributes(5, has_bias=True)) for packing in PACKINGS)


def test_bodies_hold_standard_operators_and_distinct_names() -> None:
    for function in variants():
        assert function.opset_imports == {"": OPSET}
        nodes = list(ir.traversal.RecursiveGraphIterator(function))
        assert {node.domain for node in nodes} == {""}
        values = [value.name for node in nodes for value in node.outputs]
        assert len(set(values)) == len(values)
        names = [node.name for node in nodes]
        assert len(set(names)) == len(names)


def test_bodies_are_deterministic() -> None:
    for first, second in zip(variants(), variants(), strict=True):
        assert ir.to_proto(first).SerializeToString() == ir.to_proto(second).SerializeToString()


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_functions_declare_what_the_contract_declares(spec: Any) -> None:
    attributes = {
        SPARSE_MOE.name: moe_attributes(expert_bias=1),
        TOKEN_PRUNE.name: {"window": 3, "merge": "mean"},
        ATTENTION.name: SMALL[11].attributes,
        VISION_ATTENTION.name: {"scale": 0.125, "compute": "bfloat16"},
        LINEAR.name: PACKINGS[-1].attributes(5, has_bias=True),
        ROTARY.name: CASES["several items"].attributes,
    }[spec.name]
    function = function_for(spec, attributes)
    assert [value.name for value in function.inputs] == [tensor.name for tensor in spec.inputs_for(attributes)]
    assert [value.name for value in function.outputs] == [tensor.name for tensor in spec.outputs_for(attributes)]
    assert list(function.attributes) == [attribute.name for attribute in spec.attributes]


def test_attributes_outside_the_contract_are_refused() -> None:
    with pytest.raises(ValueError, match="merge is 'median', supported are"):
        function_for(TOKEN_PRUNE, {"window": 3, "merge": "median"})
