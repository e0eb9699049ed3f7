# SPDX-License-Identifier: Apache-2.0
"""The manifest of a bundle that has just been written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from fastmmoe import __version__
from fastmmoe.exporter.models.configs import ModelConfig, VisionSizes
from fastmmoe.exporter.ops import OPS
from fastmmoe.runtime.bundle import manifest as bundle
from fastmmoe.runtime.bundle.consistency import custom_operators
from fastmmoe.runtime.bundle.storage import ExpertsInfo, ExpertTensor, LinearInfo, LinearsInfo
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.request.config import ProcessorConfig

if TYPE_CHECKING:
    from fastmmoe.exporter.model import Model
    from fastmmoe.exporter.ops.linear.packing import LinearPacking, LinearPackings
    from fastmmoe.exporter.ops.quantise import Packing


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
    expert_inputs: dict[str, ExpertTensor] | None = None,
) -> bundle.Manifest:
    """The manifest for the files now in the directory."""
    dense, linears = model.precision.linears.dense, linears_info(model.precision.linears)
    used = custom_operators(model.policy, linears, is_tiled=dense is not None and dense.is_tiled)
    return bundle.Manifest(
        format=bundle.FORMAT,
        fastmmoe_version=__version__,
        model=name,
        family=model.family_name,
        checkpoint_identity=model.checkpoint.identity,
        target=target,
        # The target has checked them.
        dtype=cast(bundle.Dtype, dtype),
        activation_dtype=cast(bundle.ElementType, model.precision.activation_dtype),
        cache_dtype=cast(bundle.ElementType, model.precision.cache_dtype),
        experts=experts_info(None if model.precision.is_twin else model.precision.packing, expert_inputs or {}),
        linears=linears,
        ops={spec.name: spec.version for spec in OPS if spec.name in used},
        portable=portable,
        plugin=plugin,
        policy=model.policy,
        processor=processor,
        vision=vision_info(model.config.vision),
        language_model=language_model_info(model.config),
        files={path.name: bundle.file_entry(path) for path in sorted(directory.iterdir())},
    )


def graph_metadata(name: str, model: Model, graph: str) -> dict[str, str]:
    """What a graph's file says of itself to who opens it alone, in `metadata_props`; the manifest is what counts.

    Args:
        name: the model's.
        graph: one of `GRAPHS`; the language model also says how it prunes.
    """
    precision, policy = model.precision, model.policy
    said = {
        "model": name,
        "family": model.family_name,
        "checkpoint_identity": model.checkpoint.identity,
        "fastmmoe_version": __version__,
        "bundle_format": str(bundle.FORMAT),
        "activation_dtype": str(precision.activation_dtype),
    }
    if graph != "language_model":
        return said
    said |= {"cache_dtype": str(precision.cache_dtype), "method": policy.method}
    for method, layers in policy.prune_layers.items():
        said[f"prune_layers.{method}"] = ",".join(map(str, layers))
    if policy.method != UNMODIFIED:
        said |= {"default_method": policy.default_method, "retention": f"{policy.retention:g}"}
        said["alpha"] = f"{policy.alpha:g}"
    return said


def experts_info(packing: Packing | None, inputs: dict[str, ExpertTensor]) -> ExpertsInfo:
    """How a bundle stores its experts, which of them are inputs of the language model."""
    if packing is None:
        return ExpertsInfo(weight_format="float", group_size=0, zero_points=False, inputs=inputs)
    return ExpertsInfo(
        weight_format=packing.weight_format,
        group_size=packing.group_size,
        zero_points=packing.zero_points,
        inputs=inputs,
    )


def linears_info(linears: LinearPackings) -> LinearsInfo:
    """How a bundle stores its linear layers."""
    parts = {part: getattr(linears, part) for part in LinearsInfo.__struct_fields__}
    return LinearsInfo(**{part: _linear_info(packing) for part, packing in parts.items()})


def _linear_info(packing: LinearPacking | None) -> LinearInfo:
    if packing is None:
        return LinearInfo(weight_format="float", group_size=0, zero_points=False)
    return LinearInfo(
        weight_format=packing.weight_format, group_size=packing.group_size, zero_points=packing.zero_points
    )


def vision_info(vision: VisionSizes) -> bundle.VisionInfo:
    """Sizes of a vision tower, by which the runtime counts its FLOPs."""
    return bundle.VisionInfo(
        layers=vision.layers,
        width=vision.width,
        mlp_width=vision.mlp_width,
        rows_per_tile=vision.rows_per_tile,
        patch_inputs=3 * vision.patch_size**2,
        tokens_per_tile=vision.tokens_per_tile,
        projector_inputs=vision.projector_inputs,
    )


def language_model_info(config: ModelConfig) -> bundle.LanguageModelInfo:
    """Sizes of a language model, by which the runtime makes its caches and counts its FLOPs."""
    is_latent = config.kv_lora_rank > 0
    latent_shape, shape = (1, config.kv_lora_rank + config.rope_dim), (config.num_key_value_heads, config.query_key_dim)
    return bundle.LanguageModelInfo(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        query_key_dim=config.query_key_dim,
        value_dim=config.value_dim,
        kv_lora_rank=config.kv_lora_rank,
        rope_dim=config.rope_dim,
        cache_parts=("latent",) if is_latent else ("key", "value"),
        cache_shape=latent_shape if is_latent else shape,
        moe_layers=config.moe_layers,
        num_experts=config.moe.num_experts,
        top_k=config.moe.top_k,
        moe_intermediate_size=config.moe.intermediate_size,
        shared_intermediate_size=config.shared_intermediate_size,
        dense_intermediate_size=config.dense_intermediate_size,
        sliding_layers=config.sliding_layers,
        sliding_window=config.sliding_window,
    )
