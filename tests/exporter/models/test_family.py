# SPDX-License-Identifier: Apache-2.0
"""Families by what config.json says, and that each has what the exporter asks of its modules."""

from __future__ import annotations

import typing

import pytest

from fastmmoe.exporter.models import deepseek_vl2, internvl3_5
from fastmmoe.exporter.models.configs import CONFIGS
from fastmmoe.exporter.models.family import FAMILIES, Family, family_of
from fastmmoe.exporter.pruning.settings import FAMILY_ROWS


def members(protocol: type) -> set[str]:
    return {name for name in {*vars(protocol), *typing.get_type_hints(protocol)} if not name.startswith("_")}


@pytest.mark.parametrize(
    ("model_type", "family"),
    [("deepseek_vl_v2", deepseek_vl2), ("internvl", internvl3_5), ("internvl_chat", internvl3_5)],
)
def test_a_model_type_is_of_one_family(model_type: str, family: Family) -> None:
    assert family_of(model_type) is family


def test_a_family_has_a_name_of_its_own_and_default_settings() -> None:
    names = [family.PREPROCESSING.NAME for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert set(names) == FAMILY_ROWS.keys()
    assert set(names) == {config.name for config in CONFIGS}


def test_each_has_what_is_asked_of_a_family() -> None:
    asked = members(Family)
    assert {"PREPROCESSING", "read_config", "weight_map"} <= asked
    for family in FAMILIES:
        assert not [name for name in asked if not hasattr(family, name)], family
