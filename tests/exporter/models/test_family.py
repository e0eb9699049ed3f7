# SPDX-License-Identifier: Apache-2.0
"""Families by what config.json says, and that each has what the exporter asks of one."""

from __future__ import annotations

import typing
from typing import Any

import pytest

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models import deepseek_vl2, internvl3_5
from fastmmoe.exporter.models.family import BY_MODEL_TYPE, FAMILIES, Family, ModelConfig, VisionSizes, family_of
from fastmmoe.exporter.pruning.settings import FAMILY_ROWS
from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.published_configs import FORMS

SIZES = ("tiny", "small", "base", "20B", "30B", "241B")


def members(protocol: type) -> set[str]:
    return {name for name in {*vars(protocol), *typing.get_type_hints(protocol)} if not name.startswith("_")}


@pytest.mark.parametrize(
    ("model_type", "family"),
    [("deepseek_vl_v2", deepseek_vl2), ("internvl", internvl3_5), ("internvl_chat", internvl3_5)],
)
def test_a_model_type_is_of_one_family(model_type: str, family: Family) -> None:
    assert family_of(model_type) is family
    assert [f for f in FAMILIES if model_type in f.MODEL_TYPES] == [family]


@pytest.mark.parametrize("model_type", ["llava", "", None, 3, ["internvl"], {"internvl": 1}, "InternVL"])
def test_other_model_types_are_refused(model_type: object) -> None:
    with pytest.raises(UnsupportedModel) as raised:
        family_of(model_type)
    supported = "supported are deepseek_vl_v2, internvl, internvl_chat"
    assert str(raised.value) == f"model_type {model_type!r} in config.json: {supported}"


def test_a_family_has_a_name_of_its_own_and_default_settings() -> None:
    names = [family.PREPROCESSING.NAME for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert set(names) == FAMILY_ROWS.keys()
    assert len(BY_MODEL_TYPE) == sum(len(family.MODEL_TYPES) for family in FAMILIES)


def test_each_has_what_is_asked_of_a_family() -> None:
    asked = members(Family)
    assert {"MODEL_TYPES", "read_config", "weight_map"} <= asked
    for family in FAMILIES:
        assert not [name for name in asked if not hasattr(family, name)], family


@pytest.mark.parametrize("form", SIZES)
def test_each_configuration_has_what_is_asked_of_one(form: str) -> None:
    """Numbers of the tower follow from each other, and those of the decoder fit the cache that it leaves."""
    values = FORMS[form]()
    config: Any = family_of(values["model_type"]).read_config(ConfigReader(values))
    for protocol, record in ((ModelConfig, config), (VisionSizes, config.vision)):
        assert not [name for name in members(protocol) if not hasattr(record, name)]
    vision = config.vision
    patches = (vision.image_size // vision.patch_size) ** 2
    assert vision.rows_per_tile - patches == (0 if form in ("tiny", "small", "base") else 1)
    assert (vision.tokens_per_tile, vision.projector_inputs // vision.width) == (
        (196, 4) if form in ("tiny", "small", "base") else (256, 4)
    )
    assert (config.kv_lora_rank > 0) == (form in ("small", "base"))
    assert (config.query_key_dim, config.value_dim, config.rope_dim) == {
        "tiny": (128, 128, 128),
        "small": (192, 128, 64),
        "base": (192, 128, 64),
        "20B": (64, 64, 64),
        "30B": (128, 128, 128),
        "241B": (128, 128, 128),
    }[form]
    assert bool(config.sliding_layers) == (config.sliding_window is not None) == (form == "20B")
    assert set(config.sliding_layers).isdisjoint(config.full_attention_layers)
    assert (config.shared_intermediate_size, config.dense_intermediate_size) == {
        "tiny": (1792, 6848),
        "small": (2816, 10944),
        "base": (3072, 12288),
    }.get(form, (0, 0))
