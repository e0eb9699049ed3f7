# SPDX-License-Identifier: Apache-2.0
"""Native FmmAttention in ONNX Runtime against the NumPy reference in float64."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from fastmmoe.exporter.ops import ATTENTION
from fastmmoe.exporter.ops.attention.contract import check_attention_inputs
from fastmmoe.runtime.types import Array
from tests.support.attention_cases import LARGE, OTHER_WIDTHS, SMALL, Case, alone, make_inputs
from tests.support.attention_checks import check_outputs
from tests.support.instruction_sets import run_tests
from tests.support.native_node import NativeNode

OP = ATTENTION.name
CASES = {case.name: case for case in (*SMALL, *OTHER_WIDTHS, *LARGE)}
CACHES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16")


def inputs_of(case: Case, cache: str, seed: int = 0) -> dict[str, Array]:
    return make_inputs(case, seed, np.float32, CACHES[cache])


def run(case: Case, inputs: dict[str, Array], threads: int = 1) -> list[Array]:
    outputs: list[Array] = NativeNode(OP, inputs, case.attributes, threads)(inputs)
    return outputs


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", CASES)
def test_case(name: str, cache: str) -> None:
    inputs = inputs_of(CASES[name], cache)
    check_outputs(CASES[name], inputs, run(CASES[name], inputs))


def random_case(seed: int) -> Case:
    """Up to 8 sequences of which some are in the call, with lengths at both ends and anything else at random."""
    random = np.random.default_rng(seed)
    B, C = int(random.integers(1, 9)), int(random.choice([1, 2, 31, 64, 65, 300, 520]))
    lengths = [int(random.choice([0, 1, C - 1, C, int(random.integers(0, C + 1))])) for _ in range(B)]
    order = [int(b) for b in random.permutation(B) if lengths[b] < C][: int(random.integers(1, B + 1))]
    if not order:
        lengths[0], order = C - 1, [0]
    free = {b: C - lengths[b] for b in order}
    call = tuple((b, int(random.choice([1, n, int(random.integers(1, n + 1))]))) for b, n in free.items())
    window = int(random.choice([0, 0, 1, 5, 100, 2**31 - 1]))
    return Case(
        name=f"random {seed}",
        heads=(group := int(random.integers(1, 17))) * (key_heads := int(random.integers(1, 4))),
        key_heads=key_heads,
        width=int(random.choice([64, 128, 192, 33, 16])),
        capacity=C,
        lengths=tuple(lengths),
        call=call,
        value_width=int(random.choice([0, 0, 16])),
        own_value_width=int(random.choice([0, 8 * group])),
        window=window,
        has_sinks=bool(random.integers(2)),
        writes_position_ids=bool(window and random.integers(2)),
        has_lse=bool(random.integers(2)),
        pruned=float(random.choice([0, 0.6])),
    )


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("seed", range(40))
def test_random_case(seed: int, cache: str) -> None:
    case = random_case(seed)
    inputs = inputs_of(case, cache, seed)
    check_outputs(case, inputs, run(case, inputs, threads=2))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS[:-1])
def test_other_instruction_sets(isa: str) -> None:
    """The same tests with the kernels of lesser processors, those of the experts among them."""
    tests = [f"test_native_attention.py::test_random_case[{seed}-{cache}]" for seed in range(8) for cache in CACHES]
    tests += [f"test_native_attention.py::test_case[{case.name}-{cache}]" for case in SMALL for cache in CACHES]
    tests += ["test_native_sparse_moe.py::test_experts"]
    run_tests(isa, *(str(Path(__file__).with_name(name)) for name in tests))


@pytest.mark.parametrize("name", ["sse", ""])
def test_an_unknown_instruction_set_is_refused_and_an_empty_name_is_none(name: str) -> None:
    code = (
        "import sys; sys.path[:0] = ['.']\n"
        "from tests.plugins.test_native_attention import CASES, inputs_of\n"
        "from tests.support.native_node import NativeNode\n"
        "inputs = inputs_of(CASES['one row'], 'float32')\n"
        "NativeNode('FmmAttention', inputs, CASES['one row'].attributes)(inputs)\n"
    )
    environment = {**os.environ, "FASTMMOE_CPU_ISA": name}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (name == ""), done.stderr
    names = "baseline, avx2, avx512, avx512_vnni, avx512_bf16 or amx_bf16"
    assert (f"FASTMMOE_CPU_ISA is 'sse', expected {names}" in done.stderr) == (name == "sse")


SAME_BITS = ("ragged, groups, lse", "decode", "window, lse", "latent, decode", "prefill 600 after 1000")


def computed(case: Case, outputs: list[Array]) -> dict[str, Array]:
    names = [t.name for t in ATTENTION.outputs_for(case.attributes)]
    return {name: y for name, y in zip(names, outputs, strict=True) if not name.startswith("present")}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", SAME_BITS)
def test_threads_give_the_same_bits(name: str, cache: str) -> None:
    case = CASES[name]
    inputs = inputs_of(case, cache)
    one = computed(case, run(case, inputs))
    for threads in (2, 3):
        others = computed(case, run(case, inputs, threads))
        for output, y in one.items():
            np.testing.assert_array_equal(y, others[output])


def only(case: Case, inputs: dict[str, Array], a: int, capacity: int) -> tuple[Case, dict[str, Array]]:
    """The inputs of one sequence of the call, with caches of another capacity."""
    b = case.call[a][0]
    rows = slice(*inputs["sequence_offsets"][a : a + 2].tolist())
    kept: dict[str, Array] = {n: inputs[n][rows] for n in ("query", "key", "value", "position_ids") if n in inputs}
    for name in ("past_key", "past_value", "past_position_ids"):
        if name not in inputs:
            continue
        axis = inputs[name].ndim - 2 if inputs[name].ndim == 4 else 1
        shape = [1, *inputs[name].shape[1:]]
        shape[axis] = capacity
        kept[name] = np.full(shape, -1 if axis == 1 else np.nan, inputs[name].dtype)
        used = int(case.lengths[b])
        np.moveaxis(kept[name], axis, 0)[:used] = np.moveaxis(inputs[name][b : b + 1], axis, 0)[:used]
    count = rows.stop - rows.start
    kept |= {"past_lengths": inputs["past_lengths"][b : b + 1], "sequence_ids": np.zeros(count, np.int32)}
    kept["sequence_offsets"] = np.array([0, count], np.int32)
    kept |= {n: inputs[n] for n in ("sink_logits",) if n in inputs}
    return replace(alone(case, a), capacity=capacity), {n: kept[n] for n in inputs}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", SAME_BITS)
def test_a_sequence_does_not_depend_on_others_nor_on_the_capacity(name: str, cache: str) -> None:
    case = CASES[name]
    inputs = inputs_of(case, cache)
    together = computed(case, run(case, inputs))
    for a, (b, count) in enumerate(case.call):
        for capacity in (case.lengths[b] + count, case.capacity + 77):
            one, own = only(case, inputs, a, capacity)
            outputs = computed(one, run(one, own))
            for output, y in outputs.items():
                np.testing.assert_array_equal(y, together[output][slice(*inputs["sequence_offsets"][a : a + 2])])


@pytest.mark.parametrize("cache", CACHES)
def test_rows_do_not_depend_on_later_ones(cache: str) -> None:
    """A row that is computed with many others, and alone after them: equal within the dtype's tolerance."""
    case = CASES["prefill after a prefix"]
    inputs = inputs_of(case, cache)
    outputs = run(case, inputs)
    past, count = case.lengths[0], case.call[0][1]
    last = replace(case, lengths=(past + count - 1,), call=((0, 1),))
    present = dict(zip(("past_key", "past_value"), outputs[1:3], strict=True))
    own = {**inputs, **present, **{n: inputs[n][-1:] for n in ("query", "key", "value")}}
    own |= {"past_lengths": np.array([past + count - 1], np.int32), "sequence_ids": np.zeros(1, np.int32)}
    own["sequence_offsets"] = np.array([0, 1], np.int32)
    check_outputs(last, own, run(last, own))
    np.testing.assert_allclose(run(last, own)[0][0], outputs[0][-1], rtol=0, atol=1e-5 if cache == "float32" else 0.03)


