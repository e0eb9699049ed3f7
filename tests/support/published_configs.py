# SPDX-License-Identifier: Apache-2.0
"""config.json of the published models, in every form they have.

tests/checkpoints holds the files; the 20B and 241B forms and those of other transformers versions follow from them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.runtime.errors import UnsupportedModel

Json = dict[str, Any]


CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"


LANGUAGE_SECTION = {"deepseek_vl_v2": "language_config", "internvl": "text_config", "internvl_chat": "llm_config"}


QWEN3_235B = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "moe_intermediate_size": 1536,
    "max_window_layers": 94,
}


GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 201088,
}


VIT_6B = {
    "hidden_size": 3200,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "norm_type": "rms_norm",
}


# What PretrainedConfig.to_dict() of transformers 4 adds to a section that is written whole.
WHOLE_DICT = json.loads("""{
    "return_dict": true, "output_hidden_states": false, "torchscript": false, "torch_dtype": null, "pruned_heads": {},
    "chunk_size_feed_forward": 0, "is_encoder_decoder": false, "is_decoder": false, "cross_attention_hidden_size": null,
    "add_cross_attention": false, "tie_encoder_decoder": false, "finetuning_task": null, "prefix": null,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "problem_type": null,
    "task_specific_params": null, "tokenizer_class": null, "pad_token_id": null, "sep_token_id": null,
    "decoder_start_token_id": null, "max_length": 20, "min_length": 0, "do_sample": false, "early_stopping": false,
    "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
    "typical_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "bad_words_ids": null, "num_return_sequences": 1, "output_scores": false,
    "return_dict_in_generate": false, "forced_bos_token_id": null, "forced_eos_token_id": null,
    "remove_invalid_values": false, "exponential_decay_length_penalty": null, "suppress_tokens": null,
    "begin_suppress_tokens": null, "tf_legacy_loss": false, "use_bfloat16": false, "output_attentions": false,
    "_attn_implementation_autoset": true
}""")


def load_published(path: str) -> Json:
    config: Json = json.loads((CHECKPOINTS / path).read_text())
    return config


def language_of(config: Json) -> Json:
    section: Json = config[LANGUAGE_SECTION[config["model_type"]]]
    return section


def as_20b(config: Json) -> Json:
    """The GPT-OSS-20B form of a Qwen3 file."""
    config[LANGUAGE_SECTION[config["model_type"]]] = copy.deepcopy(GPT_OSS_20B)
    config |= {key: 2880 for key in ("hidden_size",) if key in config}
    config |= {key: "internvl3_5_gpt_oss" for key in ("template",) if key in config}
    return config


def as_241b(config: Json) -> Json:
    """The 241B form: Qwen3-235B and the 6B tower."""
    language_of(config).update(QWEN3_235B)
    bias, norm = ("qkv_bias", "qk_normalization") if "llm_config" in config else ("attention_bias", "use_qk_norm")
    config["vision_config"] |= VIT_6B | {bias: False, norm: True}
    config |= {key: 4096 for key in ("hidden_size",) if key in config}
    return config


def as_saved_by_4(config: Json) -> Json:
    """A -HF file after save_pretrained of transformers 4.52 to 4.56: tie_word_embeddings is written nowhere."""
    language_of(config).pop("tie_word_embeddings", None)
    return config


def as_saved_by_5(config: Json) -> Json:
    """A -HF file after save_pretrained of transformers 5.23, which reads the missing top-level key as True."""
    text = language_of(config)
    text["rope_parameters"] = {
        "rope_type": "default",
        **(text.pop("rope_scaling") or {}),
        "rope_theta": text.pop("rope_theta"),
    }
    if "num_experts" in text:
        text["num_local_experts"] = text.pop("num_experts")
    text["tie_word_embeddings"] = False
    return config | {"tie_word_embeddings": True}


def as_whole_dict(config: Json) -> Json:
    """A file whose sections were written by to_dict(), as those of InternVL2 were."""
    language, vision = LANGUAGE_SECTION[config["model_type"]], "vision_config"
    for key in (language, vision):
        config[key] = WHOLE_DICT | config[key]
    return config


HF, CONVERTER = "InternVL3_5-30B-A3B-HF/config.json", "InternVL3_5-30B-A3B-HF/config.converter.json"


ORIGINAL = "InternVL3_5-30B-A3B/config.json"


FORMS: dict[str, Callable[[], Json]] = {
    "tiny": lambda: load_published("deepseek-vl2-tiny/config.json"),
    "small": lambda: load_published("deepseek-vl2-small/config.json"),
    "base": lambda: load_published("deepseek-vl2/config.json"),
    "30B": lambda: load_published(ORIGINAL),
    "30B-whole": lambda: as_whole_dict(load_published(ORIGINAL)),
    "30B-HF": lambda: load_published(HF),
    "30B-HF-converter": lambda: load_published(CONVERTER),
    "30B-HF-5": lambda: as_saved_by_5(load_published(HF)),
    "241B": lambda: as_241b(load_published(ORIGINAL)),
    "241B-HF": lambda: as_241b(load_published(HF)),
    "241B-HF-converter": lambda: as_241b(load_published(CONVERTER)),
    "241B-HF-5": lambda: as_saved_by_5(as_241b(load_published(HF))),
    "20B": lambda: as_20b(load_published(ORIGINAL)),
    "20B-HF": lambda: as_saved_by_4(as_20b(load_published(HF))),
    "20B-HF-converter": lambda: as_20b(load_published(CONVERTER)),
    "20B-HF-5": lambda: as_saved_by_5(as_20b(load_published(HF))),
}


MISSING = object()


def changed(config: Json, key: str, value: Any) -> Json:
    """A copy of a file with another value of a dotted key, or without the key where the value is MISSING."""
    config = copy.deepcopy(config)
    *sections, last = key.split(".")
    owner = config
    for section in sections:
        owner = owner[section]
    owner.pop(last, None)
    if value is not MISSING:
        owner[last] = value
    return config


def refusal(read_config: Callable[[ConfigReader], Any], config: Json, key: str, value: Any) -> str:
    """The line with which a file that is read is refused once a key has this value: it names file and key."""
    read_config(ConfigReader(config))
    with pytest.raises(UnsupportedModel) as caught:
        read_config(ConfigReader(changed(config, key, value)))
    shown = str(caught.value)
    assert "config.json" in shown and key.rpartition(".")[2] in shown and "\n" not in shown
    return shown
