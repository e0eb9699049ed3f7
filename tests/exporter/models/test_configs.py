# SPDX-License-Identifier: Apache-2.0
"""Reading config.json: the published models' sizes and default prune layers, and what is refused."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models import deepseek_vl2, internvl3_5
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from fastmmoe.runtime.errors import UnsupportedModel

Json = dict[str, Any]

SIGLIP = {
    "layers": 27,
    "mlp_ratio": 3.7362,
    "model_name": "siglip_so400m_patch14_384",
    "patch_size": 14,
    "width": 1152,
}
# As sparse as the published files: what is not here are class defaults of the official code.
DEEPSEEK_MOE = {
    "first_k_dense_replace": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "q_lora_rank": None,
    "topk_method": "greedy",
}
DEEPSEEK_TINY = DEEPSEEK_MOE | {
    "hidden_size": 1280,
    "num_hidden_layers": 12,
    "vocab_size": 129280,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
    "use_mla": False,
    "kv_lora_rank": None,
    "qk_nope_head_dim": 0,
    "qk_rope_head_dim": 0,
    "v_head_dim": 0,
    "intermediate_size": 6848,
    "moe_intermediate_size": 896,
}
DEEPSEEK_SMALL = DEEPSEEK_MOE | {
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
}
DEEPSEEK_BASE = DEEPSEEK_MOE | {
    "hidden_size": 2560,
    "vocab_size": 129280,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 72,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.0,
}
INTERN_VIT_300M = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
}
INTERN_VIT_6B = {
    "hidden_size": 3200,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "qkv_bias": False,
    "qk_normalization": True,
    "norm_type": "rms_norm",
}
QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 40960,
}
QWEN3_30B = QWEN3_MOE | {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "moe_intermediate_size": 768,
}
QWEN3_235B = QWEN3_MOE | {
    "hidden_size": 4096,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "moe_intermediate_size": 1536,
}
GPT_OSS_20B = {
    "model_type": "gpt_oss",
    "vocab_size": 201088,
    "hidden_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "sliding_window": 128,
    "rope_theta": 150000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
    "max_position_embeddings": 131072,
}


def deepseek(language: Json) -> Json:
    return {
        "model_type": "deepseek_vl_v2",
        "vision_config": SIGLIP,
        "projector_config": {},
        "language_config": language,
    }


def internvl(language: Json, vision: Json = INTERN_VIT_300M) -> Json:
    return {"model_type": "internvl_chat", "ps_version": "v2", "llm_config": language, "vision_config": vision}


def read(config: Json) -> tuple[Any, Any]:
    """(family module, its configuration)."""
    family: Any = deepseek_vl2 if config["model_type"] == "deepseek_vl_v2" else internvl3_5
    return family, family.read_config(ConfigReader(config))


def parameter_counts(config: Json) -> dict[str, int]:
    """Parameters that come from a checkpoint, by graph; "projector" is apart from "vision"."""
    family, c = read(config)
    with torch.device("meta"):
        graphs = family.build_graphs(c, default_policy(config))
    computed = family.computed_weights(c)
    counts = {"vision": 0, "projector": 0, "embedding": 0, "language_model": 0}
    not_tower = ("projector_", "image_newline", "view_seperator")
    for graph, module in graphs.items():
        for name, parameter in module.named_parameters():
            part = "projector" if graph == "vision" and name.startswith(not_tower) else graph
            counts[part] += 0 if f"{graph}.{name}" in computed else parameter.numel()
    return counts


def default_policy(config: Json) -> Any:
    family, c = read(config)
    layers = Layers(c.num_hidden_layers, c.moe_layers, c.full_attention_layers, c.moe.top_k)
    return resolve_policy(PolicyOptions(), family=family.FAMILY, layers=layers)


@pytest.mark.parametrize(
    ("config", "vision", "decoder"),
    [
        (deepseek(DEEPSEEK_TINY), "0.413", "2.93"),
        (deepseek(DEEPSEEK_SMALL), "0.413", "15.71"),
        (deepseek(DEEPSEEK_BASE), "0.413", "27.03"),
        (internvl(GPT_OSS_20B), "0.304", "20.91"),
        (internvl(QWEN3_30B), "0.304", "30.53"),
        (internvl(QWEN3_235B, INTERN_VIT_6B), "5.54", "235.09"),
    ],
    ids=["tiny", "small", "base", "gpt-oss-20b", "qwen3-30b", "qwen3-235b"],
)
def test_published_models_have_their_number_of_parameters(config: Json, vision: str, decoder: str) -> None:
    """In billions: tower without projector; decoder with embedding and head."""
    counts = parameter_counts(config)
    for expected, count in ((vision, counts["vision"]), (decoder, counts["embedding"] + counts["language_model"])):
        decimals = len(expected.split(".")[1])
        assert f"{count / 1e9:.{decimals}f}" == expected


@pytest.mark.parametrize(
    ("config", "prune_layers", "alpha", "merge_ratio"),
    [
        # floor(l * 12 / 27 + 0.5) = 1, 2, 4
        (deepseek(DEEPSEEK_TINY), (1, 2, 4), 0.3, 0.05),
        (deepseek(DEEPSEEK_SMALL), (2, 5, 8), 0.3, 0.05),
        # floor(l * 30 / 27 + 0.5) = 2, 6, 9
        (deepseek(DEEPSEEK_BASE), (2, 6, 9), 0.3, 0.05),
        # floor(l * 24 / 48 + 0.5) = 3, 4, 6; full attention in odd layers only: 3, 5, 7
        (internvl(GPT_OSS_20B), (3, 5, 7), 0.5, 0.025),
        (internvl(QWEN3_30B), (5, 8, 12), 0.5, 0.025),
        # floor(l * 94 / 48 + 0.5) = 10, 16, 24
        (internvl(QWEN3_235B, INTERN_VIT_6B), (10, 16, 24), 0.5, 0.025),
    ],
    ids=["12", "27", "30", "24-gpt-oss", "48", "94"],
)
def test_default_prune_layers(config: Json, prune_layers: tuple[int, ...], alpha: float, merge_ratio: float) -> None:
    policy = default_policy(config)
    assert (policy.prune_layers, policy.alpha, policy.merge_ratio) == ({"fastmmoe": prune_layers}, alpha, merge_ratio)
    assert (policy.stage_exponents, policy.window) == ((1 / 3, 2 / 3, 1.0), 3)
    _, c = read(config)
    reduced = c.moe.top_k // 2
    assert policy.visual_top_k == tuple(c.moe.top_k if layer < 2 else reduced for layer in c.moe_layers)


def test_class_defaults_of_deepseek_base() -> None:
    """What its config.json leaves out is the default of the official configuration class."""
    _, c = read(deepseek(DEEPSEEK_BASE))
    mla = (c.mla.kv_lora_rank, c.mla.qk_nope_head_dim, c.mla.qk_rope_head_dim, c.mla.v_head_dim)
    assert mla == (512, 128, 64, 128)
    assert (c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads) == (30, 32, 32)
    assert (c.moe_layers, c.rms_norm_eps, c.rope_theta) == (tuple(range(1, 30)), 1e-6, 10000.0)
    _, small = read(deepseek(DEEPSEEK_SMALL))
    assert (small.vocab_size, small.moe.scoring_func) == (102400, "softmax")
    assert (small.moe.norm_topk_prob, small.moe.routed_scaling_factor) == (False, 1.0)


@pytest.mark.parametrize("name", ["internvl-qwen3moe", "internvl-gptoss"])
def test_both_layouts_read_alike(golden: Path, name: str) -> None:
    hf, original = (
        vars(read(json.loads((golden / n / "config.json").read_text()))[1]) for n in (name, f"{name}-original")
    )
    assert hf.pop("is_hf_layout") and not original.pop("is_hf_layout")
    assert hf == original


MISSING = object()
# model, dotted key, value, what the message must hold besides file and key
REFUSED: list[tuple[str, str, Any, str]] = [
    (
        "base",
        "language_config.topk_method",
        "noaux_tc2",
        "'noaux_tc2'; supported: 'greedy', 'group_limited_greedy', 'noaux_tc'",
    ),
    ("base", "language_config.topk_method", MISSING, "missing, which means 'gready'; supported: 'greedy'"),
    ("base", "language_config.scoring_func", "tanh", "'tanh'; supported: 'softmax', 'sigmoid'"),
    ("base", "language_config.rope_scaling", {"type": "yarn"}, "'yarn'.*supported: None"),
    ("base", "language_config.q_lora_rank", 1536, "1536; supported: None"),
    ("base", "language_config.q_lora_rank", MISSING, "missing, which means 1536; supported: None"),
    ("base", "language_config.hidden_act", "gelu", "'gelu'; supported: 'silu'"),
    ("base", "language_config.attention_bias", True, "True; supported: False"),
    ("base", "language_config.tie_word_embeddings", True, "True; supported: False"),
    ("base", "language_config.norm_topk_prob", 1, r"1 \(int\), expected a value of type bool"),
    ("base", "language_config.n_routed_experts", MISSING, "missing, expected a value of type int"),
    ("base", "vision_config.model_name", "clip", "'clip'; supported: 'siglip_so400m_patch14_384'"),
    ("base", "vision_config.class_token", True, "True; supported: False"),
    ("base", "vision_config.ignore_head", False, "False; supported: True"),
    ("base", "vision_config.select_layer", -2, "-2; supported: -1"),
    ("base", "projector_config.projector_type", "linear", "'linear'; supported: 'downsample_mlp_gelu'"),
    ("base", "projector_config.depth", 3, "3; supported: 2"),
    ("base", "projector_config.mlp_ratio", 2, "2; supported: 1"),
    ("base", "projector_config.token_pooling", True, "True; supported: False"),
    ("qwen", "llm_config.model_type", "llama", "'llama'; supported: 'qwen3_moe', 'gpt_oss'"),
    ("qwen", "ps_version", "v1", "'v1'; supported: 'v2'"),
    ("qwen", "ps_version", MISSING, "missing, which means 'v1'; supported: 'v2'"),
    ("qwen", "select_layer", -2, "-2; supported: -1"),
    ("qwen", "pad2square", True, "True; supported: False"),
    ("qwen", "downsample_ratio", 0.25, "0.25; supported: 0.5"),
    ("qwen", "llm_config.tie_word_embeddings", True, "True; supported: False"),
    ("qwen", "llm_config.hidden_act", "gelu", "'gelu'; supported: 'silu'"),
    ("qwen", "llm_config.attention_bias", True, "True; supported: False"),
    ("qwen", "llm_config.decoder_sparse_step", 2, "2; supported: 1"),
    ("qwen", "llm_config.mlp_only_layers", [0], r"\[0\]; supported: \[\], None"),
    ("qwen", "llm_config.use_sliding_window", True, "True; supported: False"),
    ("qwen", "llm_config.rope_scaling", {"rope_type": "yarn"}, "'yarn'.*supported: None"),
    ("qwen", "llm_config.num_local_experts", 64, "num_experts 128.*num_local_experts 64: expected one count"),
    ("qwen", "vision_config.norm_type", "batch_norm", "'batch_norm'; supported: 'layer_norm', 'rms_norm'"),
    ("qwen", "vision_config.hidden_act", "gelu_new", "'gelu_new'; supported: 'gelu'"),
    ("qwen", "vision_config.image_size", [448, 336], r"\[448, 336\], expected a square"),
    ("gpt-oss", "llm_config.swiglu_alpha", 1.0, "1.0; supported: 1.702"),
    ("gpt-oss", "llm_config.attention_bias", False, "False; supported: True"),
    ("gpt-oss", "llm_config.layer_types", ["full_attention"] * 23, "23 entries.*expected 24"),
    ("gpt-oss", "llm_config.layer_types", ["chunked"] * 24, "'chunked'.*sliding_attention and full_attention"),
    ("gpt-oss", "llm_config.rope_scaling.rope_type", "linear", "'linear'; supported: 'yarn'"),
    ("gpt-oss", "llm_config.rope_scaling.truncate", MISSING, "missing, which means True; supported: False"),
    ("gpt-oss", "llm_config.sliding_window", MISSING, "missing, expected a value of type int"),
    ("hf", "text_config.tie_word_embeddings", True, "True; supported: False"),
    ("hf", "tie_word_embeddings", "yes", r"'yes' \(str\), expected a value of type bool or null"),
    ("hf", "vision_feature_layer", -2, "-2; supported: -1"),
    ("hf", "vision_feature_select_strategy", "full", "'full'; supported: 'default'"),
    ("hf", "projector_hidden_act", "relu", "'relu'; supported: 'gelu'"),
    ("hf", "text_config.rope_parameters.rope_type", "yarn", "'yarn'; supported: 'default'"),
    ("hf", "vision_config.use_mean_pooling", False, "False; supported: True"),
]


@pytest.mark.parametrize(("model", "key", "value", "message"), REFUSED)
def test_unimplemented_values_are_refused(golden: Path, model: str, key: str, value: Any, message: str) -> None:
    """The message names the file, the key, the value and what is supported."""
    config = {
        "base": deepseek(DEEPSEEK_BASE),
        "qwen": internvl(QWEN3_30B),
        "gpt-oss": internvl(GPT_OSS_20B),
        "hf": json.loads((golden / "internvl-qwen3moe" / "config.json").read_text()),
    }[model]
    read(config)
    config = copy.deepcopy(config)
    *sections, last = key.split(".")
    owner = config
    for section in sections:
        owner = owner[section]
    owner.pop(last, None)
    if value is not MISSING:
        owner[last] = value
    with pytest.raises(UnsupportedModel) as caught:
        read(config)
    shown = str(caught.value)
    assert "config.json" in shown and last in shown and "\n" not in shown
    assert re.search(message, shown), shown
