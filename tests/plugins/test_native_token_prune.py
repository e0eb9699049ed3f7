# SPDX-License-Identifier: Apache-2.0
"""Native FmmTokenPrune in ONNX Runtime against the golden cases and the NumPy reference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.ops import token_prune_reference
from fastmmoe.runtime.types import Array
from tests.support.native_node import NativeNode, run_native
from tests.support.operators import prune_inputs

OP = "FmmTokenPrune"
FLOAT_TOLERANCE = 1e-5  # of the output's greatest value
MLERP: dict[str, Any] = {"window": 3, "merge": "mlerp"}


def assert_close(output: Array, expected: Array) -> None:
    scale = np.nanmax(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(output, expected, rtol=0, atol=FLOAT_TOLERANCE * scale)


def check(inputs: dict[str, Array], attributes: dict[str, Any], threads: int = 1) -> list[Array]:
    """Compare with the reference and return the native outputs."""
    with np.errstate(all="ignore"):
        expected = token_prune_reference(**inputs, **attributes)
    outputs = run_native(OP, inputs, attributes, threads)
    assert [o.dtype for o in outputs] == [np.float32, np.float32, np.int32, np.int32]
    np.testing.assert_array_equal(outputs[2], expected[2])
    np.testing.assert_array_equal(outputs[3], expected[3])
    assert_close(outputs[0], expected[0])
    assert_close(outputs[1], expected[1])
    return outputs


def test_golden_case(golden_prune_case: Any) -> None:
    outputs = run_native(OP, golden_prune_case.inputs, golden_prune_case.attributes)
    golden_prune_case.check(outputs, FLOAT_TOLERANCE)


def test_case(prune_case: tuple[dict[str, Array], dict[str, Any]]) -> None:
    check(*prune_case)


def unpack(inputs: dict[str, Array]) -> list[dict[str, Array]]:
    """The sequences of a request, each alone; text between two goes to the first of them."""
    sequences, row = [], 0
    offsets = [inputs[f"{kind}_offsets"] for kind in ("visual", "keep", "merge")]
    for b in range(len(offsets[0]) - 1):
        visual, keep, merge = (slice(o[b], o[b + 1]) for o in offsets)
        behind = inputs["visual_index"][visual.stop :]
        rows = slice(row, behind[0] if len(behind) else len(inputs["residual"]))
        part = {"hidden_states": rows, "residual": rows, "routing_probs": visual, "attention": visual}
        part |= {"visual_index": visual, "keep_slots": keep, "merge_slots": merge, "alpha": slice(1)}
        sequence = {name: inputs[name][part[name]] if name in part else o for name, o in inputs.items()}
        sequence["visual_index"] = sequence["visual_index"] - np.int32(row)
        counts = zip(("visual", "keep", "merge"), (visual, keep, merge), strict=True)
        sequence |= {f"{kind}_offsets": np.array([0, s.stop - s.start], np.int32) for kind, s in counts}
        sequences.append(sequence)
        row = rows.stop
    return sequences


def test_sequences_of_a_request_are_pruned_as_if_alone(
    packed_prune_case: tuple[dict[str, Array], dict[str, Any]],
) -> None:
    inputs, attributes = packed_prune_case
    row = row_out = 0
    expected: list[list[Array]] = []
    for sequence in unpack(inputs):
        hidden, residual, kept_index, visual_index = run_native(OP, sequence, attributes)
        expected.append([hidden, residual, kept_index + np.int32(row), visual_index + np.int32(row_out)])
        row, row_out = row + len(sequence["residual"]), row_out + len(residual)
    assert len(expected) > 1
    assert row == len(inputs["residual"])
    for output, parts in zip(run_native(OP, inputs, attributes), zip(*expected, strict=True), strict=True):
        np.testing.assert_array_equal(output, np.concatenate(parts))


def test_threads_give_the_same_bits() -> None:
    inputs = prune_inputs(T=900, K=300, M=15, visual=np.r_[10:500, 520:890])
    one = check(inputs, MLERP, threads=1)
    two = check(inputs, MLERP, threads=2)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_single_rows_are_copied_bit_by_bit() -> None:
    inputs = prune_inputs(M=0)
    hidden_out, residual_out, kept_index, _ = check(inputs, MLERP)
    np.testing.assert_array_equal(hidden_out, inputs["hidden_states"][kept_index])
    np.testing.assert_array_equal(residual_out, inputs["residual"][kept_index])


@pytest.mark.parametrize("visual", [np.r_[3:33, 40:54], np.arange(0)], ids=["prefill", "decode"])
def test_keeping_all_is_the_identity(visual: Array) -> None:
    inputs = prune_inputs(K=len(visual), M=0, visual=visual)
    inputs["hidden_states"][5] = np.nan
    hidden_out, residual_out, kept_index, visual_out = run_native(OP, inputs, MLERP)
    np.testing.assert_array_equal(hidden_out, inputs["hidden_states"])
    np.testing.assert_array_equal(residual_out, inputs["residual"])
    np.testing.assert_array_equal(kept_index, np.arange(60))
    np.testing.assert_array_equal(visual_out, visual)


def test_sessions_and_threads_at_once() -> None:
    requests = [prune_inputs(K=K, M=1, seed=K) for K in (5, 20, 41)]
    nodes = [NativeNode(OP, requests[0], MLERP, threads) for threads in (1, 2)]
    jobs = [(node, request) for node in nodes for request in requests] * 5
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda job: job[0](job[1]), jobs))
    for (_, request), output in zip(jobs, outputs, strict=True):
        expected = token_prune_reference(**request, **MLERP)
        np.testing.assert_array_equal(output[2], expected[2])
        assert_close(output[0], expected[0])
