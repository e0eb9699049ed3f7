# SPDX-License-Identifier: Apache-2.0
"""The table of targets holds together with devices, element types and the exporter's words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastmmoe.exporter.targets import DTYPES, activation_dtype, choose_dtype
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.machines.devices import DEVICES
from fastmmoe.runtime.machines.targets import CUDA_KERNELS, TARGETS

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", TARGETS)
def test_devices_have_a_compute_capability_of_the_target(name: str) -> None:
    target = TARGETS[name]
    capabilities = target.tensorrt.compute_capabilities if target.tensorrt is not None else ()
    assert {DEVICES[device].sm for device in target.devices} <= set(capabilities)
    assert bool(target.devices) == bool(capabilities)


def test_jetson_orin_is_every_orin_of_the_table() -> None:
    assert set(TARGETS["jetson-orin"].devices) == {name for name, device in DEVICES.items() if device.sm == 87}


def test_the_exporter_knows_every_dtype() -> None:
    for target in TARGETS.values():
        assert len(target.dtypes) == len(target.activation_dtypes)
        assert set(target.activation_dtypes) <= set(DTYPES.values())
    assert {dtype for target in TARGETS.values() for dtype in target.dtypes} == DTYPES.keys()


def test_the_limits_are_those_of_the_kernels() -> None:
    header = (REPOSITORY / "plugins" / "sparse_moe" / "cuda" / "kernel.h").read_text()
    constants = {name: int(value) for name, value in re.findall(r"constexpr int64_t (kSparseMoe\w+) = (\d+);", header)}
    assert CUDA_KERNELS.most_experts == constants["kSparseMoeMaxExperts"]
    depth, int4_depth = constants["kSparseMoeDepth"], constants["kSparseMoeInt4Depth"]
    assert CUDA_KERNELS.columns_multiple == {"float": depth, "int8": depth, "int4": int4_depth}
    header = (REPOSITORY / "plugins" / "attention" / "cuda" / "kernel.h").read_text()
    constants = {name: int(value) for name, value in re.findall(r"constexpr int64_t (kAttention\w+) = (\d+);", header)}
    assert CUDA_KERNELS.head_multiple == constants["kAttentionMultiple"]
    assert CUDA_KERNELS.most_head_width == constants["kAttentionMostWidth"]
    assert CUDA_KERNELS.most_latent == (constants["kAttentionMostLatent"], constants["kAttentionMostLatentValues"])
    assert all(target.kernels in (None, CUDA_KERNELS) for target in TARGETS.values())


def test_what_follows_from_engines() -> None:
    for target in TARGETS.values():
        assert (target.tensorrt is None) == (target.backend == "onnxruntime")
        assert target.is_portable == (target.backend == "onnxruntime")
        assert "{out}" in target.next_step


def test_dtypes() -> None:
    assert [choose_dtype(TARGETS[name], None) for name in ("cpu", "jetson-orin", "rtx")] == ["fp32", "fp16", "fp16"]
    assert choose_dtype(TARGETS["rtx"], "bf16") == "bf16"
    with pytest.raises(InvalidRequest, match=r"--dtype fp32: target rtx takes fp16, bf16"):
        choose_dtype(TARGETS["rtx"], "fp32")
    assert activation_dtype(TARGETS["cpu"], "bf16") == "float32"
    assert activation_dtype(TARGETS["jetson-orin"], "bf16") == "bfloat16"
