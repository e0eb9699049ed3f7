# SPDX-License-Identifier: Apache-2.0
"""The record of preprocessing: tokenizers that cannot be used and files that are damaged, whatever the family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.checkpoint_files import read_processor

OwnCheckpoint = Callable[[str], Path]


def test_unusable_tokenizers(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("dsvl2-mha")
    with pytest.raises(UnsupportedModel, match=r"tokenizer.json: ids up to 307, expected less than vocab_size 300"):
        read_processor(directory, vocab_size=300)
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=r"cannot be read as a tokenizer.json"):
        read_processor(directory, vocab_size=320)
    original = own_checkpoint("internvl-gptoss-original")
    text = (original / "tokenizer.json").read_text()
    (original / "tokenizer.json").write_text(text.replace("<|return|>", "<|gone|>"))
    with pytest.raises(UnsupportedModel, match=r"tokenizer.json has no token <\|return\|>"):
        read_processor(original)
    (original / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"the id of <IMG_CONTEXT> is unknown"):
        read_processor(original)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not valid JSON"), ("[]", "holds a JSON list, expected an object")]
)
def test_damaged_files(text: str, message: str, own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("dsvl2-mha")
    (directory / "processor_config.json").write_text(text)
    with pytest.raises(UnsupportedModel, match=message):
        read_processor(directory, vocab_size=320)
