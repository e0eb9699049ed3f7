# SPDX-License-Identifier: Apache-2.0
"""CPU operators with weights in every format under AddressSanitizer, UBSan and ThreadSanitizer, and against NumPy.

Arrays end at pages that may not be touched; new memory is full of NaN. Compiling takes most of the time, so the usual
tests have the baseline's kernels alone; the slow ones have those of every instruction set, AMX's by software where the
processor lacks it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.ops import (
    LINEAR,
    ROTARY,
    SPARSE_MOE,
    VISION_ATTENTION,
    linear_reference,
    rotary_reference,
    sparse_moe_reference,
    vision_attention_reference,
)
from fastmmoe.runtime.types import Array
from tests.support.linear_cases import IN_ROWS, PACKINGS, linear_case
from tests.support.moe_layouts import KINDS, LAYOUTS, stored_case
from tests.support.operators_host import Call, OperatorsHost
from tests.support.rotary_cases import CASES as ROTARY_CASES
from tests.support.software_tiles import TILES, missing_flags, software_tiles
from tests.support.vision_attention_cases import VisionCase

# One worker builds the programs.
pytestmark = pytest.mark.xdist_group("sanitizers")

SANITIZERS = {"memory": "address,undefined", "threads": "thread"}
NAN_IN_NEW_MEMORY = {"ASAN_OPTIONS": "max_malloc_fill_size=1000000000:malloc_fill_byte=255:detect_leaks=1"}
EXACT = 1e-5
"""Of the output's greatest value, where arithmetic is in float."""
ROUNDED = 0.03
"""Likewise where rows are rounded to bfloat16, or to 127 steps either way of 0."""
FEW: dict[str, Any] = {
    "sizes": [(136, 24)],
    "tokens": (0, 1, 5),
    "linear": ("odd", "no rows"),
    "tiles": [(2, 3, 2, 5), (1, 70, 1, 24)],
}
MANY: dict[str, Any] = {
    "sizes": [(40, 24), (8, 8), (264, 136)],
    "tokens": (0, 1, 2, 150),
    "linear": ("odd", "whole", "one", "decode", "many rows", "no rows"),
    "tiles": [(1, 300, 2, 72), (2, 130, 3, 64), (2, 1, 1, 8), (3, 129, 1, 33), (1, 65, 1, 128)],
}
Calls = list[tuple[Call, Array]]
"""Calls, and what the reference says."""


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OperatorsHost]:
    """Function (sanitizer, whether all instruction sets are compiled) -> program."""

    def make(sanitizer: str, *, has_all: bool) -> OperatorsHost:
        kernels = ["-DFASTMMOE_BASELINE_ALONE=ON"]
        if has_all:
            kernels = software_tiles() if missing_flags(TILES) else []
        settings = [f"-DFASTMMOE_SANITIZE={SANITIZERS[sanitizer]}", *kernels]
        return OperatorsHost(tmp_path_factory.mktemp(sanitizer), settings)

    return make


def expert_calls(sizes: list[tuple[int, int]], tokens: tuple[int, ...]) -> Calls:
    """FmmSparseMoE with weights in every format and order, and sizes that fill no word but with int4."""
    calls = []
    for kind, layout, (H, I), T in itertools.product(KINDS, LAYOUTS, sizes, tokens):  # noqa: E741
        if not kind.has(layout):
            continue
        odd = 0 if kind.weight_format == "int4" or T % 5 == 0 else 3
        settings = {"activation": "swiglu_oai", "swiglu_limit": 1.5} if T == 1 else {}
        inputs, attributes = stored_case(
            kind, layout, H=H - odd, I=I - odd, T=T, E=8, expert_bias=T % 2, attributes=settings
        )
        expected = sparse_moe_reference(**inputs, **attributes)
        calls += [(Call(SPARSE_MOE, inputs, attributes, is_exact), expected) for is_exact in (True, False)]
    return calls


def linear_calls(sizes: tuple[str, ...]) -> Calls:
    calls = []
    for packing, size in [*itertools.product([None, *PACKINGS], sizes), *itertools.product(IN_ROWS, ["words"])]:
        inputs, attributes = linear_case(packing, size, activation="gelu", has_residual=size == "odd")
        expected = linear_reference(inputs, attributes)
        calls += [(Call(LINEAR, inputs, attributes, is_exact), expected) for is_exact in (True, False)]
    return calls


def vision_calls(tiles: list[tuple[int, int, int, int]]) -> Calls:
    calls = []
    for sizes, compute in itertools.product(tiles, ("float32", "bfloat16")):
        case = VisionCase(*sizes, 0.2)
        expected = vision_attention_reference(case.attributes("float32"), case.inputs, np.float64)[0]
        is_exact = compute == "float32"
        calls.append((Call(VISION_ATTENTION, case.inputs, case.attributes(compute), is_exact), expected))
    return calls


def rotary_calls() -> Calls:
    return [
        (Call(ROTARY, case.inputs, case.attributes, True), rotary_reference(case.attributes, case.inputs, np.float64))
        for case in ROTARY_CASES.values()
    ]


def hostile_calls() -> list[Call]:
    """Rows with NaN and infinities; scales and zeros that the contract does not allow: results may be any numbers."""
    random = np.random.default_rng(0)
    calls = []
    for kind, layout in itertools.product([kind for kind in KINDS if kind.group_size], LAYOUTS):
        if kind.has(layout):
            calls.append(Call(SPARSE_MOE, *stored_case(kind, layout, T=9, E=8)))
    calls += [Call(LINEAR, *linear_case(packing, "words")) for packing in (*PACKINGS[1:], *IN_ROWS[1:])]
    for call in calls:
        for name, values in call.inputs.items():
            if name in ("hidden_states", "x"):
                rows = values[1::2, ::7]
                rows[...] = random.choice([np.nan, np.inf, -np.inf, 3e38], rows.shape)
            elif name.endswith("scale"):
                values[...] = random.choice([np.nan, np.inf, -np.inf, 0, -1, 65504], values.shape)
            elif name.endswith("zero"):
                values[...] = random.integers(-128, 128, values.shape)
    return calls


def run(host: OperatorsHost, calls: Calls, isa: str) -> None:
    outputs = host([call for call, _ in calls], isa, **NAN_IN_NEW_MEMORY)
    for (call, expected), output in zip(calls, outputs, strict=True):
        tolerance = (EXACT if call.is_exact else ROUNDED) * np.abs(expected).max(initial=1e-2)
        difference = np.abs(output - expected).max(initial=0)
        assert difference <= tolerance, (isa, call.spec.name, call.attributes, call.shape)
    host(hostile_calls(), isa, **NAN_IN_NEW_MEMORY)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_few_calls(build: Callable[..., OperatorsHost], sanitizer: str) -> None:
    calls = expert_calls(FEW["sizes"], FEW["tokens"]) + linear_calls(FEW["linear"]) + vision_calls(FEW["tiles"])
    calls += rotary_calls()
    run(build(sanitizer, has_all=False), calls, "baseline")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_many_calls(build: Callable[..., OperatorsHost], sanitizer: str) -> None:
    host = build(sanitizer, has_all=True)
    calls = expert_calls(MANY["sizes"], MANY["tokens"]) + linear_calls(MANY["linear"]) + vision_calls(MANY["tiles"])
    calls += rotary_calls()
    assert "baseline" in host.isas()
    for isa in host.isas():
        run(host, calls, isa)
