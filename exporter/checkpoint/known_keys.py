# SPDX-License-Identifier: Apache-2.0
"""Keys of config.json that are known to be without effect on an export, each group with the reason.

Every other key is read by the family's read_config or by the processor's reader, or is unknown: unknown keys are
listed by the export, those that are named like rotary positions, routing or quantisation are refused.
Source: the published files; the attributes that the official configuration classes and transformers, 4.38 to 5.23,
write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader, is_same, shown
from fastmmoe.runtime.errors import UnsupportedModel


@dataclass(frozen=True)
class Known:
    """Keys of one kind of section.

    Attributes:
        without_effect: reason -> keys of any value.
        without_effect_at: keys that change results -> the values, beside null, at which they do not.
    """

    without_effect: Mapping[str, tuple[str, ...]]
    without_effect_at: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


ANYWHERE = Known(
    without_effect={
        "names of the software that wrote the file or loads it": (
            "architectures",
            "auto_map",
            "transformers_version",
            "_name_or_path",
            "name_or_path",
            "_commit_hash",
            "model_type",
        ),
        "the export chooses its own types, and every tensor says its own": ("torch_dtype", "dtype", "use_bfloat16"),
        "which kernel computes the same": (
            "_attn_implementation",
            "_attn_implementation_autoset",
            "attn_implementation",
            "_experts_implementation",
            "experts_implementation",
            "use_flash_attn",
            "use_fa3",
            "torchscript",
            "chunk_size_feed_forward",
        ),
        "what a call returns beside the logits": (
            "return_dict",
            "return_dict_in_generate",
            "output_hidden_states",
            "output_attentions",
            "output_scores",
            "use_return_dict",
        ),
        "training": (
            "initializer_range",
            "initializer_factor",
            "layer_scale_init_value",
            "attention_dropout",
            "dropout",
            "hidden_dropout_prob",
            "projection_dropout",
            "drop_path_rate",
            "gradient_checkpointing",
            "use_checkpoint",
            "tf_legacy_loss",
        ),
        "heads of classification": (
            "id2label",
            "label2id",
            "num_labels",
            "problem_type",
            "finetuning_task",
            "task_specific_params",
        ),
        "read in the language model's section, or given by the tokenizer": (
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "sep_token_id",
            "decoder_start_token_id",
            "tokenizer_class",
            "prefix",
        ),
        "lengths and sampling of transformers' generate(); requests here have their own": (
            "max_length",
            "do_sample",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
            "early_stopping",
            "length_penalty",
            "diversity_penalty",
            "num_return_sequences",
            "remove_invalid_values",
            "use_cache",
            "is_decoder",
        ),
    },
    without_effect_at={
        "pruned_heads": ({},),
        "is_encoder_decoder": (False,),
        "add_cross_attention": (False,),
        "cross_attention_hidden_size": (),
        "tie_encoder_decoder": (False,),
        # What generate() does to the logits before it takes the best one.
        "num_beams": (1,),
        "num_beam_groups": (1,),
        "min_length": (0,),
        "repetition_penalty": (1,),
        "no_repeat_ngram_size": (0,),
        "encoder_no_repeat_ngram_size": (0,),
        "bad_words_ids": (),
        "forced_bos_token_id": (),
        "forced_eos_token_id": (),
        "exponential_decay_length_penalty": (),
        "suppress_tokens": (),
        "begin_suppress_tokens": (),
    },
)

LANGUAGE = Known(
    without_effect={
        "training of the router": ("router_aux_loss_coef", "aux_loss_alpha", "seq_aux"),
        "router logits are returned beside the result": ("output_router_logits",),
        "how training spread the experts over devices, and its other leftovers": (
            "ep_size",
            "debug",
            "micro_forward",
            "skip_checkpoint",
            "use_deepep",
            "lm_head",
            "rm_head",
        ),
    },
    without_effect_at={"pretraining_tp": (1,), "mlp_bias": (False,)},
)

# A mixture-of-experts tower of InternVL's code that no published model has.
MOE_TOWER_KEYS = (
    "capacity_factor",
    "eval_capacity_factor",
    "laux_allreduce",
    "moe_coeff_ratio",
    "moe_intermediate_size",
    "moe_output_scale",
    "noisy_gate_policy",
    "num_experts",
    "num_routed_experts",
    "num_shared_experts",
    "shared_expert_intermediate_size",
    "use_residual",
    "use_rts",
    "use_weighted_residual",
)

DEEPSEEK_VL2 = {
    "": Known({"the language model's own decides": ("tie_word_embeddings",)}),
    "language_config": Known({}, {"rope_interleave": (True,)}),
    "vision_config": Known(
        {
            "the head, which is not run": ("global_pool", "num_classes"),
            "initial values, memory and order of sums in training": (
                "weight_init",
                "deterministic",
                "num_recomputing_layers",
            ),
            "a tower embeds no words": ("tie_word_embeddings",),
        }
    ),
    "projector_config": Known({"a projector embeds no words": ("tie_word_embeddings",)}),
}

INTERNVL = {
    "": Known(
        {
            "the processor makes as many tokens a tile as the tower gives": ("num_image_token",),
            "training": ("loss_version",),
            "the prompt's own text is the template's or the request's": ("system_message",),
        },
        {"use_backbone_lora": (0,), "use_llm_lora": (0,), "image_fold": ()},
    ),
    "text_config": Known(
        {
            "for layers that are not mixture-of-experts, of which there are none": ("intermediate_size",),
            "for windows, which use_sliding_window and layer_types say there are not": (
                "sliding_window",
                "max_window_layers",
            ),
            "the length of training before YaRN, which the rope block has": ("initial_context_length",),
        }
    ),
    "vision_config": Known(
        {
            "of a mixture-of-experts tower, which use_moe says it is not": MOE_TOWER_KEYS,
            "a tower embeds no words": ("tie_word_embeddings",),
        },
        {"use_moe": (False,)},
    ),
}
INTERNVL["llm_config"] = INTERNVL["text_config"]

REFUSED = {
    "rotary positions": re.compile(r"rope|rotary|yarn|mscale|attention_factor", re.IGNORECASE),
    "routing": re.compile(r"rout|expert|moe|topk|top_k|gate|gating|group", re.IGNORECASE),
    "quantisation": re.compile(r"quant|compress|gptq|awq|bnb|fp8|fp4|_4bit|_8bit", re.IGNORECASE),
}
"""What an unknown key's name says that it changes."""


