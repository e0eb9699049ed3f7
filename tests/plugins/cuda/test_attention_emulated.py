# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of FmmAttention: run by the emulator against the reference, case by case; built by nvcc."""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.exporter.ops import ATTENTION, attention_reference
from fastmmoe.runtime.types import Array
from tests.plugins.cuda.conftest import ARCHITECTURES, EmulatedOp, check_message
from tests.support.attention_cases import LARGE, OTHER_WIDTHS, SMALL, Case, alone, make_inputs
from tests.support.attention_checks import check_outputs
from tests.support.attention_params import Params, make_params, output_types
from tests.support.guarded_attention import CASES as GUARDED

REPOSITORY = Path(__file__).resolve().parents[3]
KERNELS = REPOSITORY / "plugins" / "attention" / "cuda"

DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
SEEDS = (0, 1, 20240607)
POISONS = (0x7F, 0xFF)  # large numbers, or negative ones and NaN
CASES = {case.name: case for case in SMALL}
# More than 64 lines, of which the last alone sees a third split of 1,024 keys.
LATENT_TURN = Case("latent turn", 16, 1, 576, 2100, (2044,), ((0, 5),), value_width=512, has_lse=True)
# Twice as long as the other large cases together; SMALL has a prefill after a prefix, too.
LONGEST = "prefill 600 after 1000"
SMALL_AND_TURN = (*SMALL, LATENT_TURN)


class AttentionKernels:
    """The kernels compiled against the emulator."""

    def __init__(self, op: EmulatedOp) -> None:
        self.op = op
        self.workspace = np.empty(0, np.uint8)
        op.library.workspace_bytes.restype = ctypes.c_char_p
        op.library.workspace_bytes.argtypes = [ctypes.POINTER(Params), ctypes.POINTER(ctypes.c_size_t)]
        op.function.argtypes = [ctypes.POINTER(Params), ctypes.c_void_p]

    def workspace_bytes(self, case: Case, inputs: dict[str, Array]) -> int:
        size = ctypes.c_size_t()
        check_message(self.op.library.workspace_bytes(make_params(case, inputs, {}), size))
        return size.value

    def __call__(
        self, case: Case, inputs: dict[str, Array], *, seed: int = 0, poison: int = POISONS[0], in_place: bool = True
    ) -> list[Array]:
        """The outputs in the contract's order; the workspace stays for who wants to see it."""
        outputs = output_types(case, inputs)
        aliases = {t.name: t.alias for t in ATTENTION.outputs if t.name in outputs and t.alias}
        found, self.workspace = self.op.run(
            inputs,
            outputs,
            self.workspace_bytes(case, inputs),
            lambda addresses, address: (make_params(case, inputs, addresses), address),
            seed=seed,
            poison=poison,
            offsets={},
            aliases=aliases if in_place else {},
        )
        return list(found.values())


@pytest.fixture(scope="session")
def kernels(emulated_op: Callable[[str], EmulatedOp]) -> AttentionKernels:
    """The kernels in a library of their own."""
    return AttentionKernels(emulated_op("attention"))


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> Any:
    """Type F, one after the other."""
    return request.param


def check(case: Case, inputs: dict[str, Array], outputs: list[Array]) -> None:
    """Compare with the reference; of the caches every bit, in use or not."""
    check_outputs(case, inputs, outputs)
    names = [tensor.name for tensor in ATTENTION.outputs_for(case.attributes)]
    expected = attention_reference(case.attributes, inputs)
    for name, ours, theirs in zip(names, outputs, expected, strict=True):
        if name.startswith("present"):
            assert ours.tobytes() == theirs.tobytes(), f"{name}: rows that are not new have changed"


def bits(outputs: list[Array]) -> list[bytes]:
    return [output.tobytes() for output in outputs]


