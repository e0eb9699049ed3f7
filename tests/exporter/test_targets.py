# SPDX-License-Identifier: Apache-2.0
"""What the exporter chooses and refuses by target."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fastmmoe.exporter.config import ExportConfig
from fastmmoe.exporter.fit.sizes import read_sizes
from fastmmoe.exporter.ops.linear.packing import LinearPacking, LinearPackings
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.targets import (
    DTYPES,
    activation_dtype,
    check_kernels,
    check_memory,
    choose_cache_dtype,
    choose_device,
    choose_dtype,
    choose_layout,
    choose_linears,
    choose_packing,
    with_mix,
)
from fastmmoe.runtime.errors import InvalidRequest, UnsupportedModel
from fastmmoe.runtime.machines.devices import DEVICES
from fastmmoe.runtime.machines.targets import TARGETS

FLOATS = LinearPackings()


@pytest.mark.parametrize(
    ("target", "dtype", "chosen", "activations"),
    [
        ("cpu", None, "fp32", "float32"),
        ("cpu", "bf16", "bf16", "float32"),
        ("jetson-agx-orin", None, "fp16", "float16"),
        ("rtx", "bf16", "bf16", "bfloat16"),
    ],
)
def test_element_types(target: str, dtype: str | None, chosen: str, activations: str) -> None:
    """ONNX Runtime's CPU provider computes in float32, whatever is stored."""
    assert choose_dtype(TARGETS[target], dtype) == chosen
    assert activation_dtype(TARGETS[target], chosen) == activations
    assert activations in DTYPES.values()


def test_an_element_type_that_the_kernels_do_not_take() -> None:
    with pytest.raises(InvalidRequest, match=r"^--dtype fp32: target jetson-agx-orin takes fp16, bf16$"):
        choose_dtype(TARGETS["jetson-agx-orin"], "fp32")


@pytest.mark.parametrize(
    ("target", "dtype", "given", "chosen"),
    [
        ("cpu", "fp32", None, "float32"),
        ("cpu", "bf16", None, "float32"),
        ("cpu", "fp16", "bf16", "bfloat16"),
        ("cpu", "bf16", "fp32", "float32"),
        ("rtx", "bf16", None, "bfloat16"),
        ("jetson-agx-orin", "fp16", "fp16", "float16"),
    ],
)
def test_types_of_caches(target: str, dtype: str, given: str | None, chosen: str) -> None:
    assert choose_cache_dtype(TARGETS[target], dtype, given) == chosen


