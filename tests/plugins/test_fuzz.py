# SPDX-License-Identifier: Apache-2.0
"""Drawn nodes and inputs, a share of them damaged: native operators and NumPy references agree or both refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from fastmmoe.exporter.ops import sparse_moe_reference, token_prune_reference
from fastmmoe.exporter.ops.sparse_moe.contract import SPARSE_MOE
from fastmmoe.exporter.ops.token_prune.contract import TOKEN_PRUNE, merge_capacity
from fastmmoe.exporter.ops.token_prune.reference import choose_reference
from fastmmoe.runtime.types import Array
from tests.support.native_node import run_native
from tests.support.operators import moe_attributes, moe_inputs, prune_inputs

Random = np.random.Generator
Case = tuple[dict[str, Array], dict[str, Any]]

REFUSALS = (ort.InvalidArgument, ort.RuntimeException, ort.Fail, ort.InvalidGraph, ort.NotImplemented)
TOLERANCE = 1e-5  # of the output's greatest value
DTYPES: tuple[Any, ...] = (np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int32, np.int64, np.float64)


def draw_moe(random: Random) -> Case:
    """Scores of a token are well apart, so that rounding chooses nothing."""
    n_group = int(random.integers(1, 5))
    E, T = n_group * int(random.integers(1, 6)), int(random.integers(0, 40))
    top_k, expert_bias = int(random.integers(1, min(E, 16) + 1)), int(random.integers(2))
    inputs = moe_inputs(
        T,
        E,
        int(random.integers(1, 70)),
        int(random.integers(1, 70)),
        visual=np.flatnonzero(random.random(T) < random.random()),
        visual_top_k=int(random.integers(1, top_k + 1)),
        weight_dtype=DTYPES[random.integers(3)],
        expert_bias=bool(expert_bias),
        seed=int(random.integers(1 << 30)),
    )
    inputs["router_logits"] = 0.3 * random.permuted(np.tile(np.arange(E, dtype=np.float32), (T, 1)), axis=1)
    inputs["correction_bias"][:] = 0
    drawn = {a.name: a.choices[random.integers(len(a.choices))] for a in SPARSE_MOE.attributes if a.kind == "string"}
    drawn |= {"weight_format": "float", "norm_topk_prob": int(random.integers(2))}
    groups = {"n_group": n_group, "topk_group": int(random.integers(1, n_group + 1))}
    attributes = moe_attributes(**drawn, **groups, top_k=top_k, expert_bias=expert_bias, swiglu_limit=1.5)
    return inputs, attributes


def draw_prune(random: Random) -> Case:
    T, window = int(random.integers(0, 60)), int(random.integers(1, 9))
    visual = np.flatnonzero(random.random(T) < random.random())
    K = int(random.integers(0, len(visual) + 1))
    M = int(random.integers(0, min(K, merge_capacity(len(visual), K, window)) + 1))
    inputs = prune_inputs(
        T,
        K,
        M,
        visual=visual,
        alpha=float(random.choice([0, 0.25, 1])),
        H=int(random.integers(1, 40)),
        E=int(random.integers(1, 20)),
        seed=int(random.integers(1 << 30)),
    )
    return inputs, {"window": window, "merge": str(random.choice(["mlerp", "mean"]))}


def damage(random: Random, inputs: dict[str, Array], attributes: dict[str, Any]) -> None:
    """Change an input's shape, type or values, leave it out, or change an attribute."""
    name = str(random.choice(list(inputs)))
    array, kind = inputs[name], random.integers(5)
    if kind == 0 and array.ndim:
        axis = int(random.integers(array.ndim))
        size = int(random.choice([0, 1, max(0, array.shape[axis] - 1), array.shape[axis] + 1]))
        inputs[name] = np.resize(array, (*array.shape[:axis], size, *array.shape[axis + 1 :]))
    elif kind == 1:
        inputs[name] = array.astype(DTYPES[random.integers(len(DTYPES))])
    elif kind == 2 and array.size and array.dtype == np.int32:
        place = int(random.integers(array.size))
        inputs[name] = array.copy()
        inputs[name].flat[place] = random.choice([-(2**31), -1, 0, array.flat[place] + 1, 2**31 - 1])
    elif kind == 3:
        inputs[name] = array[None] if random.integers(2) else array.reshape(-1)
    else:
        attribute = str(random.choice([key for key, value in attributes.items() if isinstance(value, int)]))
        attributes[attribute] = int(random.choice([-1, 0, 1, 2, 17, 65, 2**40]))


def is_close_call(inputs: dict[str, Array], attributes: dict[str, Any]) -> bool:
    """Whether scores of windows are so near to each other that either may come first."""
    if len(inputs["visual_index"]) in (0, len(inputs["keep_slots"])):
        return False
    states = (inputs["routing_probs"], inputs["attention"], inputs["visual_index"])
    counts = len(inputs["keep_slots"]), len(inputs["merge_slots"])
    scores = choose_reference(*states, *counts, float(inputs["alpha"][0]), attributes["window"])[2]
    gaps = np.diff(np.sort(scores))
    return bool(((gaps != 0) & (gaps < 1e-5)).any())


def outcome(run: Callable[[], list[Array]], refusals: Any) -> list[Array] | str:
    """Outputs, or the first line of the refusal."""
    try:
        with np.errstate(all="ignore"):
            return run()
    except refusals as error:
        return str(error).splitlines()[0]


def check(op: str, reference: Callable[..., Any], case: Case) -> bool:
    """Compare; whether both refused."""
    inputs, attributes = case
    native = outcome(lambda: run_native(op, inputs, attributes), REFUSALS)

    def run_reference() -> list[Array]:
        outputs = reference(**inputs, **attributes)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]

    expected = outcome(run_reference, ValueError)
    told = f"{[(n, a.dtype, a.shape) for n, a in inputs.items()]} {attributes}: {native}, {expected}"
    if isinstance(native, str) or isinstance(expected, str):
        # The CPU operators take float32 only, of the floating-point types of F, and no integer weights.
        only_cuda = inputs["hidden_states"].dtype != np.float32 or attributes.get("weight_format", "float") != "float"
        assert isinstance(native, str), told
        assert isinstance(expected, str) or only_cuda, told
        return True
    for output, value in zip(native, expected, strict=True):
        atol = TOLERANCE * np.abs(value).max(initial=0.0)
        assert output.shape == value.shape, told
        if not (op == TOKEN_PRUNE.name and is_close_call(*case)):
            np.testing.assert_allclose(output, value, rtol=0, atol=atol, err_msg=told)
    return False


@pytest.mark.parametrize("count", [200, pytest.param(8000, marks=pytest.mark.slow)])
def test_drawn_nodes(count: int) -> None:
    random = np.random.default_rng(count)
    refused = 0
    for i in range(count):
        is_moe = i % 2 == 0
        case = draw_moe(random) if is_moe else draw_prune(random)
        for _ in range(int(random.integers(3))):
            damage(random, *case)
        op, reference = (SPARSE_MOE.name, sparse_moe_reference) if is_moe else (TOKEN_PRUNE.name, token_prune_reference)
        refused += check(op, reference, case)
    assert 0.2 * count < refused < 0.8 * count
