# SPDX-License-Identifier: Apache-2.0
"""What the files of an InternVL3.5 checkpoint say of preprocessing: complete, sparse and contradictory ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.request.config import InternVlProcessorConfig
from tests.support.checkpoint_files import change, read_processor

OwnCheckpoint = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "template", "stop", "bos", "pad", "positions"),
    [
        ("internvl-qwen3moe", "internvl2_5", 382, 380, None, 40960),
        ("internvl-gptoss", "internvl3_5_gpt_oss", 372, None, 371, 131072),
    ],
)
def test_both_internvl_layouts_mean_the_same(
    name: str, template: str, stop: int, bos: int | None, pad: int | None, positions: int, own_checkpoint: OwnCheckpoint
) -> None:
    found = read_processor(own_checkpoint(name))[0]
    assert isinstance(found, InternVlProcessorConfig)
    assert (found.template, found.stop_token_ids, found.image_token_id) == (template, (stop,), 392)
    assert (found.bos_token_id, found.pad_token_id, found.max_position_embeddings) == (bos, pad, positions)
    assert (found.tile_size, found.tokens_per_tile, found.min_tiles, found.max_tiles) == (448, 256, 1, 12)
    assert (found.use_thumbnail, found.image_mean, found.image_std[2]) == (True, (0.485, 0.456, 0.406), 0.225)
    assert read_processor(own_checkpoint(f"{name}-original"))[0] == found


def test_internvl_stop_ids_are_collected_from_all_files(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("internvl-qwen3moe")
    change(directory, "config.json", "text_config.eos_token_id", 380)
    change(directory, "config.json", "eos_token_id", 8)
    change(directory, "generation_config.json", "eos_token_id", [380, 7])
    assert read_processor(directory)[0].stop_token_ids == (382, 380, 8, 7)


def test_internvl_without_a_tokenizer_takes_the_id_of_the_config(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("internvl-qwen3moe")
    (directory / "tokenizer.json").unlink()
    assert read_processor(directory)[0].image_token_id == 392


def test_internvl_image_processor_inside_processor_config(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("internvl-qwen3moe")
    values = json.loads((directory / "preprocessor_config.json").read_text())
    (directory / "preprocessor_config.json").unlink()
    change(directory, "processor_config.json", "image_processor", {**values, "max_patches": 4})
    found = read_processor(directory)[0]
    assert isinstance(found, InternVlProcessorConfig)
    assert found.max_tiles == 4


def test_internvl_image_processors_that_contradict_each_other(own_checkpoint: OwnCheckpoint) -> None:
    """transformers before 5 reads preprocessor_config.json, later versions the part of processor_config.json."""
    directory = own_checkpoint("internvl-qwen3moe")
    values = json.loads((directory / "preprocessor_config.json").read_text())
    change(directory, "processor_config.json", "image_processor", {**values, "data_format": "channels_first"})
    found = read_processor(directory)[0]
    assert isinstance(found, InternVlProcessorConfig) and found.max_tiles == 12
    change(directory, "processor_config.json", "image_processor", {**values, "max_patches": 4})
    with pytest.raises(UnsupportedModel, match=r"differ in max_tiles \(12 and 4\).*remove the one that is not meant"):
        read_processor(directory)


def test_internvl_original_with_its_own_image_processor_file(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("internvl-qwen3moe-original")
    for key, value in (("size", 448), ("resample", 3), ("image_std", [0.5, 0.5, 0.5])):
        change(directory, "preprocessor_config.json", key, value)
    found = read_processor(directory)[0]
    assert isinstance(found, InternVlProcessorConfig)
    assert found.image_std == (0.5, 0.5, 0.5)


HF, ORIGINAL = "internvl-qwen3moe", "internvl-qwen3moe-original"


@pytest.mark.parametrize(
    ("name", "file", "key", "value", "message"),
    [
        (HF, "config.json", "text_config.model_type", "llama", "model_type is 'llama'; supported: 'qwen3_moe'"),
        (HF, "config.json", "text_config.max_position_embeddings", None, "max_position_embeddings is missing"),
        (HF, "config.json", "image_token_id", 391, "config.json has image_token_id 391, tokenizer.json has 392"),
        (HF, "config.json", "image_seq_length", 64, "image_seq_length is 64, expected 256"),
        (
            HF,
            "config.json",
            "vision_config.image_size",
            [448, 224],
            r"image_size is \[448, 224\], expected one side or",
        ),
        (HF, "config.json", "text_config.eos_token_id", 400, r"token ids \[400\]: expected ids from 0 to 399"),
        (HF, "preprocessor_config.json", "size.width", 224, "size is .*224.*, config.json has tiles of 448 pixels"),
        (HF, "preprocessor_config.json", "resample", 2, "resample is 2; supported: 3"),
        (HF, "preprocessor_config.json", "do_normalize", False, "do_normalize is False; supported: True"),
        (ORIGINAL, "config.json", "template", "internvl3_5_gpt_oss", "template is 'internvl3_5_gpt_oss', expected 'in"),
        (ORIGINAL, "config.json", "force_image_size", 224, "force_image_size is 224, expected .* image_size 448"),
        (ORIGINAL, "config.json", "pad2square", True, "pad2square is True; supported: False"),
    ],
)
def test_contradictions_and_unknown_values(
    name: str, file: str, key: str, value: Any, message: str, own_checkpoint: OwnCheckpoint
) -> None:
    directory = own_checkpoint(name)
    if key == "bos_token":
        change(directory, "config.json", "language_config.bos_token_id", None)
    change(directory, file, key, value)
    with pytest.raises(UnsupportedModel, match=message) as error:
        read_processor(directory)
    assert "\n" not in str(error.value)
