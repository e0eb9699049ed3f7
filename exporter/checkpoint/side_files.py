# SPDX-License-Identifier: Apache-2.0
"""The JSON files beside config.json: of the processor, the tokenizer and generation, with each of their keys sorted.

A key is read, known to be without effect, or unknown. Unknown ones of the processor and of generation are listed, those
of the tokenizer are refused, since what a tokenizer does differently shows in no answer.
Source: what transformers 4.38 to 5.23 writes into these files and reads from them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader, is_same, listed, shown
from fastmmoe.exporter.checkpoint.files import check_small_file, parse_object, read_bytes
from fastmmoe.exporter.checkpoint.known_keys import ANYWHERE, Known, ignore_known
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.types import Say

PROCESSOR = "processor_config.json"
PREPROCESSOR = "preprocessor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
GENERATION = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATE_JSON = "chat_template.json"

_SOFTWARE = ("auto_map", "processor_class", "_name_or_path", "name_or_path", "transformers_version", "_commit_hash")

KNOWN: Mapping[str, Known] = {
    PROCESSOR: Known(
        {
            "names of software": (*_SOFTWARE, "image_processor_type"),
            "training": ("mask_prompt", "ignore_id", "add_special_token"),
            "read by its own name, or of videos": ("chat_template", "video_processor"),
        }
    ),
    PREPROCESSOR: Known(
        {
            "names of software": (*_SOFTWARE, "image_processor_type", "feature_extractor_type", "feature_extractor"),
            "for do_center_crop, do_pad and video, which are not done": ("crop_size", "pad_size", "do_sample_frames"),
            "InternVL's processor switches it on": ("crop_to_patches",),
            "how the same is computed and returned": (
                *("data_format", "input_data_format", "device", "disable_grouping", "return_tensors", "do_convert_rgb"),
                *("default_to_square", "return_row_col_info"),
            ),
        },
        {"do_pad": (False,)},
    ),
    GENERATION: Known(
        {
            **ANYWHERE.without_effect,
            "lengths and memory of generate()": (
                *("max_new_tokens", "max_time", "cache_implementation", "cache_config", "return_legacy_cache"),
                *("low_memory", "disable_compile", "compile_config", "prefill_chunk_size", "use_model_defaults"),
                *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "prompt_lookup_num_tokens"),
                *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "output_logits"),
                *("target_lookbehind", "max_matching_ngram_size", "renormalize_logits", "trust_remote_code"),
            ),
            "of sampling": ("min_p", "top_h", "epsilon_cutoff", "eta_cutoff"),
            "names of software, and the chat format of Qwen": (*_SOFTWARE, "_from_model_config", "chat_format"),
        }
    ),
    TOKENIZER_CONFIG: Known(
        {
            "names of software and files": (
                *(*_SOFTWARE, "tokenizer_class", "tokenizer_type", "tokenizer_file", "vocab_file", "merges_file"),
                *("special_tokens_map_file", "added_tokens_file", "backend", "is_local", "local_files_only"),
                *("from_slow", "use_fast", "trust_remote_code", "legacy", "sp_model_kwargs", "init_inputs"),
                *("device_map", "torch_dtype", "cache_dir", "revision", "subfolder", "token", "fast_tokenizer"),
            ),
            "lengths, padding and truncation, which requests have none of": (
                *("model_max_length", "max_length", "max_len", "padding_side", "truncation_side", "padding"),
                *("truncation", "truncation_strategy", "stride", "pad_to_multiple_of", "pad_token_type_id"),
            ),
            "compared by itself": ("chat_template",),
            "names of what a call returns": ("model_input_names", "return_token_type_ids", "response_schema"),
            "names of tokens, whose ids tokenizer.json has": (
                *("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"),
                *("image_token", "context_image_token"),
                *("start_image_token", "end_image_token", "video_token", "audio_token", "unk_id", "bos_id", "eos_id"),
                *("model_specific_special_tokens", "image_token_id", "video_token_id"),
            ),
            "how broken bytes are shown, and what only slow tokenizers do": (
                *("errors", "spaces_between_special_tokens", "remove_space", "keep_accents", "do_basic_tokenize"),
                *("use_default_system_prompt",),
            ),
        },
    ),
}

# Keys of tokenizer_config.json that change ids: the only value that is implemented, beside null.
TOKENIZER_VALUES: Mapping[str, Any] = {
    "add_prefix_space": False,
    "split_special_tokens": False,
    "do_lower_case": False,
    "add_bos_token": False,
    "add_eos_token": False,
    "fix_mistral_regex": False,
}

# What generate() does to logits, or with them, beside ANYWHERE's: the values at which it does nothing, beside null.
_GENERATION_CHANGES: Mapping[str, tuple[Any, ...]] = {
    **ANYWHERE.without_effect_at,
    "min_new_tokens": (0,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "sequence_bias": ({}, []),
    "stop_strings": ([],),
    "dola_layers": (),
    "constraints": ([],),
    "force_words_ids": ([],),
    "watermarking_config": (),
    "token_healing": (False,),
}


class SideFiles:
    """The files of one checkpoint, each read at its first use; an absent one counts as an empty object."""

    def __init__(self, model_dir: Path) -> None:
        self.directory = model_dir
        self._readers: dict[str, ConfigReader] = {}

    def __getitem__(self, name: str) -> ConfigReader:
        """Raises UnsupportedModel: the file is not a JSON object, or has a key twice."""
        if name not in self._readers:
            file = self.directory / name
            values = parse_object(read_bytes(file), file) if self.has(name) else {}
            self._readers[name] = ConfigReader(values, name)
        return self._readers[name]

    def has(self, name: str) -> bool:
        """Whether a file is there. Raises UnsupportedModel: it is a link to nowhere, empty or a Git LFS pointer."""
        file = self.directory / name
        if not os.path.lexists(file):
            return False
        check_small_file(file)
        return True

    def image_processors(self) -> list[ConfigReader]:
        """preprocessor_config.json, and the part of processor_config.json that newer versions write, where it is there.

        Where both are, transformers before 5 reads the first, later versions read the second.
        """
        found = [self[PREPROCESSOR]] if self.has(PREPROCESSOR) else []
        if not found or "image_processor" in self[PROCESSOR].values:
            found.append(self[PROCESSOR].section("image_processor", optional=True))
        return found

    def finish(self, say: Say) -> None:
        """Sort the keys that nobody read, and report what is not followed.

        Raises:
            UnsupportedModel: an unknown key of the tokenizer, or one with a value that is not implemented.
        """
        for name, reader in self._readers.items():
            if name in KNOWN:
                ignore_known(reader, KNOWN[name])
        if "image_processor" in self[PROCESSOR].values:
            ignore_known(self[PROCESSOR].section("image_processor"), KNOWN[PREPROCESSOR])
        _check_tokenizer_config(self[TOKENIZER_CONFIG], say)
        _report_generation(self[GENERATION], say)
        for name in (PROCESSOR, PREPROCESSOR, GENERATION):
            unread = self._readers[name].unread() if name in self._readers else []
            if unread:
                say(f"{name} keys not read: {listed(unread)}")


def _check_tokenizer_config(reader: ConfigReader, say: Say) -> None:
    for key, value in TOKENIZER_VALUES.items():
        if not reader.has_read(key):
            reader.choice(key, (value, None), None)
    if reader.get("clean_up_tokenization_spaces", None, bool | None):
        say(f"{reader.file}: clean_up_tokenization_spaces is not followed: answers are shown as they are written")
    unknown = reader.own_unread()
    if unknown:
        raise UnsupportedModel(
            f"{reader.name(unknown[0])} is {shown(reader.values[unknown[0]])}: an unknown key that may change how text "
            "becomes tokens; expected a tokenizer without it"
        )


def _report_generation(reader: ConfigReader, say: Say) -> None:
    """One line on what transformers' generate() would do to the logits where no request says so."""
    changed = ["do_sample"] if reader.values.get("do_sample") is True else []
    for key, neutral in _GENERATION_CHANGES.items():
        reader.ignore(key)
        value = reader.values.get(key)
        if value is not None and not any(is_same(value, one) for one in neutral):
            changed.append(key)
    if changed:
        values = ", ".join(f"{key} {shown(reader.values[key])}" for key in changed)
        say(f"{reader.file} is not followed in {values}: a request says how tokens are chosen")
