# SPDX-License-Identifier: Apache-2.0
"""Guarded calls of each operator on the cases of the tests, judged as the tests judge them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from fastmmoe.exporter.ops import (
    ATTENTION,
    attention_reference,
    linear_reference,
    sparse_moe_reference,
    token_prune_reference,
)
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.runtime.types import Array
from gpu_acceptance_tools.kernels import Kernels, guarded_call
from tests.support.attention_cases import LARGE, SMALL, Case, make_inputs
from tests.support.attention_checks import check_outputs
from tests.support.attention_params import make_params, output_types
from tests.support.expert_cases import CASES, PACKINGS, make_case
from tests.support.linear_cases import IN_ROWS, KERNEL_CASES, kernel_case, packing_id
from tests.support.linear_params import TOLERANCES as LINEAR_TOLERANCES
from tests.support.linear_params import linear_params
from tests.support.moe_params import TOLERANCES, expected_experts, moe_params, moe_sizes, typed
from tests.support.operator_cases import MOE_CASES, PRUNE_CASES
from tests.support.prune_params import DTYPES as PRUNE_DTYPES
from tests.support.prune_params import INPUTS as PRUNE_INPUTS
from tests.support.prune_params import TOLERANCES as PRUNE_TOLERANCES
from tests.support.prune_params import prune_output_types, prune_params, prune_sizes, with_dtype

DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
POISONS = (0x7F, 0xFF)
OFFSETS = {"gate_up_scale": 2, "down_scale": 2, "gate_up_zero": 1, "down_zero": 1}
LINEAR_OFFSETS = {"scale": 2, "zero": 1}
LINEAR_PACKINGS = IN_ROWS[1:]


@dataclass(frozen=True)
class Subject:
    """A case of an operator in a type.

    Attributes:
        group: of which the results are summed up: operator, format, type.
        call: (kernels, poison, again) -> the outputs' bytes, after they were judged; AssertionError or KernelError
            where they are wrong. `again` is another way to get the same bits.
    """

    group: str
    name: str
    call: Callable[[Kernels, int, bool], list[bytes]]


def subjects(*, is_rehearsal: bool) -> Iterator[Subject]:
    """Every case; in a rehearsal one of each kind."""
    for dtype in DTYPES:
        cases = [*SMALL, *(LARGE if dtype == np.float16 else ())]
        for case in cases[:3] if is_rehearsal else cases:
            yield Subject(f"FmmAttention {dtype}", case.name, _attention(case, dtype))
        for name in list(MOE_CASES)[:: 40 if is_rehearsal else 1]:
            yield Subject(
                f"FmmSparseMoE {dtype}", name, _sparse_moe(functools.partial(MOE_CASES.__getitem__, name), dtype)
            )
        for packing in PACKINGS[::3] if is_rehearsal else PACKINGS:
            for name in list(CASES)[:: 8 if is_rehearsal else 1]:
                make = _sparse_moe(functools.partial(make_case, CASES[name], packing), dtype)
                yield Subject(f"FmmSparseMoE {packing} {dtype}", name, make)
        for packed in LINEAR_PACKINGS[::5] if is_rehearsal else LINEAR_PACKINGS:
            for name in list(KERNEL_CASES)[:: 5 if is_rehearsal else 1]:
                yield Subject(f"FmmLinear {packing_id(packed)} {dtype}", name, _linear(name, packed, dtype))
    for dtype in PRUNE_DTYPES:
        for name in list(PRUNE_CASES)[:: 20 if is_rehearsal else 1]:
            yield Subject(f"FmmTokenPrune {dtype}", name, _token_prune(name, dtype))


def smallest() -> list[Subject]:
    """Few small cases that together launch every kernel: what a sanitizer is run on."""
    few, tiles = ("1 token", "17 tokens, biases"), {"float", "int4-32-zeros", "int8-32", "fp8-32"}
    dtype, attention = DTYPES[0], {case.name: case for case in SMALL}
    names = ("prefill", "decode", "latent", "window, decode")
    found = [Subject("FmmAttention", name, _attention(attention[name], dtype)) for name in names]
    for packing in [p for p in PACKINGS if str(p) in tiles]:
        for name in few:
            make = _sparse_moe(functools.partial(make_case, CASES[name], packing), dtype)
            found.append(Subject(f"FmmSparseMoE {packing}", name, make))
    found += [
        Subject(f"FmmLinear {packing_id(packed)}", name, _linear(name, packed, dtype))
        for packed in LINEAR_PACKINGS[::5]
        for name in ("1 row", "9 rows", "tiles of 64 rows")
    ]
    pruned = ("window3-mlerp-alpha0.3", "packed-adjacent runs")
    return [*found, *(Subject("FmmTokenPrune", name, _token_prune(name, dtype)) for name in pruned)]


def _attention(case: Case, dtype: Any) -> Callable[[Kernels, int, bool], list[bytes]]:
    def call(kernels: Kernels, poison: int, again: bool) -> list[bytes]:
        inputs = make_inputs(case, dtype=dtype)
        outputs = output_types(case, inputs)
        aliases = {t.name: t.alias for t in ATTENTION.outputs if t.name in outputs and t.alias}
        found, _ = guarded_call(
            kernels,
            "attention",
            inputs,
            outputs,
            lambda addresses: make_params(case, inputs, addresses),
            poison=poison,
            aliases={} if again else aliases,
        )
        if not again:
            check_outputs(case, inputs, list(found.values()))
            expected = attention_reference(case.attributes, inputs)
            for (name, ours), theirs in zip(found.items(), expected, strict=True):
                if name.startswith("present"):
                    assert ours.tobytes() == theirs.tobytes(), f"{name}: rows that are not new have changed"
        return [array.tobytes() for array in found.values()]

    return call


def _close(ours: Array, theirs: Array, tolerance: float, name: str) -> None:
    theirs, ours = theirs.astype(np.float32), ours.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that are NaN throughout
        atol = tolerance * np.nanmax(np.abs(theirs), initial=0.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=name)


def _sparse_moe(make: Callable[[], tuple[dict[str, Array], dict[str, Any]]], dtype: Any) -> Any:
    def call(kernels: Kernels, poison: int, again: bool) -> list[bytes]:
        inputs, attributes = make()
        inputs = typed(inputs, dtype)
        sizes = moe_sizes(inputs)
        found, workspace = guarded_call(
            kernels,
            "sparse_moe",
            inputs,
            {"output": ((sizes["T"], sizes["H"]), dtype)},
            lambda addresses: moe_params(sizes, dtype, attributes, addresses),
            poison=poison,
            offsets=OFFSETS,
        )
        if not again:
            experts = workspace[: 4 * sizes["T"] * attributes["top_k"]].view(np.int32)
            expected = expected_experts(inputs, attributes)
            np.testing.assert_array_equal(experts.reshape(expected.shape), expected, err_msg="experts")
            with np.errstate(all="ignore"):
                exact = sparse_moe_reference(**inputs, **attributes)
            _close(found["output"], exact, TOLERANCES[np.dtype(dtype)], "output")
        return [found["output"].tobytes()]

    return call


def _linear(name: str, packing: LinearPacking, dtype: Any) -> Callable[[Kernels, int, bool], list[bytes]]:
    def call(kernels: Kernels, poison: int, again: bool) -> list[bytes]:
        inputs, attributes = kernel_case(name, packing, dtype)
        found, _ = guarded_call(
            kernels,
            "linear",
            inputs,
            {"y": ((len(inputs["x"]), attributes["out_features"]), dtype)},
            lambda addresses: linear_params(inputs, attributes, addresses),
            poison=poison,
            offsets=LINEAR_OFFSETS,
        )
        if not again:
            _close(found["y"], linear_reference(inputs, attributes), LINEAR_TOLERANCES[np.dtype(dtype)], "y")
        return [found["y"].tobytes()]

    return call


def _token_prune(name: str, dtype: Any) -> Callable[[Kernels, int, bool], list[bytes]]:
    def call(kernels: Kernels, poison: int, again: bool) -> list[bytes]:
        inputs, attributes = PRUNE_CASES[name]
        inputs = with_dtype(inputs, dtype)
        sizes = prune_sizes(inputs)
        found, _ = guarded_call(
            kernels,
            "token_prune",
            {key: inputs[key] for key in PRUNE_INPUTS},
            prune_output_types(sizes, dtype),
            lambda addresses: prune_params(sizes, dtype, attributes, addresses),
            poison=poison,
        )
        if not again:
            with np.errstate(all="ignore"):
                expected = token_prune_reference(**inputs, **attributes)
            for (key, ours), theirs in zip(found.items(), expected, strict=True):
                if ours.dtype == np.int32:
                    np.testing.assert_array_equal(ours, theirs, err_msg=key)
                else:
                    _close(ours, theirs, PRUNE_TOLERANCES[np.dtype(dtype)], key)
        return [array.tobytes() for array in found.values()]

    return call
