# SPDX-License-Identifier: Apache-2.0
"""The table of targets holds together with devices, element types and the exporter's words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastmmoe.exporter.targets import DTYPES, activation_dtype, choose_dtype
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.machines.devices import DEVICES
from fastmmoe.runtime.machines.targets import (
    ALIASES,
    CUDA_KERNELS,
    JETPACK_6,
    TARGETS,
    find_target,
    target_names,
    unknown_target,
)

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", TARGETS)
def test_devices_have_a_compute_capability_of_the_target(name: str) -> None:
    target = TARGETS[name]
    capabilities = target.tensorrt.compute_capabilities if target.tensorrt is not None else ()
    assert {DEVICES[device].sm for device in target.devices} <= set(capabilities)
    assert bool(target.devices) == bool(capabilities)


def test_each_device_is_of_the_target_of_its_name() -> None:
    found = {device: {t.name for t in TARGETS.values() if device in t.devices} for device in DEVICES}
    assert all(found.values())
    assert found["orin-nx-8gb"] == {"jetson-orin-nx", "jetson-orin-nx@jp6.2"}
    assert found["thor-t5000"] == {"jetson-thor"} and found["rtx-5090"] == {"rtx"}
    engines = [target for target in TARGETS.values() if target.tensorrt is not None]
    # Names of devices that differ in memory alone would hide one another.
    assert all(len(target.memories) == len(target.devices) for target in engines if target.name != "rtx")


def test_names() -> None:
    assert find_target("jetson-orin") is find_target("jetson-agx-orin@jp7.2") is TARGETS["jetson-agx-orin"]
    assert find_target("jetson-orin@jp6.2") is TARGETS["jetson-agx-orin@jp6.2"]
    assert find_target("jetson-thor@jp6.2") is None and find_target("h100@jp7.2") is None
    assert all(find_target(name) is not None for name in target_names()) and set(ALIASES.values()) <= TARGETS.keys()
    assert unknown_target("jetson-orin-nanp").endswith(", b200, rtx; did you mean jetson-orin-nano?")
    assert unknown_target("zzz") == f"'zzz': this fastmmoe has {', '.join(TARGETS)}"


def test_what_goes_with_jetpack_6() -> None:
    for name in ("jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin"):
        newest, older = TARGETS[name].tensorrt, TARGETS[f"{name}@jp6.2"].tensorrt
        assert newest is not None and older == JETPACK_6
        versions = [(r.version, r.cuda, r.python) for tensorrt in (newest, older) for r in tensorrt.releases]
        assert versions == [("10.16", "13.2", "3.12"), ("10.3", "12.6", "3.10")]
        assert (newest.plugin, older.plugin) == ("aarch64", "jetpack6")


def test_where_engines_are_built() -> None:
    for name in ("a100", "l4", "l40s", "h100", "h200", "b200"):
        target = TARGETS[name]
        assert target.tensorrt is not None and target.tensorrt.module == "tensorrt"
        assert (target.tensorrt.plugin, target.tensorrt.is_ahead_of_time) == ("x86_64", False)
        assert "On the machine with the " + name.upper() + ": fastmmoe build {out}" in target.next_step
    rtx = TARGETS["rtx"].tensorrt
    assert rtx is not None and rtx.module == "tensorrt_rtx" and rtx.is_ahead_of_time


def test_the_exporter_knows_every_dtype() -> None:
    for target in TARGETS.values():
        assert len(target.dtypes) == len(target.activation_dtypes)
        assert set(target.activation_dtypes) <= set(DTYPES.values())
    assert {dtype for target in TARGETS.values() for dtype in target.dtypes} == DTYPES.keys()


def test_the_limits_are_those_of_the_kernels() -> None:
    header = (REPOSITORY / "plugins" / "sparse_moe" / "cuda" / "kernel.h").read_text()
    constants = {name: int(value) for name, value in re.findall(r"constexpr int64_t (kSparseMoe\w+) = (\d+);", header)}
    assert CUDA_KERNELS.most_experts == constants["kSparseMoeMaxExperts"]
    header = (REPOSITORY / "plugins" / "common" / "cuda" / "products.h").read_text()
    depth, int4_depth = (int(n) for n in re.findall(r"constexpr int64_t k(?:Int4)?ProductDepth = (\d+);", header))
    assert CUDA_KERNELS.columns_multiple == {"float": depth, "int8": depth, "int4": int4_depth, "fp8": depth}
    header = (REPOSITORY / "plugins" / "attention" / "cuda" / "kernel.h").read_text()
    constants = {name: int(value) for name, value in re.findall(r"constexpr int64_t (kAttention\w+) = (\d+);", header)}
    assert CUDA_KERNELS.head_multiple == constants["kAttentionMultiple"]
    assert CUDA_KERNELS.most_head_width == constants["kAttentionMostWidth"]
    assert CUDA_KERNELS.most_latent == (constants["kAttentionMostLatent"], constants["kAttentionMostLatentValues"])
    header = (REPOSITORY / "plugins" / "linear" / "cuda" / "kernel.h").read_text()
    assert f"constexpr int64_t kLinearOutputs = {CUDA_KERNELS.outputs_multiple};" in header
    assert all(target.kernels in (None, CUDA_KERNELS) for target in TARGETS.values())


def test_what_follows_from_engines() -> None:
    for target in TARGETS.values():
        assert (target.tensorrt is None) == (target.backend == "onnxruntime")
        assert target.is_portable == (target.backend == "onnxruntime")
        assert "{out}" in target.next_step


def test_dtypes() -> None:
    assert [choose_dtype(TARGETS[name], None) for name in ("cpu", "jetson-agx-orin", "rtx")] == ["fp32", "fp16", "fp16"]
    assert choose_dtype(TARGETS["rtx"], "bf16") == "bf16"
    with pytest.raises(InvalidRequest, match=r"--dtype fp32: target rtx takes fp16, bf16"):
        choose_dtype(TARGETS["rtx"], "fp32")
    assert activation_dtype(TARGETS["cpu"], "bf16") == "float32"
    assert activation_dtype(TARGETS["jetson-agx-orin"], "bf16") == "bfloat16"
