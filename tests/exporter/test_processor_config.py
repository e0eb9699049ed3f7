# SPDX-License-Identifier: Apache-2.0
"""What preprocessing reads from checkpoint directories, complete, sparse, contradictory and damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.processor import read_processor_config
from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, InternVlProcessorConfig, ProcessorConfig

OwnCheckpoint = Callable[[str], Path]
VOCAB_SIZE = {"dsvl2-mha": 320}


def _read(directory: Path, name: str, say: Callable[[str], None] = lambda _: None) -> ProcessorConfig:
    config = ConfigReader(json.loads((directory / "config.json").read_text()))
    return read_processor_config(directory, config, vocab_size=VOCAB_SIZE.get(name, 400), say=say)


def _change(directory: Path, file: str, path: str, value: Any) -> None:
    """Set a dotted key of a JSON file (None = remove it); an absent file starts empty."""
    target = directory / file
    values = json.loads(target.read_text()) if target.is_file() else {}
    *parents, key = path.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    if value is None:
        del inner[key]
    else:
        inner[key] = value
    target.write_text(json.dumps(values))


def test_deepseek(own_checkpoint: OwnCheckpoint) -> None:
    found = _read(own_checkpoint("dsvl2-mha"), "dsvl2-mha")
    assert isinstance(found, DeepseekVl2ProcessorConfig)
    assert (found.image_token_id, found.bos_token_id, found.eos_token_id, found.pad_token_id) == (300, 0, 1, 2)
    assert (found.stop_token_ids, found.vocab_size, found.max_position_embeddings) == ((1,), 320, 4096)
    assert (len(found.candidate_resolutions), found.tile_size, found.grid_side) == (23, 384, 14)
    assert (found.pad_color, found.image_mean, found.global_view_first) == ((127,) * 3, (0.5,) * 3, True)


def test_deepseek_without_the_processor_and_tokenizer_files(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("dsvl2-mha")
    complete = _read(directory, "dsvl2-mha")
    (directory / "processor_config.json").unlink()
    assert _read(directory, "dsvl2-mha") == complete
    (directory / "tokenizer_config.json").unlink()
    assert _read(directory, "dsvl2-mha") == complete
    (directory / "tokenizer.json").unlink()
    found = _read(directory, "dsvl2-mha")
    assert isinstance(found, DeepseekVl2ProcessorConfig)
    assert (found.image_token_id, found.bos_token_id, found.eos_token_id, found.pad_token_id) == (None, 0, 1, None)
    _change(directory, "config.json", "language_config.eos_token_id", None)
    assert _read(directory, "dsvl2-mha").stop_token_ids == ()


def test_deepseek_tokens_as_objects_and_other_view_order(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("dsvl2-mha")
    _change(directory, "tokenizer_config.json", "eos_token", {"content": "<｜end▁of▁sentence｜>", "lstrip": False})
    _change(directory, "config.json", "global_view_pos", "tail")
    _change(directory, "config.json", "language_config.max_position_embeddings", None)
    found = _read(directory, "dsvl2-mha")
    assert isinstance(found, DeepseekVl2ProcessorConfig)
    # 2048 is the default of the model's configuration class.
    assert (found.eos_token_id, found.global_view_first, found.max_position_embeddings) == (1, False, 2048)


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
    found = _read(own_checkpoint(name), name)
    assert isinstance(found, InternVlProcessorConfig)
    assert (found.template, found.stop_token_ids, found.image_token_id) == (template, (stop,), 392)
    assert (found.bos_token_id, found.pad_token_id, found.max_position_embeddings) == (bos, pad, positions)
    assert (found.tile_size, found.tokens_per_tile, found.min_tiles, found.max_tiles) == (448, 256, 1, 12)
    assert (found.use_thumbnail, found.image_mean, found.image_std[2]) == (True, (0.485, 0.456, 0.406), 0.225)
    assert _read(own_checkpoint(f"{name}-original"), name) == found


def test_internvl_stop_ids_are_collected_from_all_files(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("internvl-qwen3moe")
    _change(directory, "config.json", "text_config.eos_token_id", 380)
    _change(directory, "config.json", "eos_token_id", 8)
    _change(directory, "generation_config.json", "eos_token_id", [380, 7])
    assert _read(directory, "internvl-qwen3moe").stop_token_ids == (382, 380, 8, 7)


def test_internvl_without_a_tokenizer_takes_the_id_of_the_config(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("internvl-qwen3moe")
    (directory / "tokenizer.json").unlink()
    assert _read(directory, "internvl-qwen3moe").image_token_id == 392


def test_internvl_image_processor_inside_processor_config(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("internvl-qwen3moe")
    values = json.loads((directory / "preprocessor_config.json").read_text())
    (directory / "preprocessor_config.json").unlink()
    _change(directory, "processor_config.json", "image_processor", {**values, "max_patches": 4})
    found = _read(directory, "internvl-qwen3moe")
    assert isinstance(found, InternVlProcessorConfig)
    assert found.max_tiles == 4


def test_internvl_image_processors_that_contradict_each_other(own_checkpoint: OwnCheckpoint) -> None:
    """transformers before 5 reads preprocessor_config.json, later versions the part of processor_config.json."""
    directory = own_checkpoint("internvl-qwen3moe")
    values = json.loads((directory / "preprocessor_config.json").read_text())
    _change(directory, "processor_config.json", "image_processor", {**values, "data_format": "channels_first"})
    found = _read(directory, "internvl-qwen3moe")
    assert isinstance(found, InternVlProcessorConfig) and found.max_tiles == 12
    _change(directory, "processor_config.json", "image_processor", {**values, "max_patches": 4})
    with pytest.raises(UnsupportedModel, match=r"differ in max_tiles \(12 and 4\).*remove the one that is not meant"):
        _read(directory, "internvl-qwen3moe")


def test_internvl_original_with_its_own_image_processor_file(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("internvl-qwen3moe-original")
    for key, value in (("size", 448), ("resample", 3), ("image_std", [0.5, 0.5, 0.5])):
        _change(directory, "preprocessor_config.json", key, value)
    found = _read(directory, "internvl-qwen3moe")
    assert isinstance(found, InternVlProcessorConfig)
    assert found.image_std == (0.5, 0.5, 0.5)


DEEPSEEK, HF, ORIGINAL = "dsvl2-mha", "internvl-qwen3moe", "internvl-qwen3moe-original"


@pytest.mark.parametrize(
    ("name", "file", "key", "value", "message"),
    [
        (
            DEEPSEEK,
            "config.json",
            "model_type",
            "llava",
            "model_type 'llava' in config.json: supported are deepseek_vl_v2, internvl",
        ),
        (DEEPSEEK, "config.json", "tile_tag", "1D", "tile_tag is '1D'; supported: '2D'"),
        (DEEPSEEK, "processor_config.json", "sft_format", "plain", "sft_format is 'plain'; supported: 'deepseek'"),
        (DEEPSEEK, "processor_config.json", "normalize", False, "normalize is False; supported: True"),
        (DEEPSEEK, "processor_config.json", "image_mean", [0.5], r"image_mean is \[0.5\], expected three numbers"),
        (DEEPSEEK, "processor_config.json", "patch_size", 16, "config.json means 14, processor_config.json has 16"),
        (DEEPSEEK, "processor_config.json", "candidate_resolutions", [[384, 384]], "config.json has .* must be equal"),
        (DEEPSEEK, "config.json", "vision_config.image_size", 378, "pairs of multiples of .* image_size 378"),
        (DEEPSEEK, "config.json", "language_config.bos_token_id", 9, "bos_token: config.json has the id 9, .* has 0"),
        (DEEPSEEK, "tokenizer_config.json", "eos_token", "</s>", "eos_token is '</s>', which tokenizer.json does not"),
        (DEEPSEEK, "tokenizer_config.json", "bos_token", None, "bos_token: neither tokenizer_config.json nor config"),
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
        _change(directory, "config.json", "language_config.bos_token_id", None)
    _change(directory, file, key, value)
    with pytest.raises(UnsupportedModel, match=message) as error:
        _read(directory, name)
    assert "\n" not in str(error.value)


def test_unusable_tokenizers(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("dsvl2-mha")
    with pytest.raises(UnsupportedModel, match=r"tokenizer.json: ids up to 307, expected less than vocab_size 300"):
        read_processor_config(
            directory, ConfigReader(json.loads((directory / "config.json").read_text())), vocab_size=300
        )
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=r"cannot be read as a tokenizer.json"):
        _read(directory, "dsvl2-mha")
    original = own_checkpoint("internvl-gptoss-original")
    text = (original / "tokenizer.json").read_text()
    (original / "tokenizer.json").write_text(text.replace("<|return|>", "<|gone|>"))
    with pytest.raises(UnsupportedModel, match=r"tokenizer.json has no token <\|return\|>"):
        _read(original, "internvl-gptoss")
    (original / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"the id of <IMG_CONTEXT> is unknown"):
        _read(original, "internvl-gptoss")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not valid JSON"), ("[]", "holds a JSON list, expected an object")]
)
def test_damaged_files(text: str, message: str, own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("dsvl2-mha")
    (directory / "processor_config.json").write_text(text)
    with pytest.raises(UnsupportedModel, match=message):
        _read(directory, "dsvl2-mha")
