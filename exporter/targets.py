# SPDX-License-Identifier: Apache-2.0
"""Choices and checks of the exporter by target (runtime/machines/targets.py) and element type."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastmmoe.exporter.config import GROUP_SIZE, ExportConfig
from fastmmoe.runtime.errors import InvalidRequest, UnsupportedModel
from fastmmoe.runtime.files import size_text
from fastmmoe.runtime.machines.devices import DEVICES, Device
from fastmmoe.runtime.machines.targets import KernelLimits, Target

if TYPE_CHECKING:
    from fastmmoe.exporter.models.configs import ModelConfig
    from fastmmoe.exporter.ops.linear.packing import LinearPackings
    from fastmmoe.exporter.ops.quantise import Packing

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""What the user says -> torch's and NumPy's name (this file stays importable without torch)."""

MIXES: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "fp32"},
    "bf16": {"dtype": "bf16", "dense": "bf16", "vision": "bf16"},
    "int8": {"experts": "int8", "dense": "int8", "vision": "int8"},
    "int4": {"experts": "int4", "dense": "int4", "vision": "int8", "group_size": 32},
}
"""What --weights means: fields of `ExportConfig`. int4 has zero points; linear layers whose format the target does not
take stay floats."""

INT8_GROUP = 128
"""Columns of a linear layer of 8 bits that share a scale."""

ATOL = 1e-4
"""Greatest difference from torch: what the check runs computes in float32, whatever is stored."""


def choose_dtype(target: Target, dtype: str | None) -> str:
    """The given dtype, or the target's default for None.

    Raises:
        InvalidRequest: the target's kernels do not take it.
    """
    if dtype is not None and dtype not in target.dtypes:
        raise InvalidRequest(f"--dtype {dtype}: target {target.name} takes {', '.join(target.dtypes)}")
    return target.dtypes[0] if dtype is None else dtype


def with_mix(target: Target, config: ExportConfig) -> ExportConfig:
    """The configuration with every format: what is not given is what --weights means on the target, or float.

    Raises:
        InvalidRequest: --weights means a dtype that the target's kernels do not take, and no other is given.
    """
    if config.weights is not None and config.dtype is None:
        words = [word for word, mix in MIXES.items() if mix.get("dtype") in (None, *target.dtypes)]
        if config.weights not in words:
            raise InvalidRequest(f"--weights {config.weights}: target {target.name} takes {', '.join(words)}")
    mix = {"dtype": None, "experts": "float", "dense": "float", "vision": "float", "group_size": GROUP_SIZE}
    mix |= {} if config.weights is None else MIXES[config.weights]
    for part, known in (("dense", target.dense_formats), ("vision", target.vision_formats)):
        mix[part] = mix[part] if mix[part] in known else "float"
    given = {name: getattr(config, name) for name in mix if getattr(config, name) is not None}
    # What the mix's groups are made for may have been given otherwise.
    has_integers = {"int8", "int4"} & {(mix | given)["experts"], (mix | given)["dense"]}
    zero_points = config.zero_points or (config.weights == "int4" and bool(has_integers))
    return replace(config, weights=None, zero_points=zero_points, **(mix | given))


def check_groups(given: ExportConfig, chosen: ExportConfig) -> None:
    """Refuse a group size where nothing has groups of that size.

    Args:
        given, chosen: before and after `with_mix`.
    Raises:
        InvalidRequest: there is such a size.
    """
    if given.group_size is not None and chosen.experts == "float" and chosen.dense != "int4":
        raise InvalidRequest(f"--group-size {given.group_size}: needs --experts int8, int4 or fp8, or --dense int4")


def choose_device(target: Target, memory: str | None) -> Device | None:
    """The target's device with that memory; for None the one with the most, or None where engines serve any.

    Args:
        memory: "64GB".
    Raises:
        InvalidRequest: there is none, or the target is for no device in particular.
    """
    memories = target.memories
    if memory is None:
        serves_any = target.tensorrt is None or target.tensorrt.is_ahead_of_time
        return None if serves_any else DEVICES[memories[list(memories)[-1]]]
    if not memories:
        raise InvalidRequest(f"--memory {memory}: target {target.name} is for machines of any memory; leave it out")
    if memory.upper() not in memories:
        raise InvalidRequest(f"--memory {memory}: target {target.name} takes {', '.join(memories)}")
    return DEVICES[memories[memory.upper()]]


