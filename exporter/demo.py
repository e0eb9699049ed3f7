# SPDX-License-Identifier: Apache-2.0
"""The built-in checkpoint "demo": a small random DeepSeek-VL2 with its tokenizer, for trying every command offline.

The weights are random, so its answers mean nothing, but they are scaled so that routing and attention are decisive:
which experts a token gets and which visual tokens matter is as clear as in a trained model. It stays under 10 MB.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SEED = 20251117

# DeepSeek-VL2's special tokens, in the order of its vocabulary: three first, the others after the text tokens.
_FIRST_TOKENS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
_LAST_TOKENS = (
    *("<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"),
    *("<|User|>", "<|Assistant|>"),
)
_FIRST_BYTE_ID = len(_FIRST_TOKENS)

_TILE = 384
_MAX_TILES = 9
_PATCH_POSITIONS = (_TILE // 14) ** 2

_LANGUAGE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "vocab_size": 320,
    "hidden_size": 128,
    # 10 rather than the 12 of DeepSeek-VL2-tiny: each MoE layer is 0.9 MB.
    "num_hidden_layers": 10,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "max_position_embeddings": 4096,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
_VISION: dict[str, Any] = {
    "model_type": "vision",
    "model_name": "siglip_so400m_patch14_384",
    "patch_size": 14,
    "width": 72,
    "layers": 3,
    "heads": 4,
    "mlp_ratio": 3.7362,
}

# Standard deviation of a row's output for an input of unit variance. The router's and the queries' and keys' set how
# decisive the model is: logits and scores of a few units, so that softmax is far from uniform.
_ROUTER_GAIN = 2.5
_QUERY_KEY_GAIN = 1.6
_LOGIT_GAIN = 3.0


@dataclass(frozen=True)
class _Weight:
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0


def write_demo_checkpoint(directory: Path) -> None:
    """Write the demo checkpoint into `directory`, which is made if needed; files of the same names are replaced.

    config.json, model.safetensors (bfloat16), tokenizer.json, tokenizer_config.json and processor_config.json, in the
    layout of the published DeepSeek-VL2 checkpoints. The same bytes at each call; those of the weights are the same
    on every machine and with every version of NumPy.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", _config())
    _write_json(directory / "processor_config.json", _processor_config())
    _write_json(directory / "tokenizer_config.json", _tokenizer_config())
    (directory / "tokenizer.json").write_text(_tokenizer_json(), encoding="utf-8")
    _write_safetensors(directory / "model.safetensors", _tensors())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- configuration and tokenizer


def _candidate_resolutions() -> list[list[int]]:
    """[width, height] of every arrangement of up to 9 tiles, in the order of the published files."""
    sides = range(1, _MAX_TILES + 1)
    arrangements = [(w, h) for w in sides for h in sides if w * h <= _MAX_TILES]
    ordered = sorted(arrangements, key=lambda side: (side[0] * side[1], -max(side), side[0]))
    return [[_TILE * w, _TILE * h] for w, h in ordered]


def _config() -> dict[str, Any]:
    return {
        "architectures": ["DeepseekVLV2ForCausalLM"],
        "model_type": "deepseek_vl_v2",
        "torch_dtype": "bfloat16",
        "tile_tag": "2D",
        "global_view_pos": "head",
        "candidate_resolutions": _candidate_resolutions(),
        "language_config": _LANGUAGE,
        "projector_config": {
            "model_type": "mlp_projector",
            "projector_type": "downsample_mlp_gelu",
            "input_dim": _VISION["width"],
            "n_embed": _LANGUAGE["hidden_size"],
        },
        "vision_config": _VISION,
    }


def _processor_config() -> dict[str, Any]:
    return {
        "processor_class": "DeepseekVLV2Processor",
        "candidate_resolutions": _candidate_resolutions(),
        "patch_size": 14,
        "downsample_ratio": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "normalize": True,
        "image_token": "<image>",
        "pad_token": _FIRST_TOKENS[2],
        "add_special_token": False,
        "sft_format": "deepseek",
        "mask_prompt": False,
        "ignore_id": -100,
    }


