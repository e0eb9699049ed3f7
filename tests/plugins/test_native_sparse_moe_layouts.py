# SPDX-License-Identifier: Apache-2.0
"""Native FmmSparseMoE with weights of every format and order, in ONNX Runtime against the NumPy reference."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.ops import sparse_moe_reference
from fastmmoe.exporter.ops.sparse_moe.reference import activate_reference, route_reference, stored_floats
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.types import Array
from tests.support.moe_layouts import KINDS, LAYOUTS, Kind, broken_words, stored_case
from tests.support.native_node import NativeNode, run_native
from tests.support.panels_host import rounded_rows

OP = "FmmSparseMoE"
EXACT = 1e-5
"""Of the output's greatest value, where arithmetic is in float."""
ROUNDED = 3e-3
"""Likewise where rows are rounded: a value in the middle of two steps may fall to either."""
STORED = [(kind, layout) for kind in KINDS for layout in LAYOUTS if kind.has(layout)]
TILED = [kind for kind, layout in STORED if layout == "tiles"]


def run(inputs: dict[str, Array], attributes: dict[str, Any], *, threads: int = 1, is_exact: bool = False) -> Array:
    (output,) = NativeNode(OP, inputs, attributes, threads, is_exact=is_exact)(inputs)
    assert output.dtype == np.float32
    return output


