# SPDX-License-Identifier: Apache-2.0
"""Keys of config.json that nobody reads: known to be without effect, refused by name, or listed as unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.checkpoint.known_keys import ANYWHERE, DEEPSEEK_VL2, INTERNVL, LANGUAGE, Known
from fastmmoe.exporter.models import deepseek_vl2_config, internvl3_5_config
from fastmmoe.runtime.errors import UnsupportedModel

Json = dict[str, Any]
NAMES = ("dsvl2-mha", "dsvl2-mla", "internvl-qwen3moe", "internvl-gptoss", "internvl-qwen3moe-original")
every_model = pytest.mark.parametrize("name", NAMES)


def load(golden: Path, name: str) -> Json:
    config: Json = json.loads((golden / name / "config.json").read_text())
    return config


def unread(config: Json) -> set[str]:
    """Keys not read after read_config; UnsupportedModel where one is refused."""
    family: Any = deepseek_vl2_config if config["model_type"] == "deepseek_vl_v2" else internvl3_5_config
    reader = ConfigReader(config)
    family.read_config(reader)
    return set(reader.unread())


def with_key(config: Json, section: str, key: str, value: Any) -> Json:
    return config | ({section: config[section] | {key: value}} if section else {key: value})


def sections(config: Json) -> list[str]:
    return ["", *(key for key in config if key.endswith("_config"))]


@every_model
def test_an_unknown_key_is_listed(golden: Path, name: str) -> None:
    config = load(golden, name)
    for section in sections(config):
        for value in (1, None, {"a": 1}):
            found = unread(with_key(config, section, "sparkle", value)) - unread(config)
            assert found == {f"{section}.sparkle".lstrip(".")}


@every_model
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rope_interleaved", True, "may change rotary positions"),
        ("rotary_pct", 0.25, "may change rotary positions"),
        ("yarn_mscale", 2.0, "may change rotary positions"),
        ("router_scaling", 2.0, "may change routing"),
        ("num_zero_experts", 8, "may change routing"),
        ("moe_top_k_policy", "max", "may change routing"),
        ("n_expert_groups_used", 2, "may change routing"),
        ("gating_function", "sigmoid", "may change routing"),
        ("weight_quant_bits", 8, "may change quantisation"),
        ("load_in_4bit", True, "may change quantisation"),
    ],
)
def test_an_unknown_key_that_says_what_it_changes_is_refused(
    golden: Path, name: str, key: str, value: Any, message: str
) -> None:
    config = load(golden, name)
    for section in sections(config):
        with pytest.raises(UnsupportedModel, match=rf"{section}.?{key} is .*: an unknown key that {message}"):
            unread(with_key(config, section, key, value))
        # Null switches nothing on.
        assert f"{section}.{key}".lstrip(".") in unread(with_key(config, section, key, None))


@every_model
def test_quantised_weights_are_refused_at_every_level(golden: Path, name: str) -> None:
    config = load(golden, name)
    for section in sections(config):
        for key in ("quantization_config", "compression_config"):
            full = with_key(config, section, key, {"quant_method": "mxfp4", "modules_to_not_convert": []})
            with pytest.raises(UnsupportedModel, match=rf"{section}.?{key} says .*\(quant_method 'mxfp4'\).*remove"):
                unread(full)
            with pytest.raises(UnsupportedModel, match=rf"{section}.?{key} says .*\(quant_method 'not named'\)"):
                unread(with_key(config, section, key, {}))
            assert unread(with_key(config, section, key, None)) == unread(config)


@every_model
def test_keys_of_the_language_model_at_the_top_must_agree(golden: Path, name: str) -> None:
    """As DeepSeek-OCR has them; nothing reads them there."""
    config = load(golden, name)
    language = next(key for key in ("language_config", "text_config", "llm_config") if key in config)
    for key in ("hidden_size", "num_experts_per_tok", "num_hidden_layers", "max_position_embeddings"):
        same, other = config[language][key], config[language][key] * 2
        assert unread(config | {key: same}) == unread(config)
        assert unread(config | {key: None}) >= unread(config)
        with pytest.raises(UnsupportedModel, match=rf"{key} is {other}, in {language} it is {same}: expected the same"):
            unread(config | {key: other})
    with pytest.raises(UnsupportedModel, match=rf"rope_scaling is .*, in {language} it is .*: expected the same value"):
        unread(config | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    with pytest.raises(
        UnsupportedModel, match=rf"rms_norm_eps is 0.5, in {language} it is .*: expected the same value"
    ):
        unread(config | {"rms_norm_eps": 0.5})


def tables(name: str, section: str) -> list[Known]:
    family = DEEPSEEK_VL2 if name.startswith("dsvl2") else INTERNVL
    is_language = section in ("language_config", "text_config", "llm_config")
    return [ANYWHERE, family[section], *([LANGUAGE] if is_language else [])]


@every_model
def test_keys_without_effect_are_not_listed_and_checked_where_other_values_have_one(golden: Path, name: str) -> None:
    config = load(golden, name)
    before = unread(config)
    for section in sections(config):
        for table in tables(name, section):
            assert not table.without_effect_at.keys() & {k for keys in table.without_effect.values() for k in keys}
            for key, values in table.without_effect_at.items():
                for value in (*values, None):
                    assert unread(with_key(config, section, key, value)) == before, (section, key)
                with pytest.raises(UnsupportedModel, match=rf"{section}.?{key} is 'other'; supported: "):
                    unread(with_key(config, section, key, "other"))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "num_beams", 4),
        ("text_config", "repetition_penalty", 1.1),
        ("text_config", "suppress_tokens", [7]),
        ("text_config", "pretraining_tp", 2),
        ("text_config", "pruned_heads", {"0": [1]}),
        ("text_config", "is_encoder_decoder", True),
        ("", "use_llm_lora", 16),
        ("", "use_backbone_lora", 16),
        ("vision_config", "use_moe", True),
        ("vision_config", "num_channels", 4),
        ("vision_config", "model_type", "siglip_vision_model"),
    ],
)
def test_values_that_have_an_effect_are_refused(golden: Path, section: str, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModel, match=rf"{section}.?{key} is .*; supported: "):
        unread(with_key(load(golden, "internvl-qwen3moe"), section, key, value))