def _tokenizer_config() -> dict[str, Any]:
    bos, eos, pad = _FIRST_TOKENS
    return {
        "tokenizer_class": "LlamaTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "unk_token": None,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": _LANGUAGE["max_position_embeddings"],
    }


def _text_tokens() -> list[str]:
    """The 256 single-byte tokens of a byte-level vocabulary, in their own (sorted) order."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _tokenizer_json() -> str:
    """A byte-level tokenizer without merges: one token a byte, and DeepSeek-VL2's special tokens."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*_FIRST_TOKENS, *_text_tokens(), *_LAST_TOKENS]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    special = [AddedToken(token, special=True, normalized=False) for token in (*_FIRST_TOKENS, *_LAST_TOKENS)]
    tokenizer.add_special_tokens(special)
    return tokenizer.to_str(pretty=True) + "\n"


# ---- weights


def _linear(name: str, outputs: int, inputs: int, gain: float = 1.0, bias: bool = False) -> dict[str, _Weight]:
    weights = {f"{name}.weight": _Weight((outputs, inputs), gain / math.sqrt(inputs))}
    if bias:
        weights[f"{name}.bias"] = _Weight((outputs,), 0.1)
    return weights


def _norm(name: str, size: int, bias: bool = False) -> dict[str, _Weight]:
    weights = {f"{name}.weight": _Weight((size,), 0.1, mean=1.0)}
    if bias:
        weights[f"{name}.bias"] = _Weight((size,), 0.1)
    return weights


def _vision() -> dict[str, _Weight]:
    C = _VISION["width"]
    hidden = int(C * _VISION["mlp_ratio"])
    weights = {
        "vision.patch_embed.proj.weight": _Weight((C, 3, 14, 14), 0.1),
        "vision.patch_embed.proj.bias": _Weight((C,), 0.1),
        "vision.pos_embed": _Weight((1, _PATCH_POSITIONS, C), 0.5),
    }
    for i in range(_VISION["layers"]):
        block = f"vision.blocks.{i}"
        weights |= _norm(f"{block}.norm1", C, bias=True) | _norm(f"{block}.norm2", C, bias=True)
        weights |= _linear(f"{block}.attn.qkv", 3 * C, C, _QUERY_KEY_GAIN, bias=True)
        weights |= _linear(f"{block}.attn.proj", C, C, bias=True)
        weights |= _linear(f"{block}.mlp.fc1", hidden, C, bias=True) | _linear(f"{block}.mlp.fc2", C, hidden, bias=True)
    weights |= _norm("vision.norm", C, bias=True)
    # The pooling head is in the published checkpoints but never run.
    pool = "vision.attn_pool"
    weights |= {f"{pool}.latent": _Weight((1, 1, C), 1.0)} | _norm(f"{pool}.norm", C, bias=True)
    weights |= _linear(f"{pool}.q", C, C, bias=True) | _linear(f"{pool}.kv", 2 * C, C, bias=True)
    weights |= _linear(f"{pool}.proj", C, C, bias=True)
    return weights | _linear(f"{pool}.mlp.fc1", hidden, C, bias=True) | _linear(f"{pool}.mlp.fc2", C, hidden, bias=True)


def _projector() -> dict[str, _Weight]:
    H = _LANGUAGE["hidden_size"]
    weights = _linear("projector.layers.0", H, 4 * _VISION["width"], bias=True)
    weights |= _linear("projector.layers.2", H, H, 1.5, bias=True)
    return weights | {"image_newline": _Weight((H,), 1.0), "view_seperator": _Weight((H,), 1.0)}


