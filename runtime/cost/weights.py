# SPDX-License-Identifier: Apache-2.0
"""A model's weights by part: how many there are, from its sizes alone, and the bytes they take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fastmmoe.runtime.backends.elements import item_size
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo, Manifest, VisionInfo
from fastmmoe.runtime.bundle.storage import ExpertsInfo, LinearInfo, LinearsInfo

EXPERTS, HEAD = "routed_experts", "head"
FLOAT32_PARTS = ("router", "rotary")
"""Parts that are float32 in every bundle."""
GRAPH_OF = {"vision": "vision", "embedding": "embedding"}
"""Part -> the graph that holds it; all others are the language model's."""
STORED = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Bytes of an expert's weight that is not packed, by the bundle's dtype."""
SCALE_BYTES, ZERO_BYTES = 2, 1
PANEL, WORD_BYTES, WORD_COLUMNS = 16, 4, {"bf16": 2, "int8": 4, "int4": 8}
"""Of weights in tile order (exporter/ops/tiles.py): outputs of a panel, bytes and columns of a word."""


def projection_weights(info: LanguageModelInfo) -> int:
    """Weights of a layer's attention projections."""
    queries = info.hidden_size * info.heads * info.query_key_dim
    output = info.heads * info.value_dim * info.hidden_size
    if not info.kv_lora_rank:
        return queries + info.hidden_size * info.kv_heads * (info.query_key_dim + info.value_dim) + output
    latent = info.hidden_size * (info.kv_lora_rank + info.rope_dim)
    expanded = info.kv_lora_rank * info.heads * (info.query_key_dim - info.rope_dim + info.value_dim)
    return queries + latent + expanded + output


def expert_weights(info: LanguageModelInfo) -> int:
    """Weights of one routed expert."""
    return 3 * info.hidden_size * info.moe_intermediate_size


def vision_weights(vision: VisionInfo, hidden_size: int) -> dict[str, int]:
    """Weights of the vision graph's matrices by part."""
    return {
        "patches": vision.patch_inputs * vision.width,
        "attention": vision.layers * 4 * vision.width * vision.width,
        "mlp": vision.layers * 2 * vision.width * vision.mlp_width,
        "projector": vision.projector_inputs * hidden_size + hidden_size * hidden_size,
    }


def count_weights(info: LanguageModelInfo, vision: VisionInfo, small: Mapping[str, int]) -> dict[str, int]:
    """Parameters of a model by part.

    Args:
        small: those that are no matrices (norms, biases, positions), by part; the manifest does not tell of them.
    """
    H, moe = info.hidden_size, len(info.moe_layers)
    matrices = {
        "vision": sum(vision_weights(vision, H).values()),
        "embedding": info.vocab_size * H,
        "attention": info.layers * projection_weights(info),
        "dense": (info.layers - moe) * 3 * H * info.dense_intermediate_size,
        "shared_experts": moe * 3 * H * info.shared_intermediate_size,
        EXPERTS: moe * info.num_experts * expert_weights(info),
        "router": moe * info.num_experts * H,
        HEAD: info.vocab_size * H,
    }
    return {part: matrices.get(part, 0) + small.get(part, 0) for part in {**matrices, **small}}


def weights_bytes(manifest: Manifest, counts: Mapping[str, int], *, is_tiled: bool = False) -> dict[str, int]:
    """Bytes of these parameters as a bundle stores them, by part.

    Args:
        is_tiled: the experts are in tile order, of which the manifest does not tell.
    """
    of_activations = item_size(manifest.activation_dtype)
    found = {part: count * (4 if part in FLOAT32_PARTS else of_activations) for part, count in counts.items()}
    for part, rows, columns, count in linear_layers(manifest.language_model, manifest.vision):
        stored = stored_linears(manifest.linears, part)
        if stored.weight_format != "float":
            packed = linear_bytes(rows, columns, stored, is_tiled=manifest.has_tiled_linears)
            found[part] += count * (packed - rows * columns * of_activations)
    info = manifest.language_model
    of_layer = layer_expert_bytes(info, manifest.experts, manifest.dtype, is_tiled=is_tiled)
    return found | {EXPERTS: len(info.moe_layers) * of_layer}


def stored_linears(linears: LinearsInfo, part: str) -> LinearInfo:
    """How a bundle stores the linear layers of a part."""
    return {"vision": linears.vision, HEAD: linears.head}.get(part, linears.dense)


