# SPDX-License-Identifier: Apache-2.0
"""FmmLinear's plugin through its whole life, its kernels run by the emulator, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.exporter.ops import LINEAR, linear_reference
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.runtime.types import Array
from tests.plugins.tensorrt.conftest import Host, Refused, covering_profiles, parser_fields, profile_of
from tests.support.linear_cases import IN_ROWS, PACKINGS, linear_case, packing_id
from tests.support.linear_params import TOLERANCES

# One worker builds the host, not each.
pytestmark = pytest.mark.xdist_group("tensorrt_host")

ERROR = 1  # nvinfer1::ILogger::Severity
INT8, INT4 = IN_ROWS[1], IN_ROWS[-1]


def check(output: Array, inputs: dict[str, Array], attributes: dict[str, Any]) -> None:
    expected = linear_reference(inputs, attributes)
    assert (output.dtype, output.shape) == (expected.dtype, expected.shape)
    wide = expected.astype(np.float32)
    atol = TOLERANCES[output.dtype] * np.abs(wide).max(initial=0.0)
    np.testing.assert_allclose(output.astype(np.float32), wide, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("packing", IN_ROWS[1:], ids=packing_id)
@pytest.mark.parametrize("T", [0, 1, 20])
def test_linear(life_cycle: Any, packing: LinearPacking, dtype: Any, T: int) -> None:
    """With a bias and a residual, or without; GELU, or nothing."""
    is_last = packing.group_size == 128
    after = {"has_bias": not is_last, "has_residual": is_last, "activation": "none" if T == 1 else "gelu"}
    inputs, attributes = linear_case(packing, (T, 50, 160), dtype=dtype, **after)  # type: ignore[arg-type]
    (output,) = life_cycle("FmmLinear", inputs, attributes)
    check(output, inputs, attributes)


def test_one_plugin_serves_many_rows(host: Host) -> None:
    """One context without a workspace; each schedule gives the same bits."""
    requests = [linear_case(INT4, (T, 130, 64), dtype=np.float16) for T in (40, 1, 0, 9)]
    plugin = host.create(LINEAR.name, parser_fields(requests[0][1]))
    profiles = covering_profiles([list(inputs.values()) for inputs, _ in requests])
    assert plugin.configure(profiles, plugin.infer(profiles)) == 0
    context = plugin.attach()
    for inputs, attributes in requests:
        arrays = list(inputs.values())
        outputs = context.infer([profile_of(array) for array in arrays])
        host.set_seed(0)
        (first,) = context.run(arrays, outputs, 0)
        host.set_seed(7)
        (again,) = context.run(arrays, outputs, 0)
        assert first.tobytes() == again.tobytes()
        check(first, inputs, attributes)
    context.destroy()
    plugin.destroy()
    assert host.messages() == []


@pytest.mark.parametrize(
    ("packing", "message"),
    [
        (PACKINGS[1], "attribute weight_layout is tiles, expected logical on CUDA: tiles are for the CPU"),
        (IN_ROWS[0], "attribute weight_format is float, expected int8 or int4 on CUDA"),
    ],
)
def test_weights_without_a_kernel(host: Host, packing: LinearPacking, message: str) -> None:
    fields = parser_fields(packing.attributes(32, has_bias=False))
    with pytest.raises(Refused) as refused:
        host.create(LINEAR.name, fields)
    assert str(refused.value).splitlines() == [f"{ERROR} FmmLinear: {message} (node node)"]


@pytest.mark.parametrize(
    ("packing", "size", "message"),
    [
        (INT8, (4, 32, 40), "K is 40, expected a multiple of 16 on CUDA"),
        (INT4, (4, 32, 48), "K is 48, expected a multiple of 32 with int4 weights on CUDA"),
        (INT8, (4, 33, 32), "N is 33, expected a multiple of 2 on CUDA"),
    ],
)
def test_sizes(host: Host, packing: LinearPacking, size: tuple[int, int, int], message: str) -> None:
    """Refused for the profile that the engine is built for."""
    inputs, attributes = linear_case(packing, size, dtype=np.float16)
    plugin = host.create(LINEAR.name, parser_fields(attributes))
    profiles = [profile_of(array) for array in inputs.values()]
    outputs = plugin.infer(profiles)
    with pytest.raises(Refused) as refused:
        plugin.configure(profiles, outputs)
    expected = [f"{ERROR} FmmLinear: {message} (node node)", "harness: configurePlugin returned -1"]
    assert str(refused.value).splitlines() == expected
    plugin.destroy()


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("x", np.float32, "x is float, expected float16 or bfloat16 on CUDA"),
        ("weight", np.float16, "weight is float16, expected int8 with weight_format int8"),
        ("bias", ml_dtypes.bfloat16, "bias is bfloat16, expected float16 as the other tensors of type F"),
        ("scale", np.float32, "scale is float, expected float16"),
    ],
)
def test_types(host: Host, name: str, dtype: Any, message: str) -> None:
    """The builder finds no format for the tensor, after the message."""
    inputs, attributes = linear_case(INT8, (4, 32, 64), dtype=np.float16)
    plugin = host.create(LINEAR.name, parser_fields(attributes))
    profiles = [profile_of(array) for array in inputs.values()]
    outputs, position = plugin.infer(profiles), list(inputs).index(name)
    profiles[position] = dataclasses.replace(profiles[position], dtype=np.dtype(dtype))
    assert all(plugin.supports(profiles, outputs, i) for i in range(position))
    assert not plugin.supports(profiles, outputs, position)
    assert host.messages() == [f"{ERROR} FmmLinear: {message} (node node)"]
    plugin.destroy()