def test_positions_need_not_ascend() -> None:
    case = CASES["window 128 over 1500"]
    inputs = inputs_of(case, "float32")
    random = np.random.default_rng(1)
    past = case.lengths[0]
    positions = random.permutation(past + case.call[0][1]).astype(np.int32)
    inputs["past_position_ids"][0, :past], inputs["position_ids"] = positions[:past], positions[past:]
    check_outputs(case, inputs, run(case, inputs))


def test_extreme_positions() -> None:
    case = CASES["window of 1"]
    inputs = inputs_of(case, "float32")
    least, greatest = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    inputs["position_ids"][:] = [least, greatest, least, 0, greatest]
    inputs["past_position_ids"][1, :9] = [least, greatest] * 4 + [0]
    check_outputs(case, inputs, run(case, inputs))


@pytest.mark.parametrize("scale", [0.0, -0.2, 3.0])
def test_any_scale(scale: float) -> None:
    class Scaled(Case):
        @property
        def attributes(self) -> dict[str, Any]:
            return {**super().attributes, "scale": scale}

    case = Scaled(**vars(CASES["window, lse"]))
    inputs = inputs_of(case, "float32")
    inputs["query"] *= 0.1
    check_outputs(case, inputs, run(case, inputs))


REFUSED: list[tuple[str, Any]] = [
    ("past_lengths", [0, 1, 63, 65, 40, 64, 17, 5]),
    ("past_lengths", [0, 1, 63, 64, 40, 64, -1, 5]),
    ("past_lengths", [0, 1, 63, 64, 40, 64, 45, 5]),
    ("sequence_ids", [6] * 20 + [0] * 3 + [8] + [1] * 63 + [7] * 7),
    ("sequence_ids", [6] * 19 + [-1] + [0] * 3 + [2] + [1] * 63 + [7] * 7),
    ("sequence_ids", [6] * 19 + [5] + [0] * 3 + [2] + [1] * 63 + [7] * 7),
    ("sequence_ids", [6] * 20 + [0] * 3 + [6] + [1] * 63 + [7] * 7),
]


