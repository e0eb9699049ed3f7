# SPDX-License-Identifier: Apache-2.0
"""The manifest of a bundle that has just been written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from fastmmoe import __version__
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.ops import OPS
from fastmmoe.runtime.bundle import manifest as bundle
from fastmmoe.runtime.bundle.consistency import custom_operators
from fastmmoe.runtime.request.config import ProcessorConfig


def build_manifest(
    directory: Path,
    name: str,
    model: Model,
    processor: ProcessorConfig,
    *,
    target: str,
    dtype: str,
    portable: bool,
    plugin: bundle.PluginInfo | None = None,
) -> bundle.Manifest:
    """The manifest for the files now in the directory."""
    used = custom_operators(model.policy)
    return bundle.Manifest(
        format=bundle.FORMAT,
        fastmmoe_version=__version__,
        model=name,
        family=model.family,
        checkpoint_identity=model.checkpoint.identity,
        target=target,
        # The target has checked both.
        dtype=cast(bundle.Dtype, dtype),
        activation_dtype=cast(bundle.ActivationDtype, str(model.precision.activations).removeprefix("torch.")),
        experts=_experts_info(model.precision),
        ops={spec.name: spec.version for spec in OPS if spec.name in used},
        portable=portable,
        plugin=plugin,
        policy=model.policy,
        processor=processor,
        vision=_vision_info(model),
        language_model=language_model_info(model.config),
        files={path.name: bundle.file_entry(path) for path in sorted(directory.iterdir())},
    )


def _experts_info(precision: Precision) -> bundle.ExpertsInfo:
    packing = None if precision.is_twin else precision.packing
    if packing is None:
        return bundle.ExpertsInfo(weight_format="float", group_size=0, zero_points=False)
    return bundle.ExpertsInfo(
        weight_format=packing.weight_format, group_size=packing.group_size, zero_points=packing.zero_points
    )


def _vision_info(model: Model) -> bundle.VisionInfo:
    vision, module = model.config.vision, model.graphs.vision
    rows = vision.grid**2
    has_class_token = hasattr(module, "class_embedding")
    # InternVL joins 2 x 2 patches to one token; DeepSeek-VL2 pads the grid to a multiple of its ratio first.
    joined = getattr(vision, "downsample_ratio", 2)
    return bundle.VisionInfo(
        layers=vision.layers,
        width=vision.width,
        mlp_width=vision.mlp_width,
        rows_per_tile=rows + has_class_token,
        patch_inputs=3 * vision.patch_size**2,
        tokens_per_tile=(-(-vision.grid // joined)) ** 2,
        projector_inputs=module.projector_in.in_features,
    )


def language_model_info(config: Any) -> bundle.LanguageModelInfo:
    """Sizes of a language model, by which the runtime makes its caches and counts its FLOPs."""
    mla = getattr(config, "mla", None)
    head_dim = config.head_dim if mla is None else mla.qk_nope_head_dim + mla.qk_rope_head_dim
    shared = getattr(config, "n_shared_experts", 0) * config.moe.intermediate_size
    return bundle.LanguageModelInfo(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        query_key_dim=head_dim,
        value_dim=head_dim if mla is None else mla.v_head_dim,
        kv_lora_rank=0 if mla is None else mla.kv_lora_rank,
        rope_dim=head_dim if mla is None else mla.qk_rope_head_dim,
        cache_parts=("key", "value") if mla is None else ("latent",),
        cache_shape=cache_shape(config),
        moe_layers=config.moe_layers,
        num_experts=config.moe.num_experts,
        top_k=config.moe.top_k,
        moe_intermediate_size=config.moe.intermediate_size,
        shared_intermediate_size=shared,
        dense_intermediate_size=getattr(config, "intermediate_size", 0),
        sliding_layers=getattr(config, "sliding_layers", ()),
        sliding_window=getattr(config, "sliding_window", None),
    )


def cache_shape(config: Any) -> tuple[int, ...]:
    """Dimensions of one layer's cache tensor without its length: (Nkv, D), or (rank + rope,) for latent attention."""
    mla = getattr(config, "mla", None)
    if mla is not None:
        return (mla.kv_lora_rank + mla.qk_rope_head_dim,)
    return (config.num_key_value_heads, config.head_dim)
