# SPDX-License-Identifier: Apache-2.0
"""A toy bundle, processors of the golden checkpoints and the messages they are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.request.tokens import load_tokenizer
from tests.support.manifests import write_toy_bundle
from tests.support.processors import MakeMessages, MakeProcessor, golden_messages, processor_of
from tests.support.scripted_run import GPT_OSS, GptOss


@pytest.fixture
def toy_bundle(tmp_path: Path) -> Path:
    """See `write_toy_bundle`."""
    return write_toy_bundle(tmp_path / "toy")


@pytest.fixture(scope="session")
def processor(checkpoint: Callable[[str], Path]) -> MakeProcessor:
    """Function checkpoint -> its processor."""
    return lambda name: processor_of(checkpoint(name))


@pytest.fixture(scope="session")
def messages(golden: Path) -> MakeMessages:
    """Function (names of golden pictures, text, system=None) -> `golden_messages`."""
    return partial(golden_messages, golden)


@pytest.fixture(scope="session")
def gpt_oss(
    processor: MakeProcessor, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> GptOss:
    """See `GptOss`."""
    values = json.loads((checkpoint(GPT_OSS) / "tokenizer.json").read_text().replace("<unused_378>", "<|call|>"))
    values["added_tokens"].append({**values["added_tokens"][0], "id": 378, "content": "<|call|>"})
    file = tmp_path_factory.mktemp("gpt-oss") / "tokenizer.json"
    file.write_text(json.dumps(values))
    tokenizer = load_tokenizer(file)
    config = processor(GPT_OSS).config
    return GptOss(Processor(config, file), lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids))