@pytest.mark.parametrize(("name", "values"), REFUSED)
def test_refused_as_by_the_contract(name: str, values: list[int]) -> None:
    case = CASES["ragged"]
    inputs = inputs_of(case, "float32") | {name: np.array(values, np.int32)}
    with pytest.raises(ValueError) as error:
        check_attention_inputs(case.attributes, inputs)
    with pytest.raises(InvalidArgument, match=re.escape(str(error.value)) + "$"):
        run(case, inputs)


OFFSETS: list[tuple[list[int], str]] = [
    ([1, 20, 23, 24, 87, 94], "sequence_offsets[0] is 1, expected 0"),
    ([0, 20, 20, 24, 87, 94], "sequence_offsets[2] is 20 after 20, expected ascending"),
    ([0, 20, 23, 24, 87, 93], "sequence_offsets[5] is 93, expected T = 94"),
]


@pytest.mark.parametrize(("offsets", "message"), OFFSETS)
def test_refused_offsets(offsets: list[int], message: str) -> None:
    case = CASES["ragged"]
    inputs = inputs_of(case, "float32") | {"sequence_offsets": np.array(offsets, np.int32)}
    with pytest.raises(ValueError):
        check_attention_inputs(case.attributes, inputs)
    with pytest.raises(InvalidArgument, match=re.escape(f"{OP}: {message}") + "$"):
        run(case, inputs)


def test_refused_types_and_attributes() -> None:
    case = CASES["prefill"]
    half = make_inputs(case, 0, np.float32, np.float16)
    with pytest.raises(InvalidArgument, match="past_key is float16, which has no CPU kernel, expected float or bfl"):
        run(case, half)
    inputs = inputs_of(case, "float32")
    with pytest.raises(RuntimeException, match="writes_position_ids is 1 and window is 0: only layers with a window"):
        NativeNode(OP, inputs, {**case.attributes, "writes_position_ids": 1})
    rows = {n: np.zeros((70, 3, 64), np.float32) for n in ("key", "value")}
    caches = {n: np.zeros((1, 3, 80, 64), np.float32) for n in ("past_key", "past_value")}
    with pytest.raises(InvalidArgument, match=r"FmmAttention: N is 4, expected a multiple of K = 3$"):
        run(case, {**inputs, **rows, **caches})
