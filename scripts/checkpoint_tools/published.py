# SPDX-License-Identifier: Apache-2.0
"""The published checkpoints, layouts original and -HF: config.json, other files, special tokens, bytes of weights.

tests/checkpoints holds the files; those of the 20B and 241B models follow from the 30B's.
"""

from __future__ import annotations

import copy
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmmoe.runtime.errors import InvalidRequest

Json = dict[str, Any]

CHECKPOINTS = Path(__file__).resolve().parents[2] / "tests" / "checkpoints"
LANGUAGE_SECTION = {"deepseek_vl_v2": "language_config", "internvl": "text_config", "internvl_chat": "llm_config"}
ORIGINAL, HF = "InternVL3_5-30B-A3B/config.json", "InternVL3_5-30B-A3B-HF/config.json"
# No published file was there to say it.
GPT_OSS_IMAGE_TOKEN = 200021

QWEN3_235B: Json = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "moe_intermediate_size": 1536,
    "max_window_layers": 94,
}
GPT_OSS_20B: Json = {
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
VIT_6B: Json = {
    "hidden_size": 3200,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "norm_type": "rms_norm",
}


def load_published(path: str) -> Json:
    config: Json = json.loads((CHECKPOINTS / path).read_text())
    return config


def language_of(config: Json) -> Json:
    section: Json = config[LANGUAGE_SECTION[config["model_type"]]]
    return section


def as_20b(config: Json) -> Json:
    """The GPT-OSS-20B form of a Qwen3 file."""
    config[LANGUAGE_SECTION[config["model_type"]]] = copy.deepcopy(GPT_OSS_20B)
    ids = {"image_token_id": GPT_OSS_IMAGE_TOKEN, "eos_token_id": GPT_OSS_20B["eos_token_id"]}
    config |= {key: id for key, id in ids.items() if key in config}
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


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
        config: makes its config.json.
        files: folder in tests/checkpoints of the other files; None = there are none that the exporter needs.
        specials: ids of the special tokens.
        gigabytes: of all weight files together, 10^9 bytes: the hub's listing, or counted where none was seen.
    """

    config: Callable[[], Json]
    files: str | None
    specials: Mapping[str, int]
    gigabytes: float


_DEEPSEEK_ADDED = (
    "<image>",
    "<|ref|>",
    "<|/ref|>",
    "<|det|>",
    "<|/det|>",
    "<|grounding|>",
    "<|User|>",
    "<|Assistant|>",
)
_BOS, _EOS, _PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"


def _deepseek_specials(bos: int, pad: int, image: int) -> dict[str, int]:
    return {_BOS: bos, _EOS: bos + 1, _PAD: pad} | {name: image + i for i, name in enumerate(_DEEPSEEK_ADDED)}


_QWEN_SPECIALS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<img>": 151669,
    "</img>": 151670,
    "<IMG_CONTEXT>": 151671,
}
_GPT_OSS_SPECIALS = {
    "<|endoftext|>": 199999,
    "<|return|>": 200002,
    "<|channel|>": 200005,
    "<|start|>": 200006,
    "<|end|>": 200007,
    "<|message|>": 200008,
    "<img>": GPT_OSS_IMAGE_TOKEN - 2,
    "</img>": GPT_OSS_IMAGE_TOKEN - 1,
    "<IMG_CONTEXT>": GPT_OSS_IMAGE_TOKEN,
}
_TINY, _SMALL = "deepseek-vl2-tiny", "deepseek-vl2-small"
PUBLISHED: Mapping[str, Published] = types.MappingProxyType(
    {
        _TINY: Published(lambda: load_published(f"{_TINY}/config.json"), _TINY, _deepseek_specials(0, 2, 128815), 6.74),
        _SMALL: Published(
            lambda: load_published(f"{_SMALL}/config.json"), _SMALL, _deepseek_specials(100000, 100002, 100003), 32.29
        ),
        "deepseek-vl2": Published(
            lambda: load_published("deepseek-vl2/config.json"), _TINY, _deepseek_specials(0, 2, 128815), 54.95
        ),
        "InternVL3_5-30B-A3B": Published(lambda: load_published(ORIGINAL), None, _QWEN_SPECIALS, 61.7),
        "InternVL3_5-30B-A3B-HF": Published(lambda: load_published(HF), None, _QWEN_SPECIALS, 61.7),
        "InternVL3_5-241B-A28B": Published(lambda: as_241b(load_published(ORIGINAL)), None, _QWEN_SPECIALS, 481.4),
        "InternVL3_5-241B-A28B-HF": Published(lambda: as_241b(load_published(HF)), None, _QWEN_SPECIALS, 481.4),
        "InternVL3_5-GPT-OSS-20B-A4B-Preview": Published(
            lambda: as_20b(load_published(ORIGINAL)), None, _GPT_OSS_SPECIALS, 42.5
        ),
        "InternVL3_5-GPT-OSS-20B-A4B-Preview-HF": Published(
            lambda: as_saved_by_4(as_20b(load_published(HF))), None, _GPT_OSS_SPECIALS, 42.5
        ),
    }
)


@dataclass(frozen=True)
class Cut:
    """What a checkpoint has less than the published one; None = as many.

    Attributes:
        layers: of the decoder, the first ones.
        vision_layers: of the tower.
        vocab_size: rows of embedding and head; special tokens beyond them move to the end.
        text: other values of the language model's section.
    """

    layers: int | None = None
    vision_layers: int | None = None
    vocab_size: int | None = None
    text: Mapping[str, Any] = field(default_factory=dict)


LEAST_VOCABULARY = 512
"""Bytes and special tokens have room in it."""
_PLACES_OF_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id")


def cut_config(published: Published, cut: Cut) -> tuple[Json, dict[str, int]]:
    """config.json, and the special tokens' ids. Per-layer values follow the layers.

    Raises:
        InvalidRequest: no layer with experts is left, or more is asked for than there is.
    """
    config = copy.deepcopy(published.config())
    text, vision = language_of(config), config["vision_config"]
    if cut.layers is not None:
        _cut_layers(text, cut.layers)
    if cut.vision_layers is not None:
        key = "layers" if "layers" in vision else "num_hidden_layers"
        _check_count("vision layers", cut.vision_layers, 1, vision[key])
        vision[key] = cut.vision_layers
    specials = dict(published.specials)
    if cut.vocab_size is not None:
        # DeepSeek-VL2-small's file leaves its 102,400 to the class.
        _check_count("rows of the vocabulary", cut.vocab_size, LEAST_VOCABULARY, text.get("vocab_size", 102400))
        text["vocab_size"] = cut.vocab_size
        specials = _within(specials, cut.vocab_size)
        moved = {id: specials[name] for name, id in published.specials.items()}
        for section in (config, text):
            section.update({key: moved.get(section[key], section[key]) for key in _PLACES_OF_IDS if key in section})
    text.update(cut.text)
    if "hidden_size" in cut.text:
        _follow_hidden_size(config, cut.text["hidden_size"])
    return config, specials


def _follow_hidden_size(config: Json, hidden_size: int) -> None:
    """The same width where else a file has it: at the top level, and as the projector's outputs."""
    if "hidden_size" in config:
        config["hidden_size"] = hidden_size
    if "projector_config" in config:
        config["projector_config"]["n_embed"] = hidden_size


def _cut_layers(text: Json, layers: int) -> None:
    # The classes of DeepSeek-VL2 say 30, and so many are base's.
    _check_count("layers", layers, 1 + text.get("first_k_dense_replace", 0), text.get("num_hidden_layers", 30))
    text["num_hidden_layers"] = layers
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][:layers]
    if "max_window_layers" in text:
        text["max_window_layers"] = layers


def _check_count(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidRequest(f"{value} {what}: expected {least} to {most}")


def _within(specials: Mapping[str, int], vocab_size: int) -> dict[str, int]:
    """Ids beyond the vocabulary become its last ones, in the same order."""
    beyond = [name for name, id in sorted(specials.items(), key=lambda item: item[1]) if id >= vocab_size]
    return dict(specials) | {name: vocab_size - len(beyond) + i for i, name in enumerate(beyond)}
