# SPDX-License-Identifier: Apache-2.0
"""Contradictions between parts of a manifest; the range of a number by itself is in its type (runtime/ranges.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import (
    GRAPHS,
    PLUGIN,
    TOKENIZER,
    LanguageModelInfo,
    Manifest,
    graph_file,
    weights_file,
)
from fastmmoe.runtime.bundle.storage import ExpertsInfo, LinearInfo, LinearsInfo
from fastmmoe.runtime.method.policy import ALL, FASTMMOE, FASTV, METHODS, RANDOM, SPARSEVLM, UNMODIFIED, Policy
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.request.family import family_of, processor_tag


def contradictions(manifest: Manifest) -> Iterator[str]:
    """What in the manifest contradicts itself, each in words that follow the manifest's path."""
    yield from _of_language_model(manifest.language_model)
    yield from _of_policy(manifest.policy, manifest.language_model)
    yield from _of_processor(manifest.processor, manifest)
    yield from _of_caches(manifest)
    yield from _of_experts(manifest.experts)
    for part in LinearsInfo.__struct_fields__:
        yield from _of_linears(part, getattr(manifest.linears, part))
    yield from _of_files(manifest)
    yield from _of_expert_inputs(manifest)


def custom_operators(policy: Policy, linears: LinearsInfo, *, is_tiled: bool) -> set[str]:
    """The operators of our own in graphs with these prune sites and linear layers.

    Args:
        is_tiled: see `Manifest.has_tiled_linears`; the kernels that read tiles have one for rotary positions, too.
    """
    # sparsevlm alone prunes by standard operators.
    has_token_prune = any(site.methods != (SPARSEVLM,) for site in policy.sites)
    has_linear = any(one.weight_format != "float" for one in (linears.dense, linears.head, linears.vision))
    has_tower = linears.vision.weight_format != "float"
    some = {
        "FmmTokenPrune": has_token_prune,
        "FmmLinear": has_linear,
        "FmmRotary": is_tiled and linears.dense.weight_format != "float",
        "FmmVisionAttention": has_tower,
    }
    return {"FmmAttention", "FmmSparseMoE", *(name for name, is_there in some.items() if is_there)}


def cache_dtypes(activation_dtype: str) -> tuple[str, ...]:
    """What caches may store beside activations of this type, their own first.

    The kernels of the CPU read bfloat16 caches beside float32 rows; those of engines read rows and caches of one type.
    """
    return (activation_dtype, "bfloat16") if activation_dtype == "float32" else (activation_dtype,)


def _of_language_model(info: LanguageModelInfo) -> Iterator[str]:
    for name in ("moe_layers", "sliding_layers"):
        yield from _of_layers(f"language_model.{name}", getattr(info, name), info.layers)
    if info.top_k > info.num_experts:
        yield f"language_model.top_k is {info.top_k}: expected at most num_experts, {info.num_experts}"
    if info.heads % info.kv_heads:
        yield f"language_model.kv_heads is {info.kv_heads}: expected a divisor of heads, {info.heads}"
    if info.rope_dim > info.query_key_dim:
        yield f"language_model.rope_dim is {info.rope_dim}: expected at most query_key_dim, {info.query_key_dim}"
    is_latent = info.kv_lora_rank > 0
    parts = graph_io.LATENT if is_latent else graph_io.KEY_VALUE
    shape = (1, info.kv_lora_rank + info.rope_dim) if is_latent else (info.kv_heads, info.query_key_dim)
    if (info.cache_parts, info.cache_shape) != (parts, shape):
        yield (
            f"language_model has caches {_list(info.cache_parts)} of [{_list(info.cache_shape)}]: expected "
            f"{_list(parts)} of [{_list(shape)}] with kv_lora_rank {info.kv_lora_rank}"
        )
    if (info.sliding_window is None) != (not info.sliding_layers):
        yield (
            f"language_model.sliding_window is {info.sliding_window} with {len(info.sliding_layers)} sliding_layers: "
            f"expected both or neither"
        )


def _of_layers(name: str, layers: Sequence[int], count: int) -> Iterator[str]:
    falls = [(a, b) for a, b in pairwise(layers) if a >= b]
    if falls:
        yield f"{name} has {falls[0][1]} after {falls[0][0]}: expected ascending layers, each once"
    outside = [layer for layer in layers if layer >= count]
    if outside:
        yield f"{name} has layer {outside[0]}: expected 0 to {count - 1}, the layers of the model"


def _of_policy(policy: Policy, info: LanguageModelInfo) -> Iterator[str]:
    wanted = set(METHODS[1:]) if policy.method == ALL else {policy.method} - {UNMODIFIED}
    if set(policy.prune_layers) != wanted:
        yield (
            f"policy.prune_layers is for {_list(policy.prune_layers)}: expected {_list(sorted(wanted))}, as the method "
            f"is {policy.method}"
        )
        return
    for method, layers in policy.prune_layers.items():
        name = f"policy.prune_layers.{method}"
        yield from _of_layers(name, layers, info.layers)
        if method in (FASTMMOE, RANDOM) and not set(layers) <= set(info.moe_layers):
            yield f"{name} is {_list(layers)}: expected layers of moe_layers"
        if method == FASTV and (len(layers) > 1 or layers[0] == 0):
            yield f"{name} is {_list(layers)}: expected one layer, from 1 on"
    ours = [policy.prune_layers[method] for method in (FASTMMOE, RANDOM) if method in policy.prune_layers]
    if len(set(ours)) > 1:
        yield "policy.prune_layers of fastmmoe and random differ: expected the same layers"
    exponents = policy.stage_exponents
    stages = len(ours[0]) if ours else 0
    if len(exponents) != stages or (exponents and exponents[-1] != 1) or any(a > b for a, b in pairwise(exponents)):
        yield f"policy.stage_exponents is {_list(exponents)}: expected {stages}, ascending, the last 1"
    if len(policy.visual_top_k) != len(info.moe_layers) or max(policy.visual_top_k, default=0) > info.top_k:
        yield (
            f"policy.visual_top_k is {_list(policy.visual_top_k)}: expected {len(info.moe_layers)}, one for each of "
            f"moe_layers, at most top_k, {info.top_k}"
        )


