# SPDX-License-Identifier: Apache-2.0
"""Native FmmTokenPrune in ONNX Runtime against the golden cases and the NumPy reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastmmoe.exporter.ops import token_prune_reference
from fastmmoe.exporter.ops.token_prune import merge_capacity

Array = npt.NDArray[Any]
Maker = Callable[..., dict[str, Array]]
Runner = Callable[..., list[Array]]

OP = "FmmTokenPrune"
FLOAT_TOLERANCE = 1e-5  # of the output's greatest value
MLERP: dict[str, Any] = {"window": 3, "merge": "mlerp"}


def assert_close(output: Array, expected: Array) -> None:
    scale = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(output, expected, rtol=0, atol=FLOAT_TOLERANCE * scale)


def check(run_native: Runner, inputs: dict[str, Array], attributes: dict[str, Any], threads: int = 1) -> list[Array]:
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


@pytest.mark.parametrize("case", range(14))
def test_golden_case(run_native: Runner, golden: Path, case: int) -> None:
    with np.load(golden / "fastmmoe" / "prune_cases.npz") as arrays:
        index = json.loads(str(arrays["index"]))
        data = {name.removeprefix(f"{case}_"): arrays[name] for name in arrays.files if name.startswith(f"{case}_")}
    assert len(index) == 14
    settings = index[case]
    V, K, window = settings["visual"], settings["keep"], settings["window"]
    M = min(int(np.floor(K * settings["merge_ratio"] + 1e-9)), merge_capacity(V, K, window))
    visual_index = data["visual_index"].astype(np.int32)
    T = int(visual_index[-1]) + 3
    hidden_states, residual = np.random.default_rng(0).standard_normal((2, T, settings["hidden"])).astype(np.float32)
    hidden_states[visual_index], residual[visual_index] = data["hidden"], data["residual"]
    inputs = {
        "hidden_states": hidden_states,
        "residual": residual,
        "routing_probs": data["routing"].astype(np.float32),
        "attention": data["attention"].astype(np.float32),
        "visual_index": visual_index,
        "keep_slots": np.zeros(K, np.int8),
        "merge_slots": np.zeros(M, np.int8),
        "alpha": np.array([settings["alpha"]], np.float32),
    }
    hidden_out, residual_out, kept_index, visual_out = run_native(
        OP, inputs, {"window": window, "merge": settings["merge"]}
    )
    np.testing.assert_array_equal(np.searchsorted(visual_index, kept_index[visual_out]), data["source"])
    assert_close(hidden_out[visual_out], data["hidden_out"])
    assert_close(residual_out[visual_out], data["residual_out"])
    is_text = ~np.isin(kept_index, visual_index)
    np.testing.assert_array_equal(kept_index[is_text], np.setdiff1d(np.arange(T), visual_index))
    np.testing.assert_array_equal(hidden_out[is_text], hidden_states[kept_index[is_text]])
    np.testing.assert_array_equal(residual_out[is_text], residual[kept_index[is_text]])


@pytest.mark.parametrize("merge", ["mlerp", "mean"])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 64])
def test_windows(run_native: Runner, prune_inputs: Maker, window: int, merge: str) -> None:
    M = min(5, merge_capacity(44, 20, window))
    for alpha in (0.0, 0.3, 1.0):
        check(run_native, prune_inputs(M=M, alpha=alpha), {"window": window, "merge": merge})


def test_threads_give_the_same_bits(run_native: Runner, prune_inputs: Maker) -> None:
    inputs = prune_inputs(T=900, K=300, M=15, visual=np.r_[10:500, 520:890])
    one = check(run_native, inputs, MLERP, threads=1)
    two = check(run_native, inputs, MLERP, threads=2)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_single_rows_are_copied_bit_by_bit(run_native: Runner, prune_inputs: Maker) -> None:
    inputs = prune_inputs(M=0)
    hidden_out, residual_out, kept_index, _ = check(run_native, inputs, MLERP)
    np.testing.assert_array_equal(hidden_out, inputs["hidden_states"][kept_index])
    np.testing.assert_array_equal(residual_out, inputs["residual"][kept_index])


@pytest.mark.parametrize("visual", [np.r_[3:33, 40:54], np.arange(0)], ids=["prefill", "decode"])
def test_keeping_all_is_the_identity(run_native: Runner, prune_inputs: Maker, visual: Array) -> None:
    inputs = prune_inputs(K=len(visual), M=0, visual=visual)
    inputs["hidden_states"][5] = np.nan
    hidden_out, residual_out, kept_index, visual_out = run_native(OP, inputs, MLERP)
    np.testing.assert_array_equal(hidden_out, inputs["hidden_states"])
    np.testing.assert_array_equal(residual_out, inputs["residual"])
    np.testing.assert_array_equal(kept_index, np.arange(60))
    np.testing.assert_array_equal(visual_out, visual)


@pytest.mark.parametrize("T", [0, 1])
def test_no_visual_tokens_of_few(run_native: Runner, prune_inputs: Maker, T: int) -> None:
    check(run_native, prune_inputs(T=T, K=0, M=0, visual=np.arange(0)), MLERP)


@pytest.mark.parametrize("visual", [np.arange(12), np.arange(60)], ids=["some", "all"])
def test_keeping_none(run_native: Runner, prune_inputs: Maker, visual: Array) -> None:
    check(run_native, prune_inputs(K=0, M=0, visual=visual), MLERP)


def test_windows_of_one_token(run_native: Runner, prune_inputs: Maker) -> None:
    check(run_native, prune_inputs(visual=np.arange(0, 60, 2), K=10, M=4), MLERP)


def test_ties_take_the_smaller_index(run_native: Runner, prune_inputs: Maker) -> None:
    inputs = prune_inputs(M=4)
    inputs["routing_probs"][:] = 0.125
    inputs["attention"] = np.round(inputs["attention"] * 4) / 4
    inputs["alpha"][:] = 0.5
    check(run_native, inputs, MLERP)
    inputs["attention"][:] = 0.25
    check(run_native, inputs, MLERP)


def test_rows_that_are_not_finite(run_native: Runner, prune_inputs: Maker) -> None:
    inputs = prune_inputs(K=40, M=1)
    inputs["routing_probs"][5, 2] = np.nan
    inputs["routing_probs"][17] = np.inf
    inputs["attention"][[8, 9]] = np.nan, -np.inf
    inputs["attention"][20:30] *= -1
    check(run_native, inputs, MLERP)


def test_attention_beyond_the_range_of_float_sums(run_native: Runner, prune_inputs: Maker) -> None:
    inputs = prune_inputs()
    inputs["attention"][10:20] = 3e38
    check(run_native, inputs, MLERP)


def test_all_routing_rows_bad(run_native: Runner, prune_inputs: Maker) -> None:
    inputs = prune_inputs()
    inputs["routing_probs"][:] = np.nan
    check(run_native, inputs, MLERP)


def test_sessions_and_threads_at_once(native_node: Any, prune_inputs: Maker) -> None:
    requests = [prune_inputs(K=K, M=1, seed=K) for K in (5, 20, 41)]
    nodes = [native_node(OP, requests[0], MLERP, threads) for threads in (1, 2)]
    jobs = [(node, request) for node in nodes for request in requests] * 5
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda job: job[0](job[1]), jobs))
    for (_, request), output in zip(jobs, outputs, strict=True):
        expected = token_prune_reference(**request, **MLERP)
        np.testing.assert_array_equal(output[2], expected[2])
        assert_close(output[0], expected[0])
