# SPDX-License-Identifier: Apache-2.0
"""What the files of a DeepSeek-VL2 checkpoint say of preprocessing: complete, sparse and contradictory ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig
from tests.support.checkpoint_files import change, read_processor

OwnCheckpoint = Callable[[str], Path]


def test_deepseek(own_checkpoint: OwnCheckpoint) -> None:
    found = read_processor(own_checkpoint("dsvl2-mha"), vocab_size=320)[0]
    assert isinstance(found, DeepseekVl2ProcessorConfig)
    assert (found.image_token_id, found.bos_token_id, found.eos_token_id, found.pad_token_id) == (300, 0, 1, 2)
    assert (found.stop_token_ids, found.vocab_size, found.max_position_embeddings) == ((1,), 320, 4096)
    assert (len(found.candidate_resolutions), found.tile_size, found.grid_side) == (23, 384, 14)
    assert (found.pad_color, found.image_mean, found.global_view_first) == ((127,) * 3, (0.5,) * 3, True)


def test_deepseek_without_the_processor_and_tokenizer_files(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("dsvl2-mha")
    complete = read_processor(directory, vocab_size=320)[0]
    (directory / "processor_config.json").unlink()
    assert read_processor(directory, vocab_size=320)[0] == complete
    (directory / "tokenizer_config.json").unlink()
    assert read_processor(directory, vocab_size=320)[0] == complete
    (directory / "tokenizer.json").unlink()
    found = read_processor(directory, vocab_size=320)[0]
    assert isinstance(found, DeepseekVl2ProcessorConfig)
    assert (found.image_token_id, found.bos_token_id, found.eos_token_id, found.pad_token_id) == (None, 0, 1, None)
    change(directory, "config.json", "language_config.eos_token_id", None)
    assert read_processor(directory, vocab_size=320)[0].stop_token_ids == ()


def test_deepseek_tokens_as_objects_and_other_view_order(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("dsvl2-mha")
    change(directory, "tokenizer_config.json", "eos_token", {"content": "<｜end▁of▁sentence｜>", "lstrip": False})
    change(directory, "config.json", "global_view_pos", "tail")
    change(directory, "config.json", "language_config.max_position_embeddings", None)
    found = read_processor(directory, vocab_size=320)[0]
    assert isinstance(found, DeepseekVl2ProcessorConfig)
    # 2048 is the default of the model's configuration class.
    assert (found.eos_token_id, found.global_view_first, found.max_position_embeddings) == (1, False, 2048)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (
            "config.json",
            "model_type",
            "llava",
            "model_type 'llava' in config.json: supported are deepseek_vl_v2, internvl",
        ),
        ("config.json", "tile_tag", "1D", "tile_tag is '1D'; supported: '2D'"),
        ("processor_config.json", "sft_format", "plain", "sft_format is 'plain'; supported: 'deepseek'"),
        ("processor_config.json", "normalize", False, "normalize is False; supported: True"),
        ("processor_config.json", "image_mean", [0.5], r"image_mean is \[0.5\], expected three numbers"),
        ("processor_config.json", "patch_size", 16, "config.json means 14, processor_config.json has 16"),
        ("processor_config.json", "candidate_resolutions", [[384, 384]], "config.json has .* must be equal"),
        ("config.json", "vision_config.image_size", 378, "pairs of multiples of .* image_size 378"),
        ("config.json", "language_config.bos_token_id", 9, "bos_token: config.json has the id 9, .* has 0"),
        ("tokenizer_config.json", "eos_token", "</s>", "eos_token is '</s>', which tokenizer.json does not"),
        ("tokenizer_config.json", "bos_token", None, "bos_token: neither tokenizer_config.json nor config"),
    ],
)
def test_contradictions_and_unknown_values(
    file: str, key: str, value: Any, message: str, own_checkpoint: OwnCheckpoint
) -> None:
    directory = own_checkpoint("dsvl2-mha")
    if key == "bos_token":
        change(directory, "config.json", "language_config.bos_token_id", None)
    change(directory, file, key, value)
    with pytest.raises(UnsupportedModel, match=message) as error:
        read_processor(directory, vocab_size=320)
    assert "\n" not in str(error.value)