def check_memory(target: Target, device: Device, weights: int) -> str:
    """A line on what the device's memory holds beside the weights.

    Args:
        weights: bytes.
    Raises:
        UnsupportedModel: the weights alone do not fit.
    """
    has = f"{device.name} has {device.memory_gb:g} GB"
    left = device.memory_gb * 1e9 - weights
    if left < 0:
        larger = [memory for memory, name in target.memories.items() if DEVICES[name].memory_gb * 1e9 > weights]
        other = f"--memory {larger[0]}" if larger else "a target with more memory"
        raise UnsupportedModel(f"the weights are {size_text(weights)}, {has}: give --weights int4, or {other}")
    return f"weights: {size_text(weights)}; {has}"


def activation_dtype(target: Target, dtype: str) -> str:
    """Element type of the graphs' activations and of all weights but the experts', a value of `DTYPES`."""
    return target.activation_dtypes[target.dtypes.index(dtype)]


def choose_cache_dtype(target: Target, dtype: str, cache_dtype: str | None) -> str:
    """Element type of the key-value caches, a value of `DTYPES`; None = that of the activations.

    Args:
        dtype: chosen for the target.
        cache_dtype: key of `DTYPES`.
    Raises:
        InvalidRequest: no kernel of the target takes it beside these activations.
    """
    # It brings NumPy, which the command's help does not wait for.
    from fastmmoe.runtime.bundle.consistency import cache_dtypes

    activations = activation_dtype(target, dtype)
    legal = cache_dtypes(activations)
    if cache_dtype is not None and DTYPES[cache_dtype] not in legal:
        words = [word for word, name in DTYPES.items() if name in legal]
        only = " alone, the type of its activations" if len(words) == 1 else ""
        raise InvalidRequest(
            f"--kv-cache-dtype {cache_dtype}: target {target.name} with dtype {dtype} takes {', '.join(words)}{only}"
        )
    return activations if cache_dtype is None else DTYPES[cache_dtype]


def opset(target: Target, dtype: str) -> int:
    """Version of the standard operators in the graphs."""
    return target.opsets[target.dtypes.index(dtype)]


def choose_linears(target: Target, config: ExportConfig) -> LinearPackings:
    """How linear layers are stored; config: see `with_mix`.

    Raises:
        InvalidRequest: the target has no such layers.
    """
    from fastmmoe.exporter.ops.linear.packing import LinearPacking, LinearPackings

    for option, given, known in (
        ("--dense", config.dense, target.dense_formats),
        ("--vision", config.vision, target.vision_formats),
    ):
        if given not in known:
            only = f"{known[0]} alone" if len(known) == 1 else ", ".join(known)
            raise InvalidRequest(f"{option} {given}: target {target.name} takes {only}")
    is_tiled = target.linear_layout == "tiles"
    packings = {
        "float": None,
        "bf16": LinearPacking("bf16"),
        "int8": LinearPacking("int8", INT8_GROUP, is_tiled=is_tiled),
        "int4": LinearPacking("int4", config.group_size or GROUP_SIZE, config.zero_points, is_tiled),
    }
    dense, vision = packings[config.dense or "float"], packings[config.vision or "float"]
    return LinearPackings(dense, packings["int8"] if config.dense == "int4" else dense, vision)


def choose_packing(target: Target, config: ExportConfig) -> Packing | None:
    """How the experts are packed; None = they are not.

    Raises:
        InvalidRequest: the target does not run such experts, or zero_points without integers.
    """
    if config.zero_points and config.experts not in ("int8", "int4") and config.dense != "int4":
        raise InvalidRequest("--zero-points: needs --experts int8 or int4, or --dense int4")
    if config.experts is None or config.experts == "float":
        return None
    if config.experts not in target.expert_formats:
        raise InvalidRequest(
            f"--experts {config.experts}: target {target.name} takes {', '.join(target.expert_formats)}"
        )
    from fastmmoe.exporter.ops.quantise import Packing

    # Those of --dense int4 beside fp8, which has none.
    zero_points = config.zero_points and config.experts != "fp8"
    return Packing(config.experts, config.group_size or GROUP_SIZE, zero_points)