@pytest.mark.parametrize("case", SMALL_AND_TURN, ids=[case.name for case in SMALL_AND_TURN])
def test_case(kernels: AttentionKernels, case: Case, dtype: Any) -> None:
    """Every schedule gives the same bits, whether the caches are in place, and whatever memory holds before."""
    inputs = make_inputs(case, dtype=dtype)
    first = kernels(case, inputs)
    check(case, inputs, first)
    assert bits(kernels(case, inputs, seed=SEEDS[1], poison=POISONS[1], in_place=False)) == bits(first)
    assert bits(kernels(case, inputs, seed=SEEDS[2], poison=POISONS[1])) == bits(first)


def random_case(seed: int) -> Case:
    """Up to 5 sequences of which some are in the call, with lengths at both ends and anything else at random."""
    random = np.random.default_rng(seed)
    B, C = int(random.integers(1, 6)), int(random.choice([1, 2, 63, 64, 65, 129, 300]))
    lengths = [int(random.choice([0, 1, C - 1, C, int(random.integers(0, C + 1))])) for _ in range(B)]
    order = [int(b) for b in random.permutation(B) if lengths[b] < C][: int(random.integers(1, B + 1))]
    if not order:
        lengths[0], order = C - 1, [0]
    call = tuple((b, min(C - lengths[b], int(random.choice([1, 1, 7, 40])))) for b in order)
    width, value_width, own_value_width = [
        *((64, 0, 0), (128, 0, 0), (128, 0, 64), (24, 0, 72), (576, 512, 0), (200, 136, 0), (56, 40, 0))
    ][int(random.integers(7))]
    window = int(random.choice([0, 0, 1, 5, 100]))
    key_heads = 1 if value_width else int(random.integers(1, 4))
    return Case(
        name=f"random {seed}",
        heads=key_heads * int(random.choice([1, 2, 3, 7, 16])),
        key_heads=key_heads,
        width=width,
        capacity=C,
        lengths=tuple(lengths),
        call=call,
        value_width=value_width,
        own_value_width=own_value_width,
        window=window,
        has_sinks=bool(random.integers(2)),
        writes_position_ids=bool(window and random.integers(2)),
        has_lse=bool(random.integers(2)),
        pruned=float(random.choice([0, 0.6])),
    )


@pytest.mark.parametrize("seed", range(16))
def test_random_case(kernels: AttentionKernels, seed: int) -> None:
    case = random_case(seed)
    inputs = make_inputs(case, seed, DTYPES[seed % 2])
    check(case, inputs, kernels(case, inputs, seed=seed, in_place=bool(seed % 3)))


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case.name == LONGEST else (), id=case.name) for case in LARGE],
)
def test_large_case(kernels: AttentionKernels, case: Case) -> None:
    inputs = make_inputs(case, dtype=np.float16)
    check(case, inputs, kernels(case, inputs, seed=SEEDS[1]))


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("arch", [80, 89])
def test_latent_heads_on_every_size_of_shared_memory(
    kernels: AttentionKernels, dtype: Any, arch: int, is_split: bool
) -> None:
    """Devices with more of it take more lines at a time; whole, and split."""
    case = LATENT_TURN
    if not is_split:
        case = dataclasses.replace(CASES["latent"], lengths=(7, 40), call=((0, 21), (1, 9)))
    case = dataclasses.replace(case, has_sinks=True, window=24, pruned=0.3)
    inputs = make_inputs(case, dtype=dtype)
    kernels.op.library.fastmmoe_emulator_set_architecture(ctypes.c_int64(arch))
    try:
        first = kernels(case, inputs)
        check(case, inputs, first)
        assert bits(kernels(case, inputs, seed=SEEDS[2], poison=POISONS[1])) == bits(first)
    finally:
        kernels.op.library.fastmmoe_emulator_set_architecture(ctypes.c_int64(-1))


@pytest.mark.parametrize("name", GUARDED)
def test_work_follows_the_rows_in_use(kernels: AttentionKernels, name: str) -> None:
    """The others lie on pages that may not be touched, those before a window too."""
    command = [sys.executable, "-m", "tests.support.guarded_attention", kernels.op.library._name, name, "float16"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-3000:]


