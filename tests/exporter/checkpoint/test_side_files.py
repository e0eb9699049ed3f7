# SPDX-License-Identifier: Apache-2.0
"""Processor, tokenizer and generation files: what is read, what is said, and damaged ones of every kind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.checkpoint_files import assert_read_or_refused, read_processor, update

OwnCheckpoint = Callable[[str], Path]
DEEPSEEK, HF, ORIGINAL = "dsvl2-mha", "internvl-qwen3moe", "internvl-qwen3moe-original"
PREPROCESSOR, TOKENIZER, GENERATION = "preprocessor_config.json", "tokenizer_config.json", "generation_config.json"
FILES = {
    DEEPSEEK: ("processor_config.json", TOKENIZER, GENERATION),
    HF: (PREPROCESSOR, TOKENIZER, GENERATION),
}


@pytest.mark.parametrize("name", [DEEPSEEK, HF, ORIGINAL])
def test_nothing_is_said_of_the_golden_files(name: str, own_checkpoint: OwnCheckpoint) -> None:
    assert read_processor(own_checkpoint(name))[1] == []


def test_nothing_is_said_of_the_published_files(own_checkpoint: OwnCheckpoint) -> None:
    """tokenizer_config.json of DeepSeek-VL2, and the image processor's file of InternVL3.5's original repositories."""
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    directory = own_checkpoint(DEEPSEEK)
    values = {"add_bos_token": True, "sp_model_kwargs": {}, "unk_token": None, "tokenizer_class": "LlamaTokenizerFast"}
    update(directory, TOKENIZER, pad_token=None, eos_token={**token, "content": "<｜end▁of▁sentence｜>"}, **values)
    assert read_processor(directory)[1] == []
    directory = own_checkpoint(ORIGINAL)
    values = {
        "crop_size": 448,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
        "size": 448,
    }
    update(directory, PREPROCESSOR, feature_extractor_type="CLIPFeatureExtractor", **values)
    decoder = {"381": {**token, "content": "<|im_start|>", "normalized": False, "special": True}}
    more = ["<|im_start|>", "<img>", "<IMG_CONTEXT>"]
    update(directory, TOKENIZER, added_tokens_decoder=decoder, additional_special_tokens=more, errors="replace")
    assert read_processor(directory)[1] == []


@pytest.mark.parametrize(
    ("file", "values", "lines"),
    [
        (GENERATION, {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
         ["generation_config.json is not followed in do_sample True: a request says how tokens are chosen"]),
        (GENERATION, {"repetition_penalty": 1.05, "no_repeat_ngram_size": 3, "num_beams": 1},
         ["generation_config.json is not followed in repetition_penalty 1.05, no_repeat_ngram_size 3: a request "
          "says how tokens are chosen"]),
        (GENERATION, {"temperature": 0.6, "top_k": 20, "do_sample": False, "repetition_penalty": 1.0}, []),
        (GENERATION, {"colour": 1}, ["generation_config.json keys not read: colour"]),
        (PREPROCESSOR, {"colour": 1, "crop_size": None, "do_convert_rgb": True},
         ["preprocessor_config.json keys not read: colour"]),
        ("processor_config.json", {"image_seq_length": 256, "processor_class": "X", "colour": 1},
         ["processor_config.json keys not read: colour"]),
        (TOKENIZER, {"clean_up_tokenization_spaces": True},
         [f"{TOKENIZER}: clean_up_tokenization_spaces is not followed: answers are shown as they are written"]),
        (TOKENIZER, {"add_bos_token": False, "add_prefix_space": None, "bos_token": None, "legacy": 1}, []),
    ],
)  # fmt: skip
def test_what_is_said(file: str, values: dict[str, Any], lines: list[str], own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint(HF)
    update(directory, file, **values)
    assert read_processor(directory)[1] == lines


TOKEN = {"content": "<new>", "special": True}


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        (PREPROCESSOR, {"image_std": [0.2, 0, 0.2]}, "image_std is [0.2, 0.0, 0.2], expected three numbers from"),
        (PREPROCESSOR, {"image_std": [0.2, -1, 0.2]}, "image_std is [0.2, -1.0, 0.2], expected three numbers"),
        (PREPROCESSOR, {"image_std": [0.2, 1e-40, 0.2]}, "expected three numbers from 1e-6 to 1e6"),
        (PREPROCESSOR, {"image_std": [0.2, float("nan"), 0.2]}, "image_std is [0.2, nan, 0.2], expected"),
        (PREPROCESSOR, {"image_mean": [0.2, float("inf"), 0.2]}, "image_mean is [0.2, inf, 0.2], expected"),
        (PREPROCESSOR, {"image_mean": [0.2, 2**70, 0.2]}, "image_mean is"),
        (PREPROCESSOR, {"size": {"height": [448]}}, "size is {'height': [448]}, config.json has tiles of"),
        (PREPROCESSOR, {"size": {}}, "size is {}, config.json has tiles of 448 pixels"),
        (PREPROCESSOR, {"size": True}, "size is True"),
        (PREPROCESSOR, {"min_patches": 13}, "min_patches is 13, expected at most max_patches, which is 12"),
        (PREPROCESSOR, {"max_patches": 0}, "max_patches is 0, expected"),
        (PREPROCESSOR, {"max_patches": 2**31}, "max_patches is 2147483648, expected"),
        (PREPROCESSOR, {"rescale_factor": 1.0}, "rescale_factor is 1.0, expected 1 / 255"),
        (PREPROCESSOR, {"do_center_crop": True}, "do_center_crop is True; supported: False, None"),
        (PREPROCESSOR, {"do_pad": True}, "do_pad is True; supported: False, None"),
        ("processor_config.json", {"image_seq_length": 64}, "image_seq_length is 64, expected 256, which config.json"),
        (GENERATION, {"eos_token_id": -1}, "eos_token_id is -1, expected"),
        (GENERATION, {"eos_token_id": 400}, "token ids [400]: expected ids from 0 to 399"),
        (GENERATION, {"eos_token_id": "2"}, "eos_token_id is '2' (str), expected"),
        (TOKENIZER, {"add_prefix_space": True}, "add_prefix_space is True; supported: False, None"),
        (TOKENIZER, {"add_bos_token": True}, "add_bos_token is True; supported: False, None"),
        (TOKENIZER, {"split_special_tokens": True}, "split_special_tokens is True; supported: False"),
        (TOKENIZER, {"byte_dropout": 0.1}, "byte_dropout is 0.1: an unknown key that may change how text"),
        (TOKENIZER, {"extra_special_tokens": {"image": "<im>"}}, "the special token '<im>', which"),
        (TOKENIZER, {"additional_special_tokens": ["<im>"]}, "the special token '<im>', which tokenizer.json"),
        (TOKENIZER, {"added_tokens_decoder": {"382": {"content": "<|im_start|>", "special": True}}},
         "gives '<|im_start|>' the id 382, tokenizer.json gives it 381; take all files of one checkpoint"),
        (TOKENIZER, {"added_tokens_decoder": {"390": TOKEN}}, "gives '<new>' the id 390, tokenizer.json"),
        (TOKENIZER, {"added_tokens_decoder": {"399": {"content": "<new>"}}}, "lacks and which is not special"),
        (TOKENIZER, {"added_tokens_decoder": {"399": {**TOKEN, "lstrip": True}}}, "399.lstrip is True"),
        (TOKENIZER, {"added_tokens_decoder": {"x": TOKEN}}, "added_tokens_decoder.x: expected an id as key"),
        (TOKENIZER, {"added_tokens_decoder": {"9" * 99: TOKEN}}, "expected an id as key"),
        (TOKENIZER, {"added_tokens_decoder": {"399": 3}}, "399 is 3 (int), expected"),
        ("added_tokens.json", {"<|im_start|>": 3}, "added_tokens.json gives '<|im_start|>' the id 3, tokenizer.json"),
        ("added_tokens.json", {"<|im_start|>": -3}, "added_tokens.json: <|im_start|> is -3, expected"),
    ],
)  # fmt: skip
def test_what_is_refused(file: str, values: dict[str, Any], words: str, own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint(HF)
    update(directory, file, **values)
    with pytest.raises(UnsupportedModel) as error:
        read_processor(directory)
    assert words in str(error.value)
    assert file in str(error.value) or "token ids" in words
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_where_a_tokenizer_can_be_had(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint(ORIGINAL)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"repository that ends in -HF, or .*use_fast=True\).save_pretrained"):
        read_processor(directory)


# ---- damaged files


WRONG: tuple[Any, ...] = (
    *(None, 0, -1, 2**31, 2**70, 1e400, float("nan"), True, "", "x" * 5000, [], {}, [[]], [2**70], ["\ud800"]),
)


def _places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = values.items() if isinstance(values, dict) else enumerate(values[:2]) if isinstance(values, list) else ()
    for key, inner in list(items)[:40]:
        yield from _places(inner, (*path, key))


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in FILES.items() for file in files])
def test_wrong_values(name: str, file: str, own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint(name)
    target = directory / file
    sound = json.loads(target.read_text()) if target.is_file() else {}
    if file != "tokenizer_config.json":
        (directory / "tokenizer.json").unlink()
    sound |= {"added_tokens_decoder": {"2": {"content": "x"}}, "eos_token": {"content": "x"}, "pad_token": "x"}
    for place in _places(sound):
        for value in WRONG if len(place) == 1 else WRONG[::4]:
            values = copy.deepcopy(sound)
            inner: Any = values
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            target.write_text(json.dumps(values))
            assert_read_or_refused(directory, (file, place, value))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{", '{"a": 1, "a": 2}', '{"a":' * 100_000, "[" * 100_000, '{"a": ' + "9" * 6000 + "}", "\xff\xfe"],
)  # fmt: skip
@pytest.mark.parametrize("file", ["processor_config.json", "tokenizer_config.json", "generation_config.json"])
def test_files_that_are_no_object(file: str, text: str, own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint(HF)
    if file == "processor_config.json":
        (directory / "preprocessor_config.json").unlink()
    (directory / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(UnsupportedModel) as error:
        read_processor(directory)
    assert file in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("file", ["tokenizer.json", "preprocessor_config.json", "generation_config.json"])
def test_a_link_to_nowhere_is_not_an_absent_file(file: str, own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint(HF)
    (directory / file).unlink(missing_ok=True)
    (directory / file).symlink_to(directory / "gone")
    with pytest.raises(UnsupportedModel, match=f"{file}: a link to .*gone, which is not there"):
        read_processor(directory)
