# SPDX-License-Identifier: Apache-2.0
"""Records of preprocessing: stored and read again, what they refuse, what follows from them."""

from __future__ import annotations

import json

import msgspec
import pytest

from fastmmoe.runtime.request.config import ProcessorConfig
from tests.support.processors import MakeProcessor

INTERNVL = ("internvl-qwen3moe", "internvl-gptoss")


def test_config_survives_the_manifest(processor: MakeProcessor) -> None:
    for name in ("dsvl2-mha", *INTERNVL):
        config = processor(name).config
        stored = json.loads(msgspec.json.encode(config))
        assert msgspec.convert(stored, ProcessorConfig) == config
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            msgspec.convert({**stored, "colour": 1}, ProcessorConfig)