def linear_layers(info: LanguageModelInfo, vision: VisionInfo) -> Iterator[tuple[str, int, int, int]]:
    """Part, outputs, columns and number of the linear layers of one size; latent attention's own matrices are none."""
    yield from decoder_linear_layers(info)
    for _, rows, columns, count in vision_linear_layers(vision, info.hidden_size):
        yield "vision", rows, columns, count


def decoder_linear_layers(info: LanguageModelInfo) -> Iterator[tuple[str, int, int, int]]:
    """Those of the language model."""
    H, moe = info.hidden_size, len(info.moe_layers)
    keys = (
        (info.kv_lora_rank + info.rope_dim,)
        if info.kv_lora_rank
        else (
            info.kv_heads * info.query_key_dim,
            info.kv_heads * info.value_dim,
        )
    )
    for rows in (info.heads * info.query_key_dim, *keys):
        yield "attention", rows, H, info.layers
    yield "attention", H, info.heads * info.value_dim, info.layers
    for part, width, layers in (
        ("dense", info.dense_intermediate_size, info.layers - moe),
        ("shared_experts", info.shared_intermediate_size, moe),
    ):
        if width and layers:
            yield part, width, H, 2 * layers
            yield part, H, width, layers
    yield HEAD, info.vocab_size, H, 1


def vision_linear_layers(vision: VisionInfo, hidden_size: int) -> Iterator[tuple[str, int, int, int]]:
    """The same of the vision graph, by the parts of `vision_weights`."""
    width = vision.width
    yield "attention", 3 * width, width, vision.layers
    yield "attention", width, width, vision.layers
    yield "mlp", vision.mlp_width, width, vision.layers
    yield "mlp", width, vision.mlp_width, vision.layers
    yield "projector", hidden_size, vision.projector_inputs, 1
    yield "projector", hidden_size, hidden_size, 1


def vision_part_bytes(manifest: Manifest) -> dict[str, int]:
    """Bytes of the vision graph's matrices as a bundle stores them, by the parts of `vision_weights`."""
    H, size = manifest.language_model.hidden_size, item_size(manifest.activation_dtype)
    found = {part: count * size for part, count in vision_weights(manifest.vision, H).items()}
    stored = manifest.linears.vision
    if stored.weight_format != "float":
        for part, rows, columns, count in vision_linear_layers(manifest.vision, H):
            packed = linear_bytes(rows, columns, stored, is_tiled=manifest.has_tiled_linears)
            found[part] += count * (packed - rows * columns * size)
    return found


def linear_bytes(rows: int, columns: int, stored: LinearInfo, *, is_tiled: bool) -> int:
    """Bytes of the weights of a packed linear layer; of tiles with what fills up panels and words."""
    word = WORD_COLUMNS[stored.weight_format]
    outputs, of_row = rows, columns * WORD_BYTES // word
    if is_tiled:
        outputs, of_row = -(-rows // PANEL) * PANEL, -(-columns // word) * WORD_BYTES
    if stored.group_size:
        of_group = SCALE_BYTES + (ZERO_BYTES if stored.zero_points else 0)
        of_row += -(-columns // stored.group_size) * of_group
    return outputs * of_row


def _as_linear(experts: ExpertsInfo) -> LinearInfo:
    """A linear layer that is as large as experts of these formats: fp8 takes as many bytes as int8."""
    found = experts.weight_format
    weight_format = "bf16" if found == "float" else "int8" if found == "fp8" else found
    return LinearInfo(weight_format=weight_format, group_size=experts.group_size, zero_points=experts.zero_points)


def layer_expert_bytes(info: LanguageModelInfo, experts: ExpertsInfo, dtype: str, *, is_tiled: bool = False) -> int:
    """Bytes of a layer's routed experts, scales and zeros of packed ones included.

    Args:
        dtype: the bundle's, key of STORED.
        is_tiled: they are in tile order, with what fills up its panels and words.
    """
    H, width = info.hidden_size, info.moe_intermediate_size
    if experts.weight_format == "float" and not is_tiled:
        return info.num_experts * expert_weights(info) * STORED[dtype]
    stored = _as_linear(experts)
    # Gate and up have panels of their own.
    sizes = ((width, H), (width, H), (H, width))
    return info.num_experts * sum(linear_bytes(*size, stored, is_tiled=is_tiled) for size in sizes)


def graph_bytes(parts: Mapping[str, int]) -> dict[str, int]:
    """Bytes by graph, of bytes by part."""
    found: dict[str, int] = {}
    for part, size in parts.items():
        graph = GRAPH_OF.get(part, "language_model")
        found[graph] = found.get(graph, 0) + size
    return found
