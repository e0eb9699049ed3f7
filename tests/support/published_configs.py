# SPDX-License-Identifier: Apache-2.0
"""config.json of the published models, in every form they have.

scripts/checkpoint_tools/published.py has the published ones; those of other transformers versions follow from them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.scripts import script

Json = dict[str, Any]


_published = script("checkpoint_tools.published")
LANGUAGE_SECTION, HF, ORIGINAL = _published.LANGUAGE_SECTION, _published.HF, _published.ORIGINAL
load_published, language_of = _published.load_published, _published.language_of
as_20b, as_241b, as_saved_by_4 = _published.as_20b, _published.as_241b, _published.as_saved_by_4


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


CONVERTER = "InternVL3_5-30B-A3B-HF/config.converter.json"


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
