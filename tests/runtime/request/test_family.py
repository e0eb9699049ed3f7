# SPDX-License-Identifier: Apache-2.0
"""Families hold to their protocol: what a cut promises from sizes alone is what pictures then have."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import cast, get_args

import pytest
from PIL import Image

from fastmmoe.runtime.request.config import (
    DeepseekVl2ProcessorConfig,
    FamilyName,
    InternVlProcessorConfig,
    ProcessorConfig,
)
from fastmmoe.runtime.request.family import FAMILIES, Family, family_of, processor_tag
from fastmmoe.runtime.request.image_reader import Picture
from fastmmoe.runtime.request.prompts import Marker

SIZES = [(700, 500), (300, 260), (420, 980)]


@pytest.fixture(params=["deepseek", "internvl"])
def config(request: pytest.FixtureRequest) -> ProcessorConfig:
    """Each family's record."""
    found: ProcessorConfig = request.getfixturevalue(request.param)
    return found


def test_every_record_has_a_family(config: ProcessorConfig) -> None:
    assert family_of(config) is FAMILIES[type(config)]
    assert set(FAMILIES) == set(get_args(ProcessorConfig))


def test_names_and_tags() -> None:
    assert [family.NAME for family in FAMILIES.values()] == [*get_args(FamilyName)]
    assert [processor_tag(name) for name in get_args(FamilyName)] == ["deepseek_vl2", "internvl"]


def test_a_family_has_all_that_is_asked_of_it(config: ProcessorConfig) -> None:
    module = cast(ModuleType, family_of(config))
    for name, asked in inspect.getmembers(Family, inspect.isfunction):
        if not name.startswith("_"):
            names = [*inspect.signature(asked).parameters][1:]
            assert [*inspect.signature(getattr(module, name)).parameters] == names, name
    for name in Family.__annotations__:
        assert isinstance(getattr(module, name), (bool, str)), name


@pytest.mark.parametrize("pictures_before", [0, 2])
@pytest.mark.parametrize("max_tiles", [None, 1, 4])
def test_a_cut_keeps_its_promise(max_tiles: int | None, pictures_before: int, config: ProcessorConfig) -> None:
    family = family_of(config)
    for sizes in ([], SIZES[:1], SIZES):
        cut = family.cut(config, sizes, max_tiles, pictures_before)
        inputs = cut.vision_inputs([Picture(Image.new("RGB", size)) for size in sizes])
        assert len(cut.tile_counts) == len(cut.visual_counts) == len(sizes)
        if not sizes:
            assert inputs == {}
            continue
        side = config.tile_size
        assert inputs["pixel_values"].shape == (sum(cut.tile_counts), 3, side, side)
        assert ("layout_index" in inputs) is family.HAS_LAYOUT
        if family.HAS_LAYOUT:
            assert len(inputs["layout_index"]) == sum(cut.visual_counts)
        assert cut.tile_inputs(inputs["pixel_values"]).keys() == inputs.keys()


def test_bounds_of_engines_hold_for_every_picture(config: ProcessorConfig) -> None:
    family = family_of(config)
    most = family.picture_tiles(config)
    counts: list[int] = []
    for size in [(3000, 300), (300, 3000), (2000, 2000), (2000, 1000), (10, 10), *SIZES]:
        cut = family.cut(config, [size], None, 0)
        counts += cut.tile_counts
        assert sum(cut.visual_counts) <= family.most_visual_tokens(config, sum(cut.tile_counts))
    assert max(counts) == most


def test_markers_and_names_around_pictures(
    deepseek: DeepseekVl2ProcessorConfig, internvl: InternVlProcessorConfig
) -> None:
    family = family_of(deepseek)
    markers = (Marker.BOS, Marker.EOS)
    assert [family.marker_id(deepseek, marker) for marker in markers] == [deepseek.bos_token_id, deepseek.eos_token_id]
    assert family.around_picture(deepseek) == () and family_of(internvl).around_picture(internvl) == ("<img>", "</img>")
    with pytest.raises(AssertionError, match=r"Marker\.EOS in the template internvl2_5"):
        family_of(internvl).marker_id(internvl, Marker.EOS)
