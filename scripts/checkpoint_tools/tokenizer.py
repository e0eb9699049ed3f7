# SPDX-License-Identifier: Apache-2.0
"""A tokenizer for checkpoints whose own is not at hand: a token for each byte, and the special ones at their ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{{ '<IMG_CONTEXT>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Of Qwen's models, as other exporters want one beside the tokenizer."""


def write_tokenizer(directory: Path, specials: Mapping[str, int]) -> None:
    """tokenizer.json, a chat template for Qwen's models and, where there is none, tokenizer_config.json."""
    taken = set(specials.values())
    free = (id for id in range(len(specials) + 256) if id not in taken)
    vocabulary = {byte: next(free) for byte in sorted(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(vocabulary | dict(specials), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = directory / "tokenizer_config.json"
    if not settings.exists():
        settings.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}) + "\n", encoding="utf-8")
    if "<|im_start|>" in specials:
        (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
