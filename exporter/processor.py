# SPDX-License-Identifier: Apache-2.0
"""The record of preprocessing of a checkpoint directory, whatever its family."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fastmmoe.exporter.checkpoint.chat_template import BUILTIN, choose_template
from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.checkpoint.side_files import SideFiles
from fastmmoe.exporter.checkpoint.tokenizer_files import TOKENIZER, check_encoding
from fastmmoe.exporter.models.configs import config_of
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.types import Say


def read_processor_config(
    model_dir: Path,
    config: ConfigReader,
    *,
    vocab_size: int,
    chat_template: str = BUILTIN,
    say: Say = lambda _: None,
) -> ProcessorConfig:
    """The record of preprocessing, from all files of the checkpoint.

    Args:
        model_dir: holds tokenizer.json and the files that exporter/checkpoint/side_files.py names, where present.
        config: reads config.json.
        vocab_size: rows of the embedding.
        chat_template: BUILTIN or CHECKPOINT.
        say: is called with a line for what the files say and this program does not follow.
    Raises:
        UnsupportedModel: a file is damaged, a value is missing or not implemented, or two files contradict each other.
    """
    files = SideFiles(model_dir)
    result = config_of(config.require("model_type", str)).read_processor(files, config, vocab_size)
    ids = [result.image_token_id, result.bos_token_id, result.pad_token_id, *result.stop_token_ids]
    outside = [i for i in ids if i is not None and not 0 <= i < vocab_size]
    if outside:
        raise UnsupportedModel(f"token ids {outside}: expected ids from 0 to {vocab_size - 1}, the vocabulary's last")
    files.finish(say)
    if files.has(TOKENIZER):
        check_encoding(result, model_dir / TOKENIZER)
    template, line = choose_template(files, result, chat_template)
    if line is not None:
        say(line)
    return msgspec.structs.replace(result, chat_template=template)
