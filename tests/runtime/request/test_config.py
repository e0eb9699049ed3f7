# SPDX-License-Identifier: Apache-2.0
"""Records of preprocessing: stored and read again, what they refuse, what follows from them."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from fastmmoe.runtime.request.config import (
    ChatTemplate,
    DeepseekVl2ProcessorConfig,
    InternVlProcessorConfig,
    ProcessorConfig,
)
from tests.support.processors import MakeProcessor

INTERNVL = ("internvl-qwen3moe", "internvl-gptoss")


def test_config_survives_the_manifest(processor: MakeProcessor) -> None:
    for name in ("dsvl2-mha", *INTERNVL):
        config = processor(name).config
        stored = json.loads(msgspec.json.encode(config))
        assert msgspec.convert(stored, ProcessorConfig) == config
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            msgspec.convert({**stored, "colour": 1}, ProcessorConfig)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": 0}, "Expected `int` >= 1 - at `$.patch_size`"),
        ({"image_std": (0.5, 0.0, 0.5)}, "Expected `float` >= 1e-06 - at `$.image_std[1]`"),
        ({"image_mean": (0.5, 0.5)}, "Expected `array` of length 3"),
        ({"pad_color": (0, 0, 256)}, "Expected `int` <= 255 - at `$.pad_color[2]`"),
        ({"candidate_resolutions": ()}, "Expected `array` of length >= 1 - at `$.candidate_resolutions`"),
        ({"template": "internvl2_5"}, "Invalid enum value 'internvl2_5' - at `$.template`"),
        ({"image_token": ""}, "Expected `str` of length >= 1 - at `$.image_token`"),
        ({"image_token_id": -1}, "Expected `int` >= 0 - at `$.image_token_id`"),
        ({"stop_token_ids": (1 << 22,)}, "Expected `int` <= 4194303 - at `$.stop_token_ids[0]`"),
        ({"type": "other"}, "Invalid value 'other' - at `$.type`"),
    ],
)
def test_records_that_are_refused(changes: dict[str, Any], words: str, deepseek: DeepseekVl2ProcessorConfig) -> None:
    stored = msgspec.to_builtins(deepseek) | changes
    with pytest.raises(msgspec.ValidationError, match=re.escape(words)):
        msgspec.convert(stored, ProcessorConfig)


@pytest.mark.parametrize(
    ("resolution", "patch_size", "downsample_ratio", "side"),
    [((384, 384), 14, 2, 14), ((384, 768), 16, 2, 12), ((16, 32), 4, 2, 2), ((13, 13), 4, 2, 2), ((3, 3), 4, 2, 0)],
)
def test_a_tile_has_a_grid_of_tokens(
    resolution: tuple[int, int],
    patch_size: int,
    downsample_ratio: int,
    side: int,
    deepseek: DeepseekVl2ProcessorConfig,
) -> None:
    """Patches that do not fit are cut off; of tokens a part is one more."""
    config = msgspec.structs.replace(
        deepseek,
        candidate_resolutions=(resolution, (999, 999)),
        patch_size=patch_size,
        downsample_ratio=downsample_ratio,
    )
    assert (config.tile_size, config.grid_side) == (resolution[0], side)


def test_a_template_of_the_checkpoint_is_stored_where_there_is_one(
    deepseek: DeepseekVl2ProcessorConfig, internvl: InternVlProcessorConfig
) -> None:
    """Bundles without one are those of before it was known."""
    template = ChatTemplate(source="{{ messages }}", takes_parts=False, tokens={"bos_token": "<s>"})
    for config in (deepseek, internvl):
        assert b"chat_template" not in msgspec.json.encode(config)
        data = msgspec.json.encode(msgspec.structs.replace(config, chat_template=template))
        assert msgspec.json.decode(data, type=ProcessorConfig).chat_template == template
    with pytest.raises(msgspec.ValidationError, match="Expected `str` of length >= 1"):
        msgspec.convert({"source": "", "takes_parts": True, "tokens": {}}, ChatTemplate)