@pytest.mark.parametrize(
    ("target", "dtype", "given", "words"),
    [
        ("cpu", "fp16", "fp16", "target cpu with dtype fp16 takes fp32, bf16"),
        ("rtx", "bf16", "fp32", "target rtx with dtype bf16 takes bf16 alone, the type of its activations"),
        ("rtx", "fp16", "bf16", "target rtx with dtype fp16 takes fp16 alone, the type of its activations"),
    ],
)
def test_caches_that_no_kernel_reads(target: str, dtype: str, given: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        choose_cache_dtype(TARGETS[target], dtype, given)
    assert str(refusal.value) == f"--kv-cache-dtype {given}: {words}"


def test_devices_by_memory() -> None:
    chosen = [
        ("jetson-orin-nano", "4gb", "orin-nano-4gb"),
        ("jetson-orin-nx@jp6.2", None, "orin-nx-16gb"),
        ("jetson-agx-orin", "32GB", "agx-orin-32gb"),
        ("a100", None, "a100-sxm-80gb"),
        ("rtx", "32GB", "rtx-5090"),
    ]
    for name, memory, device in chosen:
        assert choose_device(TARGETS[name], memory) == DEVICES[device]
    assert choose_device(TARGETS["rtx"], None) is None and choose_device(TARGETS["cpu"], None) is None


@pytest.mark.parametrize(
    ("name", "memory", "words"),
    [
        ("jetson-agx-orin", "48GB", "target jetson-agx-orin takes 32GB, 64GB"),
        ("jetson-orin-nx", "16", "target jetson-orin-nx takes 8GB, 16GB"),
        ("cpu", "16GB", "target cpu is for machines of any memory; leave it out"),
    ],
)
def test_memory_that_no_device_has(name: str, memory: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        choose_device(TARGETS[name], memory)
    assert str(refusal.value) == f"--memory {memory}: {words}"


def test_weights_in_a_word_that_the_target_does_not_take() -> None:
    with pytest.raises(InvalidRequest, match=r"^--weights fp32: target rtx takes bf16, int8, int4$"):
        with_mix(TARGETS["rtx"], ExportConfig(weights="fp32"))
    assert with_mix(TARGETS["rtx"], ExportConfig(weights="fp32", dtype="fp16")).dtype == "fp16"


def test_weights_fit_the_device() -> None:
    small, large = DEVICES["agx-orin-32gb"], DEVICES["agx-orin-64gb"]
    target = TARGETS["jetson-agx-orin"]
    assert check_memory(target, small, 10**10) == "weights: 10.0 GB; AGX Orin 32GB has 32 GB"
    for device, weights, other in ((small, 54, "--memory 64GB"), (large, 65, "a target with more memory")):
        words = rf"^the weights are {weights}\.0 GB, {device.name} has .* GB: give --weights int4, or {other}$"
        with pytest.raises(UnsupportedModel, match=words):
            check_memory(target, device, weights * 10**9)


def test_experts_are_packed_as_they_are_asked_for() -> None:
    config = ExportConfig(experts="int4", group_size=64, zero_points=True)
    assert choose_packing(TARGETS["jetson-agx-orin"], config) == Packing("int4", 64, True)
    assert choose_packing(TARGETS["jetson-agx-orin"], ExportConfig()) is None


def test_cpu_target_takes_integers() -> None:
    assert choose_packing(TARGETS["cpu"], ExportConfig(experts="int4")) == Packing("int4", 128, False)


@pytest.mark.parametrize(
    ("target", "experts", "dtype", "layout", "expected"),
    [
        ("cpu", "float", "fp32", None, "logical"),
        ("cpu", "float", "fp16", None, "logical"),
        ("cpu", "float", "bf16", None, "tiles"),
        ("cpu", "int8", "fp32", None, "tiles"),
        ("cpu", "int4", "bf16", "logical", "logical"),
        ("cpu", "fp8", "fp32", None, "logical"),
        ("rtx", "int4", "fp16", None, "logical"),
    ],
)
def test_layout(target: str, experts: Any, dtype: str, layout: Any, expected: str) -> None:
    config = ExportConfig(experts=experts, layout=layout)
    assert choose_layout(TARGETS[target], config, dtype) == expected


def test_layouts_that_are_refused() -> None:
    message = "^--layout tiles: target cpu takes them with bf16, int8, int4 experts, these are fp32$"
    with pytest.raises(InvalidRequest, match=message):
        choose_layout(TARGETS["cpu"], ExportConfig(layout="tiles"), "fp32")
    with pytest.raises(InvalidRequest, match=r"^--layout tiles: target rtx has no kernels that read them$"):
        choose_layout(TARGETS["rtx"], ExportConfig(layout="tiles", experts="int4"), "fp16")


@pytest.mark.parametrize(
    ("target", "given", "formats"),
    [
        ("cpu", {}, (None, "float", "float", "float", 128, False)),
        ("cpu", {"weights": "fp32"}, ("fp32", "float", "float", "float", 128, False)),
        ("cpu", {"weights": "bf16"}, ("bf16", "float", "bf16", "bf16", 128, False)),
        ("cpu", {"weights": "int8"}, (None, "int8", "int8", "int8", 128, False)),
        ("cpu", {"weights": "int4"}, (None, "int4", "int4", "int8", 32, True)),
        ("cpu", {"weights": "int4", "vision": "float", "group_size": 64}, (None, "int4", "int4", "float", 64, True)),
        ("cpu", {"weights": "int4", "experts": "float", "dense": "bf16"}, (None, "float", "bf16", "int8", 32, False)),
        ("cpu", {"dense": "int4"}, (None, "float", "int4", "float", 128, False)),
        ("jetson-orin-nx", {"weights": "int8"}, (None, "int8", "int8", "float", 128, False)),
        ("jetson-orin-nx", {"weights": "int4"}, (None, "int4", "int4", "float", 32, True)),
        ("rtx", {"weights": "bf16"}, ("bf16", "float", "float", "float", 128, False)),
    ],
)
def test_a_word_for_all_formats(target: str, given: dict[str, Any], formats: tuple[Any, ...]) -> None:
    found = with_mix(TARGETS[target], ExportConfig(**given))
    names = ("dtype", "experts", "dense", "vision", "group_size", "zero_points")
    assert tuple(getattr(found, name) for name in names) == formats
    assert with_mix(TARGETS[target], found) == found


def test_linear_layers_by_format() -> None:
    config = with_mix(TARGETS["cpu"], ExportConfig(dense="int4", vision="bf16", group_size=64, zero_points=True))
    assert choose_linears(TARGETS["cpu"], config) == LinearPackings(
        LinearPacking("int4", 64, zero_points=True), LinearPacking("int8", 128), LinearPacking("bf16")
    )
    assert choose_linears(TARGETS["rtx"], with_mix(TARGETS["rtx"], ExportConfig())) == LinearPackings()
    config = with_mix(TARGETS["rtx"], ExportConfig(weights="int4"))
    assert choose_linears(TARGETS["rtx"], config) == LinearPackings(
        LinearPacking("int4", 32, zero_points=True, is_tiled=False), LinearPacking("int8", 128, is_tiled=False)
    )
    refused = (
        (ExportConfig(dense="bf16"), "--dense bf16: target rtx takes float, int8, int4"),
        (ExportConfig(vision="int8"), "--vision int8: target rtx takes float alone"),
    )
    for config, message in refused:
        with pytest.raises(InvalidRequest, match=f"^{message}$"):
            choose_linears(TARGETS["rtx"], with_mix(TARGETS["rtx"], config))


def test_zero_points_need_integers() -> None:
    with pytest.raises(InvalidRequest, match=r"^--zero-points: needs --experts int8 or int4, or --dense int4$"):
        choose_packing(TARGETS["rtx"], ExportConfig(zero_points=True))


def test_zeros_of_linear_layers_beside_experts_that_have_none() -> None:
    chosen = with_mix(TARGETS["cpu"], ExportConfig(weights="int4", experts="fp8"))
    assert choose_packing(TARGETS["cpu"], chosen) == Packing("fp8", 32, zero_points=False)
    assert choose_linears(TARGETS["cpu"], chosen).dense == LinearPacking("int4", 32, zero_points=True)


def sizes(experts: int, hidden: int, inner: int, heads: tuple[int, int] = (128, 128), latent: int = 0) -> Any:
    """A configuration, as far as kernels look at it. heads: width of keys and of values; rope of latents."""
    return SimpleNamespace(
        hidden_size=hidden,
        moe=SimpleNamespace(num_experts=experts, intermediate_size=inner),
        query_key_dim=heads[0],
        value_dim=heads[1],
        kv_lora_rank=latent,
        rope_dim=heads[1],
    )


def test_the_greatest_models_that_the_kernels_take() -> None:
    check_kernels(TARGETS["rtx"], sizes(256, 16, 48), None, FLOATS)
    check_kernels(TARGETS["rtx"], sizes(256, 48, 16), Packing("int8", 32, False), FLOATS)
    check_kernels(TARGETS["rtx"], sizes(256, 32, 96), Packing("int4", 32, False), FLOATS)
    check_kernels(TARGETS["rtx"], sizes(8, 16, 16, (192, 64), latent=512), None, FLOATS)


@pytest.mark.parametrize(
    ("heads", "latent", "message"),
    [
        ((136, 128), 0, r"head width 136: the kernels of target rtx take multiples of 8 up to 128"),
        ((128, 132), 0, r"value width 132: .* up to 128"),
        ((20, 16), 0, r"head width 20: .* multiples of 8"),
        ((192, 64), 520, r"kv_lora_rank \+ qk_rope_head_dim 584: .* up to 576"),
        ((192, 56), 520, r"kv_lora_rank 520: .* up to 512"),
    ],
)
def test_heads_that_the_kernels_do_not_take(heads: tuple[int, int], latent: int, message: str) -> None:
    config = sizes(8, 16, 16, heads, latent)
    with pytest.raises(UnsupportedModel, match=message):
        check_kernels(TARGETS["rtx"], config, None, FLOATS)
    check_kernels(TARGETS["cpu"], config, None, FLOATS)


@pytest.mark.parametrize(
    ("experts", "hidden", "inner", "packing", "message"),
    [
        (257, 64, 64, None, r"257 experts: the kernels of target rtx take at most 256"),
        (8, 72, 64, None, r"hidden_size 72: .* take multiples of 16 for float experts"),
        (8, 64, 48, Packing("int4", 32, False), r"expert hidden size 48: .* take multiples of 32 for int4 experts"),
    ],
)
def test_models_that_the_kernels_do_not_take(
    experts: int, hidden: int, inner: int, packing: Packing | None, message: str
) -> None:
    config = sizes(experts, hidden, inner)
    with pytest.raises(UnsupportedModel, match=message):
        check_kernels(TARGETS["rtx"], config, packing, FLOATS)
    check_kernels(TARGETS["cpu"], config, packing, FLOATS)


@pytest.mark.parametrize(
    ("word", "changes", "message"),
    [
        (
            "int4",
            {"intermediate_size": 176},
            "dense: a linear layer of 176 columns, .* 32 for int4 .* --dense int8",
        ),
        ("int4", {"intermediate_size": 168}, "dense: a linear layer of 168 columns, .* 32 for int4 .* --dense float"),
        ("int8", {"intermediate_size": 168}, "dense: a linear layer of 168 columns, .* 16 for int8 .* --dense float"),
        ("int8", {"vocab_size": 417}, "head: a linear layer of 417 outputs, .* 2 for int8 weights: give --dense float"),
    ],
)
def test_linear_layers_that_the_kernels_do_not_take(word: Any, changes: dict[str, int], message: str) -> None:
    target, given = TARGETS["rtx"], with_mix(TARGETS["rtx"], ExportConfig(weights=word))
    config, linears = read_sizes("demo").config, choose_linears(target, given)
    check_kernels(target, config, None, linears)
    wrong: Any = replace(config, **changes)  # type: ignore[type-var]
    with pytest.raises(UnsupportedModel, match=f"^{message}$"):
        check_kernels(target, wrong, None, linears)
    check_kernels(target, wrong, None, FLOATS)
    check_kernels(TARGETS["cpu"], wrong, None, choose_linears(TARGETS["cpu"], given))
