# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a checkpoint: tokens that only the files beside it have, and what no export takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.runtime.errors import UnsupportedModel
from fastmmoe.runtime.request.processor import Processor
from tests.support.checkpoint_files import assert_read_or_refused, read_processor, update

OwnCheckpoint = Callable[[str], Path]


DEEPSEEK, HF, ORIGINAL = "dsvl2-mha", "internvl-qwen3moe", "internvl-qwen3moe-original"


TOKENIZER = "tokenizer_config.json"


def test_every_id_that_ends_an_answer_ends_it(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint(DEEPSEEK)
    update(directory, "generation_config.json", eos_token_id=[1, 7, 9])
    assert read_processor(directory)[0].stop_token_ids == (1, 7, 9)
    directory = own_checkpoint(HF)
    update(directory, "generation_config.json", eos_token_id=7)
    update(directory, "tokenizer_config.json", eos_token="<|endoftext|>")
    assert read_processor(directory)[0].stop_token_ids == (382, 380, 7)


TOKEN = {"content": "<new>", "special": True}


def test_tokens_that_only_the_files_beside_have_are_added(own_checkpoint: OwnCheckpoint) -> None:
    """As transformers adds them: by id, and before those of DeepSeek-VL2's processor."""
    directory = own_checkpoint(HF)
    update(directory, "tokenizer_config.json", added_tokens_decoder={"400": {**TOKEN, "content": "<b>"}, "399": TOKEN})
    config, _ = read_processor(directory, vocab_size=401)
    assert config.special_tokens == ("<new>", "<b>")
    processor = Processor(config, directory / "tokenizer.json")
    assert processor.decode([399, 104, 400]) == "h"
    plain = own_checkpoint(ORIGINAL)
    update(plain, "added_tokens.json", **{"<new>": 399})
    update(plain, "special_tokens_map.json", additional_special_tokens=["<new>"])
    assert read_processor(plain)[0].special_tokens == ("<new>",)
    deepseek = own_checkpoint(DEEPSEEK)
    update(deepseek, "tokenizer_config.json", added_tokens_decoder={"308": TOKEN})
    assert read_processor(deepseek)[0].special_tokens[0] == "<new>"


@pytest.mark.parametrize("flag", ["lstrip", "rstrip"])
def test_a_tokenizer_that_looks_beyond_its_tokens_is_refused(flag: str, own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint(HF)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token[flag] = True
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UnsupportedModel, match="becomes other ids than text by itself"):
        read_processor(directory)


@pytest.mark.parametrize("name", ["<img>", "</img>", "<IMG_CONTEXT>", "<ref>", "</box>"])
@pytest.mark.parametrize("flag", ["lstrip", "rstrip"])
def test_tokens_of_pictures_and_regions_may_not_look_beyond_themselves(
    flag: str, name: str, own_checkpoint: OwnCheckpoint
) -> None:
    directory = own_checkpoint(HF)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    (token,) = [token for token in tokenizer["added_tokens"] if token["content"] == name]
    token[flag] = True
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UnsupportedModel, match="becomes other ids than text by itself"):
        read_processor(directory)


def test_a_token_with_two_names_is_refused(own_checkpoint: OwnCheckpoint) -> None:
    """In transformers special_tokens_map.json counts, unless tokenizer_config.json has an added_tokens_decoder."""
    directory = own_checkpoint(HF)
    update(directory, TOKENIZER, eos_token="<|im_end|>")
    update(directory, "special_tokens_map.json", eos_token={"content": "<|endoftext|>"})
    with pytest.raises(
        UnsupportedModel, match=r"eos_token: tokenizer_config.json names '<\|im_end\|>', special_tokens"
    ):
        read_processor(directory)
    update(directory, TOKENIZER, added_tokens_decoder={})
    assert 380 not in read_processor(directory)[0].stop_token_ids
    update(directory, "special_tokens_map.json", eos_token={"content": "<|im_end|>"})
    (directory / TOKENIZER).write_text("{}")
    assert read_processor(directory)[0].stop_token_ids == (382,)


def test_a_pointer_of_git_lfs_is_not_a_tokenizer(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint(HF)
    (directory / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UnsupportedModel, match=r"tokenizer.json: a Git LFS pointer"):
        read_processor(directory)


def test_damaged_tokenizers(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint(HF)
    target = directory / "tokenizer.json"
    sound = json.loads(target.read_text())
    model, vocab = sound["model"], sound["model"]["vocab"]
    token: Any = sound["added_tokens"][0]
    wrong: tuple[Any, ...] = (3, [], {}, None, "x", -1, 2**31, 2**40, {"type": "X"}, [["a", "zz"]])
    damaged: list[Any] = [
        *("", "{", "[]", "{}", '{"a":' * 100_000, "\x00"),
        *({**sound, key: value} for key in sound for value in wrong),
        *({**sound, "model": {**model, key: value}} for key in model for value in wrong),
        *({**sound, "model": {**model, "vocab": {**vocab, "a": value}}} for value in wrong),
        *({**sound, "added_tokens": [{**token, key: value}]} for key in token for value in wrong),
    ]  # fmt: skip
    for values in damaged:
        target.write_text(values if isinstance(values, str) else json.dumps(values))
        assert_read_or_refused(directory, str(values)[-80:])


def test_a_panic_of_the_library_is_one_line(own_checkpoint: OwnCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    import tokenizers

    class PanicException(BaseException):
        """What Rust's panics become."""

    def panic(_text: str) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(tokenizers, "Tokenizer", type("Tokenizer", (), {"from_str": staticmethod(panic)}))
    with pytest.raises(UnsupportedModel, match=r"cannot be read as a tokenizer.json \(index out of bounds\)"):
        read_processor(own_checkpoint(HF))