@pytest.mark.parametrize("name", ["decode", "window, decode", "latent, decode"])
def test_sequences_do_not_depend_on_each_other(kernels: AttentionKernels, name: str, dtype: Any) -> None:
    """Nor on the capacity, as long as the splits are the same."""
    case = CASES[name]
    inputs = make_inputs(case, dtype=dtype)
    output, *_ = kernels(case, inputs)
    for a, (b, _) in enumerate(case.call):
        rows = slice(*inputs["sequence_offsets"][a : a + 2])
        own = {name: value[b : b + 1] for name, value in inputs.items() if name.startswith("past")}
        for key, value in own.items():
            if key != "past_lengths":
                axis = 1 if value.ndim == 2 else 2
                own[key] = np.concatenate([value, np.zeros_like(value)], axis)
        own |= {name: inputs[name][rows] for name in ("query", "key", "value", "position_ids") if name in inputs}
        own |= {"sequence_ids": np.zeros(rows.stop - rows.start, np.int32)}
        own |= {"sequence_offsets": np.array([0, rows.stop - rows.start], np.int32)}
        own |= {name: inputs[name] for name in ("sink_logits",) if name in inputs}
        lone = dataclasses.replace(alone(case, a), capacity=2 * case.capacity)
        theirs, *_ = kernels(lone, {t.name: own[t.name] for t in ATTENTION.inputs_for(case.attributes)})
        assert theirs.tobytes() == output[rows].tobytes()


def test_positions_need_not_ascend(kernels: AttentionKernels, dtype: Any) -> None:
    """Which tiles a window leaves out is decided by all rows, not by the first or the last."""
    case = Case("rows that step back", 8, 1, 64, 160, (128,), ((0, 16),), window=16)
    inputs = make_inputs(case, dtype=dtype)
    inputs["position_ids"] = np.repeat(np.array([300, 65, 400, 20], np.int32), 4)
    for seed in (*SEEDS, 2, 3, 4):
        check(case, inputs, kernels(case, inputs, seed=seed))


def test_a_row_of_minus_infinity_as_sink_changes_nothing(kernels: AttentionKernels, dtype: Any) -> None:
    case = dataclasses.replace(CASES["decode a long cache"], has_sinks=True)
    inputs = make_inputs(case, dtype=dtype)
    inputs["sink_logits"] = np.full_like(inputs["sink_logits"], -np.inf)
    without = {name: value for name, value in inputs.items() if name != "sink_logits"}
    expected = kernels(dataclasses.replace(case, has_sinks=False), without)
    assert bits(kernels(case, inputs)) == bits(expected)


HOSTILE = {
    "past_lengths": (-1, 2**31 - 1, -(2**31), 65),
    "sequence_ids": (-1, 2**31 - 1, 8),
    "sequence_offsets": (-1, 2**31 - 1, -(2**31)),
}


@pytest.mark.parametrize("name", ["ragged", "window", "window, decode", "latent, decode"])
@pytest.mark.parametrize("wrong", HOSTILE)
def test_nothing_outside_is_written_whatever_the_lengths_are(kernels: AttentionKernels, name: str, wrong: str) -> None:
    """EmulatedOp.run checks the guard zones and the inputs; reads are seen by the sanitizers."""
    case = CASES[name]
    for value in HOSTILE[wrong]:
        inputs = make_inputs(case, dtype=np.float16)
        inputs[wrong][...] = value
        kernels(case, inputs, in_place=False)
        inputs = make_inputs(case, dtype=np.float16)
        inputs[wrong][-1] = value
        kernels(case, inputs)


