# SPDX-License-Identifier: Apache-2.0
"""Sizes of the demo model, and its files beside the weights: configuration, processor and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from fastmmoe.calibration.scenes import COLOR_NAMES, SHAPE_NAMES, SIZE

# DeepSeek-VL2's special tokens, in the order of its vocabulary: three first, the others after the text tokens.
FIRST_TOKENS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
LAST_TOKENS = (
    *("<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"),
    *("<|User|>", "<|Assistant|>"),
)
VOCAB_SIZE = 416

LANGUAGE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 256,
    "moe_intermediate_size": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "max_position_embeddings": 2048,
    "q_lora_rank": None,
    "kv_lora_rank": None,
    "qk_nope_head_dim": 0,
    "qk_rope_head_dim": 0,
    "v_head_dim": 0,
    "use_mla": False,
}
VISION: dict[str, Any] = {
    "model_type": "vision",
    "model_name": "siglip_so400m_patch14_384",
    "image_size": SIZE,
    "patch_size": 8,
    "width": 128,
    "layers": 4,
    "heads": 2,
    "mlp_ratio": 4.0,
}
GRID = SIZE // VISION["patch_size"] // 2
"""Rows and columns of visual tokens of a view."""
CANDIDATE_RESOLUTIONS = [[SIZE, SIZE]]


CONFIG = {
    "architectures": ["DeepseekVLV2ForCausalLM"],
    "model_type": "deepseek_vl_v2",
    "torch_dtype": "bfloat16",
    "tile_tag": "2D",
    "global_view_pos": "head",
    "candidate_resolutions": CANDIDATE_RESOLUTIONS,
    "language_config": LANGUAGE,
    "projector_config": {
        "model_type": "mlp_projector",
        "projector_type": "downsample_mlp_gelu",
        "input_dim": VISION["width"],
        "n_embed": LANGUAGE["hidden_size"],
    },
    "vision_config": VISION,
}
PROCESSOR_CONFIG = {
    "processor_class": "DeepseekVLV2Processor",
    "candidate_resolutions": CANDIDATE_RESOLUTIONS,
    "patch_size": VISION["patch_size"],
    "downsample_ratio": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "normalize": True,
    "image_token": "<image>",
    "pad_token": FIRST_TOKENS[2],
    "add_special_token": False,
    "sft_format": "deepseek",
    "mask_prompt": False,
    "ignore_id": -100,
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizerFast",
    "bos_token": FIRST_TOKENS[0],
    "eos_token": FIRST_TOKENS[1],
    "pad_token": FIRST_TOKENS[2],
    "unk_token": None,
    "add_bos_token": False,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "legacy": True,
    "model_max_length": LANGUAGE["max_position_embeddings"],
}


def write_config(directory: Path) -> None:
    """config.json, processor_config.json, tokenizer_config.json and tokenizer.json of the demo checkpoint."""
    _write_json(directory / "config.json", CONFIG)
    _write_json(directory / "processor_config.json", PROCESSOR_CONFIG)
    _write_json(directory / "tokenizer_config.json", TOKENIZER_CONFIG)
    (directory / "tokenizer.json").write_text(_make_tokenizer().to_str(pretty=True) + "\n", encoding="utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _make_tokenizer() -> Tokenizer:
    """Byte-level BPE in which every word of the questions and answers is one token, and any other text is bytes."""
    parts = Sequence([Split(Regex(r" ?\p{L}+|\p{N}|[^\p{L}\p{N}]+"), "isolated"), ByteLevel(False, use_regex=False)])
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = parts
    corpus = [*_phrases(), "\n\n"]
    trainer = BpeTrainer(vocab_size=100_000, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False)
    learner.train_from_iterator(corpus, trainer)
    learned = json.loads(learner.to_str())["model"]
    words = sorted(learned["vocab"], key=lambda word: learned["vocab"][word])
    room = VOCAB_SIZE - len(FIRST_TOKENS) - len(LAST_TOKENS)
    if len(words) > room:
        raise ValueError(f"{len(words)} tokens of text, the vocabulary has room for {room}")
    tokens = [*FIRST_TOKENS, *words, *(f"<unused{i}>" for i in range(room - len(words))), *LAST_TOKENS]
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = parts
    tokenizer.decoder = ByteLevelDecoder()
    special = [AddedToken(token, special=True, normalized=False) for token in (*FIRST_TOKENS, *LAST_TOKENS)]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _phrases() -> list[str]:
    """Text with every word of questions and answers, as it stands in a prompt."""
    texts = ["What color is the cube?", "Which cell holds the cube?", "How many cubes are there?", "Is there a cube?"]
    texts += [
        "Is there a cube left of the ball?",
        "Is there a cube right of the ball?",
        "How many red objects are there?",
    ]
    texts += ["What shape is the red object?", "yes", "no", "There is", "picture", "table", "robot", "gripper"]
    names = (*COLOR_NAMES, *SHAPE_NAMES)
    return [*texts, *names, *(f" {name}" for name in names), *(f" {name}s" for name in SHAPE_NAMES), *"ABCD"]
