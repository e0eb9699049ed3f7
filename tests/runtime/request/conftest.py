# SPDX-License-Identifier: Apache-2.0
"""Records of preprocessing of the golden checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig
from tests.support.processors import processor_config


@pytest.fixture(scope="session")
def deepseek(checkpoint: Callable[[str], Path]) -> DeepseekVl2ProcessorConfig:
    """That of a DeepSeek-VL2 checkpoint."""
    config = processor_config(checkpoint("dsvl2-mha"))
    assert isinstance(config, DeepseekVl2ProcessorConfig)
    return config


@pytest.fixture(scope="session")
def internvl(checkpoint: Callable[[str], Path]) -> InternVlProcessorConfig:
    """That of an InternVL3.5 checkpoint."""
    config = processor_config(checkpoint("internvl-qwen3moe"))
    assert isinstance(config, InternVlProcessorConfig)
    return config
