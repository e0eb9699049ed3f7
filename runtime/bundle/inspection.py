# SPDX-License-Identifier: Apache-2.0
"""The contents of a bundle, as plain data and as lines for people; of a damaged one as far as it can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastmmoe.runtime.bundle.manifest import (
    GRAPHS,
    LanguageModelInfo,
    Manifest,
    damaged_files,
    damaged_manifest,
    graph_file,
    load_manifest,
    read_engines,
)
from fastmmoe.runtime.bundle.onnx_file import Operator, read_operators, read_weights
from fastmmoe.runtime.bundle.storage import LinearsInfo
from fastmmoe.runtime.errors import BundleMismatch, without_breaks

MOST_VALUES = 1 << 50
"""Values of one graph: far above every model."""


def inspect_bundle(directory: Path) -> dict[str, Any]:
    """Plain data for JSON; `damage` lists what is wrong in lines. Files are not hashed.

    Raises:
        BundleMismatch: the manifest cannot be read.
    """
    manifest = load_manifest(directory)
    damage = [*damaged_files(directory, manifest), *damaged_manifest(directory, manifest)]
    engines = None
    try:
        engines = read_engines(directory)
    except BundleMismatch as error:
        damage.append(str(error))
    parameters = _count_parameters(directory, manifest.language_model, damage)
    return {
        "bundle": str(directory),
        "model": manifest.model,
        "family": manifest.family,
        "checkpoint_identity": manifest.checkpoint_identity,
        "format": manifest.format,
        "fastmmoe_version": manifest.fastmmoe_version,
        "target": manifest.target,
        "dtype": manifest.dtype,
        "activation_dtype": manifest.activation_dtype,
        "cache_dtype": manifest.cache_dtype,
        "experts": _plain(manifest.experts),
        "linears": _plain(manifest.linears),
        "ops": manifest.ops,
        "portable": manifest.portable,
        "plugin": _plain(manifest.plugin),
        "methods": list(manifest.policy.methods),
        "default_method": manifest.policy.default_method,
        "policy": _plain(manifest.policy),
        "processor": _plain(manifest.processor),
        "vision": _plain(manifest.vision),
        "language_model": _plain(manifest.language_model),
        "parameters": parameters,
        "files": {name: _plain(entry) for name, entry in manifest.files.items()},
        "engines": _plain(engines),
        "damage": damage,
    }


def _count_parameters(directory: Path, info: LanguageModelInfo, damage: list[str]) -> dict[str, int]:
    """Parameters of each graph without the routed experts, and those of these; what cannot be read joins the damage."""
    # Gate, up and down.
    experts = len(info.moe_layers) * info.num_experts * 3 * info.hidden_size * info.moe_intermediate_size
    parameters = {"routed experts": experts}
    # What is no regular file of the size that was exported is not read: a pipe has no end.
    paths = {graph: directory / graph_file(graph) for graph in GRAPHS}
    whole = [graph for graph in GRAPHS if not any(line.startswith(f"{paths[graph]}: ") for line in damage)]
    for graph in whole:
        try:
            parameters[graph] = _parameters(paths[graph])
        except (OSError, ValueError) as error:
            damage.append(f"{paths[graph]}: {error.strerror}" if isinstance(error, OSError) else str(error))
    return parameters


def describe_bundle(directory: Path, found: dict[str, Any]) -> list[str]:
    """Aligned lines of what `inspect_bundle` found, damage first."""
    rows = list(_rows(load_manifest(directory), found))
    width = max(len(name) for name, _ in rows)
    lines = [*(f"DAMAGED: {line}" for line in found["damage"]), *(f"{name:<{width}}  {text}" for name, text in rows)]
    return [without_breaks(line) for line in lines]


def _rows(manifest: Manifest, found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    info, policy, experts = manifest.language_model, manifest.policy, manifest.experts
    yield "model", f"{manifest.model} ({manifest.family})"
    yield "checkpoint", manifest.checkpoint_identity
    yield "exported", f"by fastmmoe {manifest.fastmmoe_version}, bundle format {manifest.format}"
    packed = "" if experts.weight_format == "float" else f", experts {experts.weight_format} by {experts.group_size}"
    packed += "".join(f", {part} {text}" for part, text in _linears(manifest.linears) if text != "float")
    types = f"activations {manifest.activation_dtype}, caches {manifest.cache_dtype}"
    yield "target", f"{manifest.target}, dtype {manifest.dtype}{packed}, {types}"
    yield "layers", f"{info.layers}, {len(info.moe_layers)} with experts: {info.num_experts}, {info.top_k} a token"
    yield "sizes", f"hidden {info.hidden_size:,}, vocabulary {info.vocab_size:,}, heads {info.heads}/{info.kv_heads}"
    yield "positions", f"{manifest.processor.max_position_embeddings:,} tokens at most"
    side, tokens = manifest.processor.tile_size, manifest.vision.tokens_per_tile
    yield "pictures", f"tiles of {side} x {side} pixels, {tokens} tokens each"
    yield "methods", ", ".join(policy.methods)
    yield "default", f"{policy.default_method} at retention {policy.retention:g}, alpha {policy.alpha:g}"
    for method, layers in policy.prune_layers.items():
        yield "prune layers", f"{method} {','.join(map(str, layers))}"
    for part, count in found["parameters"].items():
        yield "parameters", f"{part} {count:,}"
    for name, entry in manifest.files.items():
        yield "file", f"{name}  {entry.bytes:,} bytes"
    engines = found["engines"]
    if engines is not None:
        yield "engines", f"{engines['module']} {engines['tensorrt_version']}: {', '.join(engines['files'])}"


def _linears(linears: LinearsInfo) -> Iterator[tuple[str, str]]:
    for part in linears.__struct_fields__:
        of_part = getattr(linears, part)
        yield part, of_part.weight_format + (f" by {of_part.group_size}" if of_part.group_size else "")


def _parameters(path: Path) -> int:
    """Values in external data: the tensors of a checkpoint, not the constants of a graph.

    Packed linear layers count what they stand for, without scales and zeros; the routed experts are left out.

    Raises:
        ValueError: it is no ONNX graph, or one that no machine could hold.
    """
    weights = [weight for weight in read_weights(path) if weight.location]
    if sum(weight.size for weight in weights) > MOST_VALUES:
        raise ValueError(f"{path}: says that it has more than {MOST_VALUES:,} stored values: damaged")
    counted: dict[str, int] = {}
    for operator in read_operators(path):
        for name, in_an_element in _matrices(operator).items():
            counted |= {name: in_an_element, f"{name}_scale": 0, f"{name}_zero": 0}
    return sum(weight.size * counted.get(weight.name, 1) for weight in weights)


def _matrices(operator: Operator) -> dict[str, int]:
    """Names of an operator's packed weights -> values in an element, 0 for those of routed experts."""
    if operator.kind == "FmmSparseMoE":
        return {name: 0 for name in operator.inputs if name.endswith((".gate_up", ".down"))}
    if operator.kind == "FmmLinear":
        in_an_element = 2 if operator.attributes.get("weight_format") == "int4" else 1
        return dict.fromkeys(operator.inputs[1:2], in_an_element)
    return {}


def _plain(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)
