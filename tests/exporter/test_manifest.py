# SPDX-License-Identifier: Apache-2.0
"""The manifest of a written bundle: what it says of the model, its sizes and its files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmmoe import __version__
from fastmmoe.exporter.manifest import build_manifest, graph_metadata, language_model_info
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.runtime.bundle.manifest import FORMAT, FileEntry, Manifest, PluginInfo, VisionInfo
from fastmmoe.runtime.bundle.storage import ExpertsInfo
from tests.support.models import FLOAT16, model_of
from tests.support.processors import processor_config

Checkpoints = Callable[[str], Path]


def manifest_of(directory: Path, model: Model, **options: Any) -> Manifest:
    given: dict[str, Any] = {"target": "cpu", "dtype": "fp16", "portable": True} | options
    return build_manifest(directory, "toy", model, processor_config(model.checkpoint.path), **given)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        (
            "dsvl2-mha",
            {
                "query_key_dim": 16,
                "value_dim": 16,
                "rope_dim": 16,
                "kv_lora_rank": 0,
                "cache_parts": ("key", "value"),
                "cache_shape": (4, 16),
                "moe_layers": (1, 2, 3, 4, 5),
            },
        ),
        ("dsvl2-mla", {"cache_parts": ("latent",), "moe_layers": (1, 2, 3, 4, 5), "sliding_window": None}),
        (
            "internvl-gptoss",
            {
                "cache_parts": ("key", "value"),
                "moe_layers": (0, 1, 2, 3, 4, 5),
                "shared_intermediate_size": 0,
                "dense_intermediate_size": 0,
                "sliding_layers": (0, 2, 4),
            },
        ),
    ],
)
def test_sizes_of_a_language_model(checkpoint: Checkpoints, name: str, sizes: dict[str, Any]) -> None:
    model = model_of(checkpoint(name))
    info, config = language_model_info(model.config), model.config
    assert {key: getattr(info, key) for key in sizes} == sizes
    assert (info.layers, info.heads, info.kv_heads, info.num_experts, info.top_k) == (
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.moe.num_experts,
        config.moe.top_k,
    )


def test_a_latent_row_is_rank_and_rotated_part(checkpoint: Checkpoints) -> None:
    model = model_of(checkpoint("dsvl2-mla"))
    config: Any = model.config
    info = language_model_info(config)
    mla = config.mla
    assert info.cache_shape == (1, mla.kv_lora_rank + mla.qk_rope_head_dim)
    assert (info.query_key_dim, info.rope_dim) == (mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla.qk_rope_head_dim)
    assert (info.value_dim, info.kv_lora_rank) == (mla.v_head_dim, mla.kv_lora_rank)


def test_what_a_manifest_says(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Files are those of the directory, by name; the operators are those that the policy's graph has."""
    for name, content in (("b.onnx", b"bb"), ("a.data", b"")):
        (tmp_path / name).write_bytes(content)
    model = model_of(checkpoint("dsvl2-mha"), FLOAT16, prune_layers=(1, 2, 3))
    plugin = PluginInfo(version="1", architecture="aarch64")
    manifest = manifest_of(tmp_path, model, target="jetson-orin", portable=False, plugin=plugin)
    assert list(manifest.files) == ["a.data", "b.onnx"]
    assert manifest.files["b.onnx"] == FileEntry(bytes=2, sha256=hashlib.sha256(b"bb").hexdigest())
    assert (manifest.model, manifest.family, manifest.fastmmoe_version) == ("toy", "deepseek_vl2", __version__)
    assert (manifest.target, manifest.dtype, manifest.activation_dtype) == ("jetson-orin", "fp16", "float16")
    assert (manifest.portable, manifest.plugin, manifest.policy) == (False, plugin, model.policy)
    assert manifest.checkpoint_identity == model.checkpoint.identity
    assert manifest.ops == {"FmmAttention": 1, "FmmSparseMoE": 1, "FmmTokenPrune": 1}
    # 27 x 27 patches of 14, padded to 14 x 14 tokens of 2 x 2.
    assert manifest.vision == VisionInfo(
        layers=3,
        width=72,
        mlp_width=269,
        rows_per_tile=729,
        patch_inputs=588,
        tokens_per_tile=196,
        projector_inputs=288,
    )


def test_a_graph_without_sites_has_no_operator_that_prunes(checkpoint: Checkpoints, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, model_of(checkpoint("dsvl2-mha"), method="none"))
    assert manifest.ops == {"FmmAttention": 1, "FmmSparseMoE": 1}


@pytest.mark.parametrize(
    ("packing", "experts"),
    [
        (None, ExpertsInfo(weight_format="float", group_size=0, zero_points=False)),
        (Packing("int4", 32, True), ExpertsInfo(weight_format="int4", group_size=32, zero_points=True)),
    ],
)
def test_how_experts_are_stored(
    checkpoint: Checkpoints, tmp_path: Path, packing: Packing | None, experts: ExpertsInfo
) -> None:
    """The twin of packed experts holds floats: it is what the check runs."""
    precision = replace(Precision(torch.float16, torch.float16), packing=packing)
    model = model_of(checkpoint("internvl-qwen3moe"), precision)
    assert manifest_of(tmp_path, model).experts == experts
    twin = model_of(checkpoint("internvl-qwen3moe"), precision.float32_twin())
    found = manifest_of(tmp_path, twin, dtype="fp32")
    assert found.experts == ExpertsInfo(weight_format="float", group_size=0, zero_points=False)
    assert found.activation_dtype == "float32"


def test_what_a_graph_says_of_itself(checkpoint: Checkpoints) -> None:
    model = model_of(checkpoint("dsvl2-mha"), prune_layers=(1, 3), retention=0.25)
    vision, language_model = (graph_metadata("toy", model, graph) for graph in ("vision", "language_model"))
    assert vision == {
        "model": "toy",
        "family": "deepseek_vl2",
        "checkpoint_identity": model.checkpoint.identity,
        "fastmmoe_version": __version__,
        "bundle_format": str(FORMAT),
        "activation_dtype": "float32",
    }
    assert language_model == vision | {
        "cache_dtype": "float32",
        "method": "fastmmoe",
        "prune_layers.fastmmoe": "1,3",
        "default_method": "fastmmoe",
        "retention": "0.25",
        "alpha": f"{model.policy.alpha:g}",
    }
    unmodified = graph_metadata("toy", model_of(checkpoint("dsvl2-mha"), method="none"), "language_model")
    assert unmodified == vision | {"cache_dtype": "float32", "method": "none"}
