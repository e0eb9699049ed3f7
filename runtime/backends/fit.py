# SPDX-License-Identifier: Apache-2.0
"""Checks that a loaded graph is the one that the manifest describes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import MANIFEST, LanguageModelInfo, Manifest, weights_file
from fastmmoe.runtime.bundle.onnx_file import Operator, read_operators, weight_files
from fastmmoe.runtime.bundle.signatures import Signature, Tensor, layer_groups
from fastmmoe.runtime.bundle.storage import LinearInfo
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.method.policy import Policy

Attributes: TypeAlias = Mapping[str, float | str]

TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
}
"""ONNX Runtime's names of element types -> NumPy's."""

LAYER = re.compile(r"layers\.(\d+)\.")


class _Attention(NamedTuple):
    """A layer's attention: attributes, and the caches, lengths and positions that it takes and gives, in order."""

    attributes: Attributes
    taken: list[str]
    given: list[str]


class Session(Protocol):
    """A loaded graph, as ONNX Runtime describes it; each tensor has a name, a type and a shape."""

    def get_inputs(self) -> Sequence[Any]:
        """What it takes."""

    def get_outputs(self) -> Sequence[Any]:
        """What it gives."""


def check_weight_files(path: Path, graph: str, manifest: Manifest) -> None:
    """Raise BundleMismatch where the graph in this file takes weights from a file that is not its own."""
    own = {weights_file(graph)} & manifest.files.keys()
    for name in sorted(weight_files(path) - own):
        raise BundleMismatch(
            f"{path}: has weights in {name!r}, expected {weights_file(graph)}, as listed in {MANIFEST}; copy the whole "
            f"bundle or export again"
        )


def check_operators(path: Path, manifest: Manifest) -> None:
    """Raise BundleMismatch where the operators in a language model's file compute otherwise than the manifest says."""
    info, policy, by_kind = manifest.language_model, manifest.policy, _operators(path)
    for operator in by_kind.get("FmmLinear", []):
        is_head = "lm_head/" in operator.name
        _check_linear(path, operator, manifest, "head" if is_head else "dense")
    for operator in by_kind.get("FmmTokenPrune", []):
        _check_attributes(path, operator, {"window": policy.window, "merge": policy.merge})
    experts = dict.fromkeys(info.moe_layers, _expert_attributes(manifest))
    _check_layers(path, "experts", by_kind.get("FmmSparseMoE", []), experts)
    layers, attention = list(_attention_layers(info, policy)), by_kind.get("FmmAttention", [])
    _check_layers(path, "attention", attention, {i: layer.attributes for i, layer in enumerate(layers)})
    for operator, layer in zip(attention, layers, strict=True):
        _check_caches(path, operator, layer)


def check_linears(path: Path, manifest: Manifest) -> None:
    """Raise BundleMismatch where a vision tower's file stores or computes otherwise than the manifest says."""
    by_kind = _operators(path)
    for operator in by_kind.get("FmmLinear", []):
        _check_linear(path, operator, manifest, "vision")
    for operator in by_kind.get("FmmVisionAttention", []):
        _check_attributes(path, operator, {"compute": "bfloat16"})


def _operators(path: Path) -> dict[str, list[Operator]]:
    """The operators in a file, by kind."""
    try:
        operators = read_operators(path)
    except ValueError as error:
        raise BundleMismatch(f"{error}; copy the whole bundle or export again") from error
    by_kind: dict[str, list[Operator]] = {}
    for operator in operators:
        # In a portable graph nodes of other attributes call a function of another name: FmmAttention_2.
        by_kind.setdefault(operator.kind.partition("_")[0], []).append(operator)
    return by_kind


def _check_linear(path: Path, operator: Operator, manifest: Manifest, part: str) -> None:
    """part: field of LinearsInfo."""
    linears: LinearInfo = getattr(manifest.linears, part)
    weight_format = "float" if linears.weight_format == "bf16" else linears.weight_format
    layout = "tiles" if manifest.has_tiled_linears else "logical"
    expected = {"weight_format": weight_format, "weight_layout": layout}
    _check_attributes(
        path, operator, expected | {"group_size": linears.group_size, "zero_points": int(linears.zero_points)}
    )


def _expert_attributes(manifest: Manifest) -> Attributes:
    experts = manifest.experts
    return {
        "top_k": manifest.language_model.top_k,
        "reduction_weights": manifest.policy.reduction_weights,
        "weight_format": experts.weight_format,
        "group_size": experts.group_size,
        "zero_points": int(experts.zero_points),
    }