def check(output: Array, expected: Array, tolerance: float) -> None:
    assert output.shape == expected.shape
    scale = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(output, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(("kind", "layout"), STORED, ids=str)
def test_exact(kind: Kind, layout: str) -> None:
    for expert_bias, T in ((0, 17), (1, 150)):
        inputs, attributes = stored_case(kind, layout, T=T, E=8, expert_bias=expert_bias)
        check(run(inputs, attributes, is_exact=True), sparse_moe_reference(**inputs, **attributes), EXACT)


def rounded_reference(inputs: dict[str, Array], attributes: dict[str, Any], kind: Kind) -> Array:
    """The reference with rows rounded before both products."""
    H = inputs["hidden_states"].shape[1]
    parts = ([inputs.get(f"{name}{part}") for part in ("", "_scale", "_zero")] for name in ("gate_up", "down"))
    gate_up, down = (
        stored_floats(tuple(stored), H, attributes, is_gate_up)  # type: ignore[arg-type]
        for stored, is_gate_up in zip(parts, (True, False), strict=True)
    )
    is_visual = np.isin(np.arange(len(inputs["hidden_states"])), inputs["visual_index"])
    routing = inputs["router_logits"], is_visual, int(inputs["visual_top_k"][0]), inputs["correction_bias"]
    selected, weights = route_reference(*routing, attributes)
    x = rounded_rows(inputs["hidden_states"], kind.weight_format, kind.group_size)
    out = np.zeros_like(x)
    for e in range(len(gate_up)):
        token, slot = np.nonzero((selected == e) & (weights != 0))
        if not token.size:
            continue
        gate, up = np.split(x[token] @ gate_up[e].astype(np.float32).T, 2, axis=1)
        activated = activate_reference(gate, up, attributes).astype(np.float32)
        activated = rounded_rows(activated, kind.weight_format, kind.group_size)
        out[token] += weights[token, slot][:, None] * (activated @ down[e].astype(np.float32).T)
    return out


@functools.cache
def has_rounding(kind: Kind) -> bool:
    """Whether the kernel of this processor rounds rows: it does where two outputs differ."""
    inputs, attributes = stored_case(kind, "tiles", T=3)
    return run(inputs, attributes).tobytes() != run(inputs, attributes, is_exact=True).tobytes()


def check_rounding(inputs: dict[str, Array], attributes: dict[str, Any], kind: Kind) -> None:
    """Run as in a session without settings."""
    if has_rounding(kind):
        check(run(inputs, attributes), rounded_reference(inputs, attributes, kind), ROUNDED)
    else:
        check(run(inputs, attributes), sparse_moe_reference(**inputs, **attributes), EXACT)


@pytest.mark.parametrize("kind", TILED, ids=str)
@pytest.mark.parametrize("sizes", [(72, 40), (8, 8), (264, 136)], ids=str)
def test_tiles(kind: Kind, sizes: tuple[int, int]) -> None:
    for T, E in ((1, 16), (9, 16), (200, 8)):
        inputs, attributes = stored_case(kind, "tiles", T=T, E=E, H=sizes[0], I=sizes[1])
        check_rounding(inputs, attributes, kind)


@pytest.mark.parametrize("kind", [Kind("bfloat16"), Kind("int8", 64, 1)], ids=str)
def test_sizes_that_fill_no_word(kind: Kind) -> None:
    for H, I in ((33, 19), (1, 1), (130, 131)):  # noqa: E741
        inputs, attributes = stored_case(kind, "tiles", T=5, H=H, I=I)
        check(run(inputs, attributes, is_exact=True), sparse_moe_reference(**inputs, **attributes), EXACT)
        check_rounding(inputs, attributes, kind)


@pytest.mark.parametrize("activation", ["swiglu", "swiglu_oai"])
@pytest.mark.parametrize("kind", [Kind("bfloat16"), Kind("int4", 32, 1)], ids=str)
def test_activations_and_biases(kind: Kind, activation: str) -> None:
    settings = {"activation": activation, "swiglu_limit": 1.5}
    inputs, attributes = stored_case(kind, "tiles", T=40, expert_bias=1, attributes=settings)
    expected = sparse_moe_reference(**inputs, **attributes)
    check(run(inputs, attributes, is_exact=True), expected, EXACT)
    check(run(inputs, attributes), expected, 0.03)


@pytest.mark.parametrize(("kind", "layout"), STORED, ids=str)
def test_no_tokens(kind: Kind, layout: str) -> None:
    inputs, attributes = stored_case(kind, layout, T=0)
    assert run(inputs, attributes).shape == (0, 72)


@pytest.mark.parametrize("kind", TILED, ids=str)
def test_threads_give_the_same_bits(kind: Kind) -> None:
    for T in (1, 300):
        inputs, attributes = stored_case(kind, "tiles", T=T, E=32, H=136, I=72)
        one = run(inputs, attributes, threads=1)
        for threads in (2, 4):
            np.testing.assert_array_equal(run(inputs, attributes, threads=threads), one)


@pytest.mark.parametrize("kind", TILED, ids=str)
def test_a_row_does_not_depend_on_the_others(kind: Kind) -> None:
    inputs, attributes = stored_case(kind, "tiles", T=19, E=8, visual=np.arange(0))
    together = run(inputs, attributes, threads=2)
    node = NativeNode(OP, inputs, attributes)
    for t in range(19):
        row = {name: inputs[name][t : t + 1] for name in ("hidden_states", "router_logits")}
        np.testing.assert_array_equal(node({**inputs, **row})[0][0], together[t])


@pytest.mark.parametrize("kind", [Kind("bfloat16"), Kind("int8", 32), Kind("int4", 128, 1)], ids=str)
def test_what_is_not_finite_stays_in_its_token(kind: Kind) -> None:
    inputs, attributes = stored_case(kind, "tiles", T=30, E=8)
    clean = run(inputs, attributes)
    states = inputs["hidden_states"].copy()
    states[7, 3] = np.nan
    output = run({**inputs, "hidden_states": states}, attributes)
    assert np.isnan(output[7]).all()
    np.testing.assert_array_equal(np.delete(output, 7, 0), np.delete(clean, 7, 0))


@pytest.mark.parametrize("letter", ["H", "I"])
def test_rows_of_int4_are_whole_words(letter: str) -> None:
    inputs, attributes = broken_words(letter)
    with pytest.raises(Exception, match=f"{OP}: {letter} is 36, expected a multiple of 8 with weight_format int4"):
        run_native(OP, inputs, attributes)


def test_exactness_is_an_entry_of_the_session() -> None:
    inputs, attributes = stored_case(Kind("int8", 32), "tiles")
    with pytest.raises(BundleMismatch, match=r"refuses to be loaded: fastmmoe.exact is 'yes', expected 0 or 1$"):
        NativeNode(OP, inputs, attributes, is_exact="yes")