def choose_layout(target: Target, config: ExportConfig, dtype: str) -> str:
    """The order of the experts' weights: tiles where the target's kernels read them, or as the user says.

    Args:
        dtype: chosen for the target.
    Raises:
        InvalidRequest: tiles for a target or a format that has none.
    """
    stored = dtype if config.experts in (None, "float") else config.experts
    if stored in target.tile_formats:
        return "tiles" if config.layout is None else config.layout
    if config.layout == "tiles":
        formats = ", ".join(target.tile_formats)
        takes = f"takes them with {formats} experts, these are {stored}" if formats else "has no kernels that read them"
        raise InvalidRequest(f"--layout tiles: target {target.name} {takes}")
    return "logical"


def check_kernels(target: Target, config: ModelConfig, packing: Packing | None, linears: LinearPackings) -> None:
    """Refuse a model that the target's kernels cannot run.

    Raises:
        UnsupportedModel: too many experts, sizes of the wrong multiple, or heads that are too wide.
    """
    if target.kernels is None:
        if packing is not None and packing.weight_format == "int4":
            from fastmmoe.exporter.ops.tiles import INT4_COLUMNS

            _check_columns(config, INT4_COLUMNS, f"int4 experts have multiples of {INT4_COLUMNS}")
        return
    most = target.kernels.most_experts
    if config.moe.num_experts > most:
        raise UnsupportedModel(
            f"{config.moe.num_experts} experts: the kernels of target {target.name} take at most {most}"
        )
    weight_format = "float" if packing is None else packing.weight_format
    multiple = target.kernels.columns_multiple[weight_format]
    takes = f"the kernels of target {target.name} take multiples of {multiple} for {weight_format} experts"
    _check_columns(config, multiple, takes)
    _check_linears(target.name, target.kernels, config, linears)
    _check_heads(target.name, target.kernels, config)


def _check_columns(config: ModelConfig, multiple: int, takes: str) -> None:
    for name, size in (("hidden_size", config.hidden_size), ("expert hidden size", config.moe.intermediate_size)):
        if size % multiple:
            raise UnsupportedModel(f"{name} {size}: {takes}")


def _check_linears(target: str, limits: KernelLimits, config: ModelConfig, linears: LinearPackings) -> None:
    if linears.dense is None:
        return
    from fastmmoe.exporter.manifest import language_model_info
    from fastmmoe.runtime.cost.weights import HEAD, decoder_linear_layers

    for part, rows, columns, _ in decoder_linear_layers(language_model_info(config)):
        packing = linears.head if part == HEAD else linears.dense
        assert packing is not None
        weight_format, of_columns = packing.weight_format, limits.columns_multiple
        for name, size, multiple in (
            ("columns", columns, of_columns[weight_format]),
            ("outputs", rows, limits.outputs_multiple),
        ):
            if size % multiple:
                # int8 takes fewer columns at a time.
                helps = name == "columns" and weight_format == "int4" and size % of_columns["int8"] == 0
                raise UnsupportedModel(
                    f"{part.replace('_', ' ')}: a linear layer of {size} {name}, the kernels of target {target} take "
                    f"multiples of {multiple} for {weight_format} weights: give --dense {'int8' if helps else 'float'}"
                )


def _check_heads(target: str, limits: KernelLimits, config: ModelConfig) -> None:
    if config.kv_lora_rank:
        names, most = ("kv_lora_rank + qk_rope_head_dim", "kv_lora_rank"), limits.most_latent
        widths = (config.kv_lora_rank + config.rope_dim, config.kv_lora_rank)
    else:
        names, most = ("head width", "value width"), (limits.most_head_width,) * 2
        widths = (config.query_key_dim, config.value_dim)
    for name, width, greatest in zip(names, widths, most, strict=True):
        if width % limits.head_multiple or width > greatest:
            raise UnsupportedModel(
                f"{name} {width}: the kernels of target {target} take multiples of {limits.head_multiple} up to "
                f"{greatest}"
            )