def _of_processor(processor: ProcessorConfig, manifest: Manifest) -> Iterator[str]:
    family = family_of(processor)
    if manifest.family != family.NAME:
        tag, expected = processor.__struct_config__.tag, processor_tag(manifest.family)
        yield f"processor.type is {tag}: expected {expected} for family {manifest.family}"
        return
    if processor.vocab_size != manifest.language_model.vocab_size:
        yield (
            f"processor.vocab_size is {processor.vocab_size}: expected {manifest.language_model.vocab_size}, as in "
            f"language_model"
        )
    names = [name for name in processor.__struct_fields__ if name.endswith("_token_id")]
    ids = [
        *((name, getattr(processor, name)) for name in names),
        *(("stop_token_ids", i) for i in processor.stop_token_ids),
    ]
    for name, token_id in ids:
        if token_id is not None and token_id >= processor.vocab_size:
            yield f"processor.{name} has {token_id}: expected at most {processor.vocab_size - 1}, the last id"
    yield from family.contradictions(processor, manifest.vision.tokens_per_tile)


def _of_caches(manifest: Manifest) -> Iterator[str]:
    legal = cache_dtypes(manifest.activation_dtype)
    if manifest.cache_dtype not in legal:
        yield (
            f"cache_dtype is {manifest.cache_dtype}: expected {' or '.join(legal)} with activation_dtype "
            f"{manifest.activation_dtype}"
        )


def _of_expert_inputs(manifest: Manifest) -> Iterator[str]:
    """Those of engines have values in the file of weights, one after the other."""
    inputs, file = manifest.experts.inputs, weights_file(GRAPHS[-1])
    if bool(inputs) != (manifest.plugin is not None):
        yield f"experts.inputs are {len(inputs)}: expected some with a plugin, and none without"
    size = manifest.files[file].bytes if file in manifest.files else 0
    end = 0
    for name, tensor in sorted(inputs.items(), key=lambda item: item[1].offset):
        if not end <= tensor.offset <= tensor.offset + tensor.bytes <= size:
            yield (
                f"experts.inputs.{name} is {tensor.bytes} bytes at {tensor.offset}: expected from {end} to {size}, "
                f"after the one before and within {file}"
            )
        end = tensor.offset + tensor.bytes


def _of_experts(experts: ExpertsInfo) -> Iterator[str]:
    is_float = experts.weight_format == "float"
    has_zeros = experts.weight_format in ("int8", "int4")
    if is_float != (experts.group_size == 0) or (experts.zero_points and not has_zeros):
        yield (
            f"experts are {experts.weight_format} with group_size {experts.group_size} and zero_points "
            f"{experts.zero_points}: expected a group_size with all but float, and zero points with int8 and int4 alone"
        )


def _of_linears(part: str, linears: LinearInfo) -> Iterator[str]:
    is_integer = linears.weight_format in ("int8", "int4")
    if is_integer != (linears.group_size > 0) or (linears.zero_points and not is_integer):
        yield (
            f"linears.{part} are {linears.weight_format} with group_size {linears.group_size} and zero_points "
            f"{linears.zero_points}: expected a group_size and zero points with int8 and int4 alone"
        )


def _of_files(manifest: Manifest) -> Iterator[str]:
    required = {graph_file(graph) for graph in GRAPHS}
    allowed = {PLUGIN: manifest.plugin is not None}
    allowed |= {
        graph_file(graph, portable=True): manifest.portable and graph in manifest.operator_graphs for graph in GRAPHS
    }
    has_tokenizer = family_of(manifest.processor).has_tokenizer(manifest.processor)
    if has_tokenizer is not None:
        allowed[TOKENIZER] = has_tokenizer
    required |= {name for name, is_there in allowed.items() if is_there}
    missing = sorted(required - manifest.files.keys())
    if missing:
        yield f"files does not have {_list(missing)}, which a bundle like this one consists of"
    unexpected = sorted(name for name, is_there in allowed.items() if not is_there and name in manifest.files)
    if unexpected:
        yield f"files has {_list(unexpected)}, which plugin, portable, linears and image_token_id say is not there"
    operators = custom_operators(manifest.policy, manifest.linears, is_tiled=manifest.has_tiled_linears)
    if manifest.ops.keys() != operators:
        yield f"ops has {_list(manifest.ops) or 'none'}: expected {_list(sorted(operators))} for the policy and linears"


def _list(values: object) -> str:
    assert hasattr(values, "__iter__")
    return ", ".join(map(str, values))