def _attention_layers(info: LanguageModelInfo, policy: Policy) -> Iterator[_Attention]:
    """What the manifest decides of every layer's attention: all attributes but whether there are sinks."""
    watched = {site.layer for site in policy.sites if site.watches}
    for g, group in enumerate(layer_groups(info.layers, policy.sites)):
        positions = graph_io.past_position_ids(g)
        # The first layer that needs a group's positions writes them.
        sliding = [layer for layer in group if layer in info.sliding_layers]
        for layer in group:
            slides, writes = layer in sliding, layer in sliding[:1]
            attributes = {
                "window": (info.sliding_window or 0) if slides else 0,
                "value_width": info.kv_lora_rank,
                "scale": float(np.float32(info.query_key_dim**-0.5)),
                "writes_position_ids": int(writes),
                "has_lse": int(layer in watched),
            }
            first, *others = graph_io.past_names(layer, info.cache_parts)
            of_group = [positions if writes else graph_io.present_name(positions)] if slides else []
            written = [first, *others, *([positions] if writes else [])]
            yield _Attention(
                attributes,
                [first, graph_io.past_lengths(g), *others, *of_group],
                [graph_io.present_name(name) for name in written],
            )


def _check_caches(path: Path, operator: Operator, layer: _Attention) -> None:
    """Raise BundleMismatch unless the operator reads and writes the caches of its own layer."""
    for verb, names, expected in (("takes", operator.inputs, layer.taken), ("gives", operator.outputs, layer.given)):
        found = [name for name in names if name.startswith(("past_", "present"))]
        if found != expected:
            raise _misfit(path, f"{operator.name} {verb} {_listed(found)}, expected {_listed(expected)}")


def _check_layers(path: Path, what: str, operators: Sequence[Operator], expected: Mapping[int, Attributes]) -> None:
    """Raise BundleMismatch unless these are the operators of the layers, in order, with the attributes of each."""
    # Nodes are named by the module that they come from.
    layers = [int(layer[1]) if (layer := LAYER.match(one.name)) else None for one in operators]
    if layers != list(expected):
        raise _misfit(path, f"has {what} in layers {_listed(layers)}, expected {_listed(list(expected))}")
    for operator, attributes in zip(operators, expected.values(), strict=True):
        _check_attributes(path, operator, attributes)


def _check_attributes(path: Path, operator: Operator, expected: Attributes) -> None:
    for name, value in expected.items():
        found = operator.attributes.get(name)
        if found != value:
            raise _misfit(path, f"{operator.name} has {name} {found}, expected {value}")


def check_fit(path: Path, session: Session, signature: Signature) -> None:
    """Raise BundleMismatch unless the graph in this file takes and gives what the manifest's numbers ask for."""
    sides = (("input", session.get_inputs(), signature.inputs), ("output", session.get_outputs(), signature.outputs))
    for side, found, expected in sides:
        tensors = [_tensor(one, has_names=side == "input") for one in found]
        for difference in _differences(side, tensors, expected):
            raise _misfit(path, difference)


def _misfit(path: Path, difference: str) -> BundleMismatch:
    return BundleMismatch(
        f"{path}: {difference}, by {MANIFEST}: the graph is of another export or model; copy the whole bundle or "
        f"export again"
    )


def _listed(found: Sequence[int | str | None]) -> str:
    return ", ".join(map(str, found)) or "none"


def _tensor(argument: Any, *, has_names: bool) -> Tensor:
    """has_names: its dimensions that may change have names of our own, which ONNX Runtime leaves as they are."""
    shape = tuple(size if isinstance(size, int) else size if has_names else "" for size in argument.shape)
    return Tensor(argument.name, shape, TYPES.get(argument.type, argument.type))


def _differences(side: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> Iterator[str]:
    by_name = {tensor.name: tensor for tensor in found}
    names = {tensor.name for tensor in expected}
    for name in sorted(by_name.keys() - names):
        yield f"has an {side} {name}, which is not expected"
    for tensor in expected:
        if tensor.name not in by_name:
            yield f"has no {side} {tensor.name}, which is expected"
            continue
        _, shape, dtype = by_name[tensor.name]
        if (dtype, shape) != (tensor.dtype, tensor.shape):
            yield f"{side} {tensor.name} is {dtype} {_shown(shape)}, expected {tensor.dtype} {_shown(tensor.shape)}"


def _shown(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(str(size) or 'any' for size in shape)}]"
