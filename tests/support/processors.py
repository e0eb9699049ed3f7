# SPDX-License-Identifier: Apache-2.0
"""Processors of checkpoints, and the messages that they are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.processor import read_processor_config
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.request.processor import Processor
from tests.support.messages import question

MakeProcessor: TypeAlias = Callable[[str], Processor]
MakeMessages: TypeAlias = Callable[..., list[dict[str, Any]]]
TEXT_KEYS = ("language_config", "text_config", "llm_config")


def processor_config(checkpoint: Path, vocab_size: int | None = None) -> ProcessorConfig:
    """What the export writes into the manifest; vocab_size: instead of the checkpoint's."""
    config = json.loads((checkpoint / "config.json").read_text())
    text = next(config[key] for key in TEXT_KEYS if key in config)
    return read_processor_config(checkpoint, ConfigReader(config), vocab_size=vocab_size or text["vocab_size"])


def processor_of(checkpoint: Path, vocab_size: int | None = None) -> Processor:
    """A checkpoint's processor with its tokenizer."""
    return Processor(processor_config(checkpoint, vocab_size), checkpoint / "tokenizer.json")


def golden_messages(golden: Path, images: list[str], text: str, system: str | None = None) -> list[dict[str, Any]]:
    """A user's message with golden pictures in front, or where a text with pictures has <image>, as the golden prompts
    do."""
    asked = question(text, *(golden / "dsvl2-inputs" / f"{name}.png" for name in images), mark="<image>")
    return asked if system is None else [{"role": "system", "content": system}, *asked]
