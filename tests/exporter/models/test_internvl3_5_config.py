# SPDX-License-Identifier: Apache-2.0
"""config.json of InternVL3.5: both layouts, values that are not implemented, numbers that do not go together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models.internvl3_5_config import read_config
from tests.support.published_configs import FORMS, MISSING, Json, refusal


def load(golden: Path, name: str) -> Json:
    config: Json = json.loads((golden / name / "config.json").read_text())
    return config


@pytest.mark.parametrize("name", ["internvl-qwen3moe", "internvl-gptoss"])
def test_both_layouts_read_alike(golden: Path, name: str) -> None:
    hf, original = (vars(read_config(ConfigReader(load(golden, n)))) for n in (name, f"{name}-original"))
    assert hf.pop("is_hf_layout") and not original.pop("is_hf_layout")
    assert hf == original


def test_what_follows_from_the_values() -> None:
    qwen, gpt_oss = (read_config(ConfigReader(FORMS[form]())) for form in ("30B", "20B"))
    assert (qwen.is_gpt_oss, gpt_oss.is_gpt_oss) == (False, True)
    assert (qwen.sliding_layers, qwen.sliding_window, qwen.yarn) == ((), None, None)
    assert qwen.full_attention_layers == qwen.moe_layers == tuple(range(48))
    assert gpt_oss.full_attention_layers == tuple(range(1, 24, 2))
    assert (gpt_oss.moe.scoring_func, gpt_oss.moe.activation, gpt_oss.moe.expert_bias) == (
        "topk_softmax",
        "swiglu_oai",
        True,
    )
    assert qwen.vision.grid == 32


def test_one_count_of_experts_under_either_name() -> None:
    config = FORMS["30B"]()
    config["llm_config"]["num_local_experts"] = config["llm_config"].pop("num_experts")
    assert read_config(ConfigReader(config)).moe.num_experts == 128


# model, dotted key, value, what the message must hold besides file and key
REFUSED: list[tuple[str, str, Any, str]] = [
    ("30B", "llm_config.model_type", "llama", "'llama'; supported: 'qwen3_moe', 'gpt_oss'"),
    ("30B", "ps_version", "v1", "'v1'; supported: 'v2'"),
    ("30B", "ps_version", MISSING, "missing, which means 'v1'; supported: 'v2'"),
    ("30B", "select_layer", -2, "-2; supported: -1"),
    ("30B", "pad2square", True, "True; supported: False"),
    ("30B", "downsample_ratio", 0.25, "0.25; supported: 0.5"),
    ("30B", "llm_config.tie_word_embeddings", True, "True; supported: False"),
    ("30B", "llm_config.hidden_act", "gelu", "'gelu'; supported: 'silu'"),
    ("30B", "llm_config.attention_bias", True, "True; supported: False"),
    ("30B", "llm_config.decoder_sparse_step", 2, "2; supported: 1"),
    ("30B", "llm_config.mlp_only_layers", [0], r"\[0\]; supported: \[\], None"),
    ("30B", "llm_config.use_sliding_window", True, "True; supported: False"),
    ("30B", "llm_config.rope_scaling", {"rope_type": "yarn"}, "'yarn'.*supported: None"),
    ("30B", "llm_config.num_local_experts", 64, "num_experts 128.*num_local_experts 64: expected one count"),
    ("30B", "vision_config.norm_type", "batch_norm", "'batch_norm'; supported: 'layer_norm', 'rms_norm'"),
    ("30B", "vision_config.hidden_act", "gelu_new", "'gelu_new'; supported: 'gelu'"),
    ("30B", "vision_config.image_size", [448, 336], r"\[448, 336\], expected a square"),
    ("20B", "llm_config.swiglu_alpha", 1.0, "1.0; supported: 1.702"),
    ("20B", "llm_config.attention_bias", False, "False; supported: True"),
    ("20B", "llm_config.layer_types", ["full_attention"] * 23, "23 entries.*expected 24"),
    ("20B", "llm_config.layer_types", ["chunked"] * 24, "'chunked'.*sliding_attention and full_attention"),
    ("20B", "llm_config.rope_scaling.rope_type", "linear", "'linear'; supported: 'yarn'"),
    ("20B", "llm_config.rope_scaling.truncate", MISSING, "missing, which means True; supported: False"),
    ("20B", "llm_config.sliding_window", MISSING, "missing, expected a value of type int"),
    ("30B-HF", "text_config.tie_word_embeddings", True, "True; supported: False"),
    ("30B-HF", "tie_word_embeddings", "yes", r"'yes' \(str\), expected a value of type bool or null"),
    ("30B-HF", "vision_feature_layer", -2, "-2; supported: -1"),
    ("30B-HF", "vision_feature_select_strategy", "full", "'full'; supported: 'default'"),
    ("30B-HF", "projector_hidden_act", "relu", "'relu'; supported: 'gelu'"),
    ("30B-HF-5", "text_config.rope_parameters.rope_type", "yarn", "'yarn'; supported: 'default'"),
    ("30B-HF", "vision_config.use_mean_pooling", False, "False; supported: True"),
]


@pytest.mark.parametrize(("form", "key", "value", "message"), REFUSED)
def test_unimplemented_values_are_refused(form: str, key: str, value: Any, message: str) -> None:
    shown = refusal(read_config, FORMS[form](), key, value)
    assert re.search(message, shown), shown


TOGETHER: list[tuple[str, str, Any, str]] = [
    ("internvl-qwen3moe", "text_config.num_experts_per_tok", 13, "is 13, expected at most the 12 experts of a layer"),
    ("internvl-qwen3moe", "text_config.num_key_value_heads", 3, "is 3, expected a divisor of num_attention_heads = 8"),
    ("internvl-qwen3moe", "text_config.head_dim", 2**31, "is 2147483648, expected 1 to 8,192"),
    ("internvl-qwen3moe", "text_config.head_dim", 15, "is 15, expected an even number"),
    ("internvl-qwen3moe", "text_config.layer_types", ["sliding_attention"] * 6, "expected 6 of full_attention"),
    ("internvl-qwen3moe", "text_config.num_local_experts", 4097, "is 4097, expected 1 to 4,096"),
    ("internvl-qwen3moe", "vision_config.hidden_size", 49, "is 49, expected a multiple of the 4 attention heads"),
    ("internvl-qwen3moe", "vision_config.image_size", [434, 434], "is 434, expected an even number of patches"),
    ("internvl-qwen3moe", "vision_config.image_size", [0, 0], "is [0, 0], expected 1 to 16,384 or a list of 1 to"),
    ("internvl-qwen3moe", "vision_config.num_channels", 1, "is 1; supported: 3"),
    ("internvl-gptoss", "text_config.layer_types", ["full_attention"] * 5, "has 5 entries"),
    ("internvl-gptoss", "text_config.sliding_window", 0, "is 0, expected 1 to 16,777,216"),
    ("internvl-gptoss", "text_config.experts_per_token", 2, "is 2; supported: 3"),
    ("internvl-gptoss", "text_config.swiglu_limit", -7.0, "is -7.0, expected more than 0, up to 1e+12"),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), TOGETHER)
def test_numbers_out_of_range_or_against_others(golden: Path, name: str, key: str, value: Any, message: str) -> None:
    shown = refusal(read_config, load(golden, name), key, value)
    assert f"config.json: {key}" in shown and message in shown, shown