@pytest.mark.parametrize("case", OTHER_WIDTHS, ids=[case.name for case in OTHER_WIDTHS])
def test_other_widths_are_refused(kernels: AttentionKernels, case: Case) -> None:
    inputs = make_inputs(case, dtype=np.float16)
    D, W = case.width, case.own_value_width
    message = (
        f"FmmAttention: D is {D} and W is {W}, expected multiples of 8 up to 128, or with value_width up to 576 and "
        "512, on CUDA"
    )
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        kernels(case, inputs)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "message"),
    [
        (np.float32, np.float32, "query is float, expected float16 or bfloat16 on CUDA"),
        (np.float16, np.float32, "past_key is float, expected float16, the type of query, on CUDA"),
        (np.float16, ml_dtypes.bfloat16, "past_key is bfloat16, expected float16, the type of query, on CUDA"),
    ],
)
def test_other_types_are_refused(kernels: AttentionKernels, dtype: Any, cache_dtype: Any, message: str) -> None:
    case = CASES["prefill"]
    with pytest.raises(RuntimeError, match=f"^FmmAttention: {message}$"):
        kernels(case, make_inputs(case, dtype=dtype, cache_dtype=cache_dtype))


def test_workspace_is_enough_for_every_smaller_request(kernels: AttentionKernels) -> None:
    """An engine asks once, for the greatest sizes of its profile."""
    case = CASES["decode a long cache"]
    inputs = make_inputs(case, dtype=np.float16)
    params = make_params(case, inputs, {})
    size = ctypes.c_size_t()

    def bytes_for(A: int, T: int, C: int) -> int:
        params.A, params.T, params.C = A, T, C
        check_message(kernels.op.library.workspace_bytes(params, size))
        return size.value

    splits, per_head = 16, 4 * 128 + 8
    assert bytes_for(1, 1, 2048) == splits * 8 * per_head
    assert bytes_for(1, 1, 128) == 0
    assert bytes_for(1, 16, 2048) == bytes_for(1, 2048, 2048) == 16 * bytes_for(1, 1, 2048)  # 64 lines
    sizes = [bytes_for(A, T, C) for A in (1, 2, 8) for T in (8, 64) for C in (128, 129, 8192, 8193, 100000)]
    grown = np.array(sizes).reshape(3, 2, 5)
    assert all((np.diff(grown, axis=axis) >= 0).all() for axis in range(3))


def test_workspace_of_turns_with_latent_heads(kernels: AttentionKernels) -> None:
    """More rows than few, up to 512 lines, have at most 8 splits of 1,024 keys, and so do not need much more."""
    case = dataclasses.replace(CASES["latent"], heads=12)
    params = make_params(case, make_inputs(case, dtype=np.float16), {})
    size, per_row = ctypes.c_size_t(), 12 * (4 * 512 + 8)

    def rows_for(A: int, T: int, C: int) -> float:
        params.A, params.T, params.C = A, T, C
        check_message(kernels.op.library.workspace_bytes(params, size))
        return size.value / per_row

    assert rows_for(1, 5, 4096) == 64 * 5  # few
    assert rows_for(1, 42, 8192) == rows_for(1, 1000, 100000) == 8 * 42
    assert rows_for(1, 42, 2048) == 32 * 5
    assert rows_for(8, 1000, 8192) == 64 * 42
    grown = np.array([rows_for(A, T, C) for A in (1, 2, 9) for T in (5, 6, 42, 43) for C in (64, 1025, 8193, 100000)])
    assert all((np.diff(grown.reshape(3, 4, 4), axis=axis) >= 0).all() for axis in range(3))


def test_workspace_is_used_to_its_end(kernels: AttentionKernels, dtype: Any) -> None:
    case = CASES["decode two long caches"]  # the last row sees all of its cache
    kernels(case, make_inputs(case, dtype=dtype), poison=0xA5)
    assert (kernels.workspace[-8:].reshape(2, 4) != 0xA5).any(1).all()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("source", "kinds"),
    [("kernel.cu", 3), ("kernel_64.cu", 2), ("kernel_128.cu", 2), ("kernel_latent.cu", 3)],
)
def test_nvcc_compiles_it_without_spills(
    count_kernels: Callable[[Path, int], int], source: str, kinds: int, arch: int
) -> None:
    assert count_kernels(KERNELS / source, arch) == 2 * kinds  # for both types
