# SPDX-License-Identifier: Apache-2.0
"""config.json of DeepSeek-VL2: class defaults, values that are not implemented, numbers that do not go together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models.deepseek_vl2_config import MlaConfig, read_config
from tests.support.published_configs import FORMS, MISSING, Json, refusal


def read(form: str) -> Any:
    return read_config(ConfigReader(FORMS[form]()))


def test_class_defaults_of_the_base_model() -> None:
    """What its config.json leaves out is the default of the official configuration class."""
    language = FORMS["base"]()["language_config"]
    absent = ("kv_lora_rank", "v_head_dim", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "rope_theta")
    assert not [key for key in absent if key in language]
    c = read("base")
    assert c.mla == MlaConfig(kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    assert (c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads) == (30, 32, 32)
    assert (c.moe_layers, c.rms_norm_eps, c.rope_theta) == (tuple(range(1, 30)), 1e-6, 10000.0)


def test_class_defaults_of_the_small_model() -> None:
    assert "vocab_size" not in FORMS["small"]()["language_config"]
    c = read("small")
    assert (c.vocab_size, c.moe.scoring_func) == (102400, "softmax")
    assert (c.moe.norm_topk_prob, c.moe.routed_scaling_factor) == (False, 1.0)


def test_what_follows_from_the_values() -> None:
    base, tiny = read("base"), read("tiny")
    assert (base.head_shape, base.full_attention_layers) == ((32, 32, 80), tuple(range(30)))
    assert (tiny.mla, tiny.head_shape) == (None, (10, 10, 128))
    # 384 / 14 patches; floor(1152 * 3.7362).
    assert (base.vision.grid, base.vision.mlp_width) == (27, 4304)


def test_a_moe_block_in_every_other_layer() -> None:
    config = FORMS["tiny"]()
    config["language_config"] |= {"moe_layer_freq": 2, "first_k_dense_replace": 3}
    assert read_config(ConfigReader(config)).moe_layers == (4, 6, 8, 10)


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
]


@pytest.mark.parametrize(("form", "key", "value", "message"), REFUSED)
def test_unimplemented_values_are_refused(form: str, key: str, value: Any, message: str) -> None:
    shown = refusal(read_config, FORMS[form](), key, value)
    assert re.search(message, shown), shown


TOGETHER: list[tuple[str, str, Any, str]] = [
    ("dsvl2-mha", "language_config.num_experts_per_tok", 13, "is 13, expected at most the 12 experts of a layer"),
    ("dsvl2-mha", "language_config.num_experts_per_tok", 17, "is 17, expected 1 to 16"),
    ("dsvl2-mha", "language_config.num_key_value_heads", 3, "is 3, expected a divisor of num_attention_heads = 4"),
    ("dsvl2-mha", "language_config.hidden_size", 65, "is 65, expected a multiple of 8: 4 heads of an even width"),
    ("dsvl2-mha", "language_config.first_k_dense_replace", 6, "is 6, expected a MoE layer among 6 layers"),
    ("dsvl2-mha", "language_config.moe_layer_freq", 0, "is 0, expected 1 to 1,024"),
    ("dsvl2-mha", "language_config.num_hidden_layers", 1_000_000, "is 1000000, expected 1 to 1,024"),
    ("dsvl2-mha", "language_config.head_dim", 32, "is 32; supported: 16, None"),
    ("dsvl2-mha", "vision_config.width", 74, "is 74, expected a multiple of the 4 attention heads"),
    ("dsvl2-mha", "vision_config.heads", 0, "is 0, expected 1 to 1,024"),
    ("dsvl2-mha", "vision_config.patch_size", 385, "is 385, expected at most image_size = 384"),
    ("dsvl2-mha", "vision_config.patch_size", 0, "is 0, expected 1 to 16,384"),
    ("dsvl2-mha", "vision_config.mlp_ratio", 1e-9, "is 1e-09, expected at least one of 72 features"),
    ("dsvl2-mha", "projector_config.n_embed", 65, "is 65, expected language_config.hidden_size = 64"),
    ("dsvl2-mha", "projector_config.input_dim", 73, "is 73, expected vision_config.width = 72"),
    ("dsvl2-mha", "projector_config.downsample_ratio", 0, "is 0, expected 1 to 64"),
    ("dsvl2-mla", "language_config.qk_rope_head_dim", 7, "is 7, expected an even number"),
    ("dsvl2-mla", "language_config.qk_rope_head_dim", 2**31, "is 2147483648, expected 1 to 8,192"),
    ("grouped", "language_config.n_group", 5, "is 5, expected a divisor of the 12 experts of a layer"),
    ("grouped", "language_config.n_group", 12, "is 12, expected at most half of the 12 experts"),
    ("grouped", "language_config.topk_group", 4, "is 4, expected at most n_group = 3"),
    ("grouped", "language_config.n_group", 0, "is 0, expected 1 to 64 or null"),
]


@pytest.mark.parametrize(("model", "key", "value", "message"), TOGETHER)
def test_numbers_out_of_range_or_against_others(golden: Path, model: str, key: str, value: Any, message: str) -> None:
    name = "dsvl2-mha" if model == "grouped" else model
    config: Json = json.loads((golden / name / "config.json").read_text())
    if model == "grouped":
        config["language_config"] |= {"topk_method": "noaux_tc", "n_group": 3, "topk_group": 2}
    shown = refusal(read_config, config, key, value)
    assert f"config.json: {key}" in shown and message in shown, shown