def sort_keys(known: Mapping[str, Known], reader: ConfigReader, language: ConfigReader) -> None:
    """Count the keys without effect as read, after `read_config` read its own.

    Args:
        known: keys of a family, by section; "" is the file itself.
        reader: reads the file.
        language: reads the language model's section.
    Raises:
        UnsupportedModel: quantised weights; a key with a value at which it has an effect; an unknown key that is named
            like one that changes results; a key of the language model at the top level that contradicts it.
    """
    sections = [reader.section(name) if name else reader for name in known if not name or name in reader.values]
    for section in sections:
        _refuse_quantisation(section)
        tables = [ANYWHERE, known[section.prefix], *([LANGUAGE] if section is language else [])]
        for table in tables:
            ignore_known(section, table)
    _compare_top_level(reader, language)
    for section in sections:
        _refuse_unknown(section)


def ignore_known(section: ConfigReader, known: Known) -> None:
    """Count the keys of a table as read.

    Raises:
        UnsupportedModel: one has a value at which it has an effect.
    """
    section.ignore(*(key for keys in known.without_effect.values() for key in keys))
    for key in known.without_effect_at.keys() & section.values.keys():
        section.choice(key, (*known.without_effect_at[key], None), None)


def _refuse_quantisation(section: ConfigReader) -> None:
    for key in ("quantization_config", "compression_config"):
        value = section.get(key, None, dict | None)
        if value is not None:
            method = shown(value.get("quant_method", "not named"))
            raise UnsupportedModel(
                f"{section.name(key)} says that the weights are quantised (quant_method {method}), which is not read: "
                "give the checkpoint before quantisation, or, if its weights are float32, float16 or bfloat16, remove "
                "this key"
            )


def _compare_top_level(reader: ConfigReader, language: ConfigReader) -> None:
    """Keys of the language model that the file has at its top level as well, where nothing reads them."""
    for key in reader.own_unread():
        if not language.has_read(key):
            continue
        if key in language.values and is_same(reader.values[key], language.values[key]):
            reader.ignore(key)
        elif reader.values[key] is not None:
            there = shown(language.values[key]) if key in language.values else "not there"
            raise UnsupportedModel(
                f"{reader.name(key)} is {shown(reader.values[key])}, in {language.prefix} it is {there}: expected the "
                f"same value, or the key in {language.prefix} alone"
            )


def _refuse_unknown(section: ConfigReader) -> None:
    for key in section.own_unread():
        for what, pattern in REFUSED.items():
            if section.values[key] is not None and pattern.search(key):
                raise UnsupportedModel(
                    f"{section.name(key)} is {shown(section.values[key])}: an unknown key that may change {what}; "
                    "expected a model without it"
                )
