# SPDX-License-Identifier: Apache-2.0
"""Processors of the golden checkpoints and the messages they are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.exporter.config_reader import ConfigReader
from fastmmoe.exporter.processor_config import read_processor_config
from fastmmoe.runtime.processor import Processor


@pytest.fixture(scope="session")
def processor(checkpoint: Callable[[str], Path]) -> Callable[[str], Processor]:
    """Function checkpoint -> its processor."""

    def make(name: str) -> Processor:
        directory = checkpoint(name)
        config = json.loads((directory / "config.json").read_text())
        text = next(config[key] for key in ("language_config", "text_config", "llm_config") if key in config)
        processor_config = read_processor_config(directory, ConfigReader(config), vocab_size=text["vocab_size"])
        return Processor(processor_config, directory / "tokenizer.json")

    return make


@pytest.fixture(scope="session")
def messages(golden: Path) -> Callable[..., list[dict[str, Any]]]:
    """Function (names of golden pictures, text, system=None) -> a user's message with the pictures in front, or where
    a text with pictures has <image>, as the golden prompts do."""

    def make(images: list[str], text: str, system: str | None = None) -> list[dict[str, Any]]:
        pictures = [{"type": "image", "image": golden / "dsvl2-inputs" / f"{name}.png"} for name in images]
        texts = text.split("<image>") if images and "<image>" in text else [*[""] * len(images), text]
        parts = [{"type": "text", "text": one} for one in texts]
        content = [part for pair in zip(parts, pictures, strict=False) for part in pair if part.get("text") != ""]
        asked: list[dict[str, Any]] = [{"role": "user", "content": [*content, parts[-1]]}]
        return asked if system is None else [{"role": "system", "content": system}, *asked]

    return make
