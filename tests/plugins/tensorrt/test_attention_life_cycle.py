# SPDX-License-Identifier: Apache-2.0
"""FmmAttention's plugin through its whole life: its caches have one address before and after, between guard zones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.ops import ATTENTION
from fastmmoe.runtime.types import Array
from tests.plugins.tensorrt.conftest import BUILD, Host, Refused, covering_profiles, parser_fields, profile_of
from tests.support.attention_cases import SMALL, Case, make_inputs
from tests.support.attention_checks import DTYPES, check_outputs

# One worker builds the host, not each.
pytestmark = pytest.mark.xdist_group("tensorrt_host")

CASES = {case.name: case for case in SMALL}
HALVES = ("float16", "bfloat16")


def count_outputs(case: Case) -> int:
    return len(ATTENTION.outputs_for(case.attributes))


def check(case: Case, inputs: dict[str, Array], outputs: list[Array]) -> None:
    """The outputs, and that every row of the caches that is none of this call's has the bits it had."""
    check_outputs(case, inputs, outputs)
    for tensor, y in zip(ATTENTION.outputs_for(case.attributes), outputs, strict=True):
        if tensor.alias is None:
            continue
        before = inputs[tensor.alias].copy()
        rows, cache = (np.moveaxis(a, 2, 1) if a.ndim == 4 else a for a in (y, before))
        for b, count in case.call:
            new = slice(case.lengths[b], case.lengths[b] + count)
            cache[b, new] = rows[b, new]
        assert rows.tobytes() == cache.tobytes(), tensor.name


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["ragged, groups, lse", "decode a long cache", "window", "latent", "small heads"])
def test_attention(life_cycle: Any, name: str, dtype: str) -> None:
    case = CASES[name]
    inputs = make_inputs(case, dtype=DTYPES[dtype])
    check(case, inputs, life_cycle("FmmAttention", inputs, case.attributes))


def test_every_attribute_survives_the_engine(life_cycle: Any) -> None:
    """A window, sinks, positions written and lse in one node."""
    case = Case("all", 8, 2, 64, 96, (40, 7), ((1, 30), (0, 5)), 0, 0, 9, True, True, True, 0.5)
    inputs = make_inputs(case, dtype=np.float16)
    outputs = life_cycle("FmmAttention", inputs, case.attributes)
    assert len(outputs) == len(ATTENTION.outputs)
    check(case, inputs, outputs)


def test_one_plugin_serves_prefill_and_decode(host: Host) -> None:
    """One context with the workspace of its profile; each schedule gives the same bits."""
    prefill = Case("prefill", 8, 2, 64, 256, (0, 200), ((0, 90),))
    decode = Case("decode", 8, 2, 64, 512, (300, 511, 4), ((2, 1), (0, 1), (1, 1)))
    requests = [make_inputs(case, dtype=np.float16) for case in (prefill, decode)]
    profiles = covering_profiles([list(inputs.values()) for inputs in requests])
    plugin = host.create("FmmAttention", parser_fields(prefill.attributes), BUILD)
    workspace_bytes = plugin.configure(profiles, plugin.infer(profiles, count_outputs(prefill)))
    context = plugin.attach()
    for case, inputs in zip((prefill, decode, prefill), (*requests, requests[0]), strict=True):
        arrays = list(inputs.values())
        outputs = context.infer([profile_of(array) for array in arrays], count_outputs(case))
        results = []
        for seed in (0, 7):
            host.set_seed(seed)
            results.append(context.run(arrays, outputs, workspace_bytes))
        # Rows that are not in use may be anything, and are what they were.
        assert [a.tobytes() for a in results[0]] == [a.tobytes() for a in results[1]]
        check(case, inputs, results[0])
    context.destroy()
    plugin.destroy()
    assert host.messages() == []


def test_a_workspace_that_is_too_small_is_found(host: Host) -> None:
    case = Case("full", 8, 2, 128, 2048, (2047,), ((0, 1),))
    arrays = list(make_inputs(case, dtype=np.float16).values())
    profiles = [profile_of(array) for array in arrays]
    plugin = host.create("FmmAttention", parser_fields(case.attributes), BUILD)
    outputs = plugin.infer(profiles, count_outputs(case))
    workspace_bytes = plugin.configure(profiles, outputs)
    assert workspace_bytes > 0
    with pytest.raises(Refused, match=f"written behind the {workspace_bytes - 4} bytes of the workspace"):
        plugin.run(arrays, outputs, workspace_bytes - 4)
    plugin.destroy()


@pytest.mark.parametrize("name", ["prefill", "window", "latent, decode", "window, lse"])
def test_present_caches_are_the_past_ones(host: Host, name: str) -> None:
    attributes = CASES[name].attributes
    plugin = host.create("FmmAttention", parser_fields(attributes), BUILD)
    inputs = [tensor.name for tensor in ATTENTION.inputs_for(attributes)]
    aliases = [inputs.index(t.alias) if t.alias else -1 for t in ATTENTION.outputs_for(attributes)]
    assert [plugin.aliased_input(i) for i in range(len(aliases))] == aliases
    assert max(aliases) > 0
    plugin.destroy()


@pytest.mark.parametrize(
    ("types", "position", "message"),
    [
        (("float32", "float32"), 0, "query is float, expected float16 or bfloat16 on CUDA"),
        (("float16", "bfloat16"), 2, "past_key is bfloat16, expected float16, the type of query, on CUDA"),
    ],
)
def test_refuses_types_without_a_kernel(host: Host, types: tuple[str, str], position: int, message: str) -> None:
    case = CASES["prefill"]
    inputs = make_inputs(case, dtype=DTYPES[types[0]], cache_dtype=DTYPES[types[1]])
    profiles = [profile_of(array) for array in inputs.values()]
    plugin = host.create("FmmAttention", parser_fields(case.attributes), BUILD)
    outputs = plugin.infer(profiles, count_outputs(case))
    assert outputs[1].dtype == DTYPES[types[1]]
    assert not plugin.supports(profiles, outputs, position)
    assert [line.partition(" ")[2] for line in host.messages()] == [f"FmmAttention: {message} (node node)"]
    plugin.destroy()


def test_refuses_widths_without_a_kernel(host: Host) -> None:
    case = Case("odd", 2, 1, 20, 16, (0,), ((0, 3),))
    profiles = [profile_of(array) for array in make_inputs(case, dtype=np.float16).values()]
    plugin = host.create("FmmAttention", parser_fields(case.attributes), BUILD)
    outputs = plugin.infer(profiles, count_outputs(case))
    with pytest.raises(Refused, match="FmmAttention: D is 20"):
        plugin.configure(profiles, outputs)
    plugin.destroy()


def test_refuses_positions_without_a_window(host: Host) -> None:
    attributes = CASES["prefill"].attributes | {"writes_position_ids": 1}
    with pytest.raises(Refused, match="writes_position_ids is 1 and window is 0"):
        host.create("FmmAttention", parser_fields(attributes), BUILD)