def _attention(layer: str) -> dict[str, _Weight]:
    H, heads, rank = (_LANGUAGE[key] for key in ("hidden_size", "num_attention_heads", "kv_lora_rank"))
    nope, rope, v = (_LANGUAGE[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    name = f"{layer}.self_attn"
    weights = _linear(f"{name}.q_proj", heads * (nope + rope), H, _QUERY_KEY_GAIN)
    weights |= _linear(f"{name}.kv_a_proj_with_mqa", rank + rope, H, _QUERY_KEY_GAIN)
    weights |= _norm(f"{name}.kv_a_layernorm", rank)
    weights |= _linear(f"{name}.kv_b_proj", heads * (nope + v), rank, _QUERY_KEY_GAIN)
    return weights | _linear(f"{name}.o_proj", H, heads * v)


def _mlp(name: str, width: int) -> dict[str, _Weight]:
    H = _LANGUAGE["hidden_size"]
    weights = _linear(f"{name}.gate_proj", width, H, 1.5) | _linear(f"{name}.up_proj", width, H, 1.5)
    return weights | _linear(f"{name}.down_proj", H, width)


def _language() -> dict[str, _Weight]:
    H, V, width = (_LANGUAGE[key] for key in ("hidden_size", "vocab_size", "moe_intermediate_size"))
    weights = {"language.model.embed_tokens.weight": _Weight((V, H), 1.0)}
    for i in range(_LANGUAGE["num_hidden_layers"]):
        layer = f"language.model.layers.{i}"
        weights |= _norm(f"{layer}.input_layernorm", H) | _norm(f"{layer}.post_attention_layernorm", H)
        weights |= _attention(layer)
        if i < _LANGUAGE["first_k_dense_replace"]:
            weights |= _mlp(f"{layer}.mlp", _LANGUAGE["intermediate_size"])
            continue
        weights |= _linear(f"{layer}.mlp.gate", _LANGUAGE["n_routed_experts"], H, _ROUTER_GAIN)
        for e in range(_LANGUAGE["n_routed_experts"]):
            weights |= _mlp(f"{layer}.mlp.experts.{e}", width)
        weights |= _mlp(f"{layer}.mlp.shared_experts", width * _LANGUAGE["n_shared_experts"])
    weights |= _norm("language.model.norm", H)
    return weights | _linear("language.lm_head", V, H, _LOGIT_GAIN)


def _tensors() -> dict[str, npt.NDArray[np.uint16]]:
    """Every tensor as the bits of its bfloat16 values."""
    bits = np.random.PCG64(SEED)
    tensors = {}
    for name, weight in (_vision() | _projector() | _language()).items():
        values = _bell_curve(bits, math.prod(weight.shape)) * np.float32(weight.std) + np.float32(weight.mean)
        tensors[name] = _bfloat16_bits(values.reshape(weight.shape))
    tensors["language.lm_head.weight"][~_printable()] = 0
    return tensors


def _printable() -> npt.NDArray[np.bool_]:
    """[vocab_size] bool: ASCII text. The other tokens have logit 0, so that the demo never writes half a character."""
    ids = np.zeros(_LANGUAGE["vocab_size"], bool)
    for i, token in enumerate(_text_tokens()):
        ids[_FIRST_BYTE_ID + i] = "!" <= token <= "~" or token == "Ġ"  # the vocabulary's spelling of a space
    return ids


def _bell_curve(bits: np.random.PCG64, count: int) -> npt.NDArray[np.float32]:
    """Numbers [count] of mean 0 and variance 1, as sums of four uniform 16-bit integers.

    NumPy promises the raw stream of a bit generator for ever, but not that of its normal distribution, and that one
    goes through the machine's own logarithm.
    """
    sums = bits.random_raw(count).view(np.uint16).reshape(count, 4).sum(axis=1, dtype=np.int64)
    variance = 4 * (65536**2 - 1) / 12
    return ((sums - 2 * 65535) / math.sqrt(variance)).astype(np.float32)


def _bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even."""
    wide = values.view(np.uint32)
    return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype("<u2")


def _write_safetensors(path: Path, tensors: dict[str, npt.NDArray[np.uint16]]) -> None:
    """Write bfloat16 tensors. By hand, since NumPy has no bfloat16 and the bytes must not depend on a library."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "BF16",
            "shape": tensor.shape,
            "data_offsets": (position, position + tensor.nbytes),
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())
