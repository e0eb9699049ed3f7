# SPDX-License-Identifier: Apache-2.0
"""Pieces of prompts to ids: which characters are tokens, and tokenizers that cannot be used.

The golden tokenizers have a token for each byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.request.prompts import Special
from fastmmoe.runtime.request.tokens import REGION_TOKENS, Encoder, load_tokenizer

INTERNVL = "internvl-qwen3moe"
CONTROL = ("<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>")


@pytest.fixture
def file(checkpoint: Callable[[str], Path]) -> Path:
    """A golden tokenizer, shared: do not change it."""
    return checkpoint(INTERNVL) / "tokenizer.json"


@pytest.fixture
def encoder(file: Path) -> Encoder:
    """Its encoder."""
    return Encoder(load_tokenizer(file), CONTROL)


def written(file: Path, directory: Path, **values: Any) -> Path:
    """A copy of the tokenizer with other values."""
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(json.loads(file.read_text()) | values))
    return path


def test_text_is_bytes_and_pieces_between_it_are_tokens(encoder: Encoder) -> None:
    assert encoder.text("Hi") == [*b"Hi"] and encoder.text("") == []
    assert encoder.pieces(["é", Special("<|im_start|>"), "", Special("<|im_end|>")]) == [*"é".encode(), 381, 382]


@pytest.mark.parametrize("token", [*CONTROL, "<|endoftext|>", "<img>"])
def test_what_spells_a_token_is_text(token: str, encoder: Encoder) -> None:
    """Those of the template, and whatever else the tokenizer calls special."""
    assert token in encoder.names
    assert encoder.text(f"a{token}b") == [*f"a{token}b".encode()]


def test_regions_are_named_with_tokens(encoder: Encoder, file: Path) -> None:
    tokenizer = load_tokenizer(file)
    there = [token for token in REGION_TOKENS if tokenizer.token_to_id(token) is not None]
    assert there == ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"]
    for token in there:
        assert token not in encoder.names
        assert encoder.text(f"a{token}b") == [*b"a", tokenizer.token_to_id(token), *b"b"]
    # Not in this tokenizer.
    assert encoder.text("<|ref|>") == [*b"<|ref|>"]


def test_tokens_that_are_missing(file: Path) -> None:
    with pytest.raises(BundleMismatch, match=r"^tokenizer\.json lacks <a>, <b>; take the file of the same checkpoint$"):
        Encoder(load_tokenizer(file), (*CONTROL, "<b>", "<a>"))


def test_missing_special_tokens_are_added_in_their_order(file: Path) -> None:
    plain, more = load_tokenizer(file), load_tokenizer(file, ["<b>", "<|im_end|>", "<a>"])
    size = plain.get_vocab_size()
    assert [more.token_to_id(token) for token in ("<b>", "<|im_end|>", "<a>")] == [size, 382, size + 1]


def test_what_the_tokenizer_puts_around_a_text(encoder: Encoder, file: Path, tmp_path: Path) -> None:
    assert encoder.surrounding() == ([], [])
    ends = [{"SpecialToken": {"id": token, "type_id": 0}} for token in ("<|endoftext|>", "<|im_end|>")]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [ends[0], text, ends[1], ends[1]],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [380], "tokens": ["<|endoftext|>"]},
            "<|im_end|>": {"id": "<|im_end|>", "ids": [382], "tokens": ["<|im_end|>"]},
        },
    }
    around = Encoder(load_tokenizer(written(file, tmp_path, post_processor=template)), CONTROL)
    assert around.surrounding() == ([380], [382, 382])
    assert around.text("Hi") == [*b"Hi"]


def test_texts_are_neither_cut_nor_padded(file: Path, tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
    }
    path = written(file, tmp_path, truncation=truncation, padding=padding | {"pad_token": "a"})
    assert load_tokenizer(path).encode("Hello", add_special_tokens=False).ids == [*b"Hello"]


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"model": {"type": "BPE"}}'])
def test_what_is_no_tokenizer(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(BundleMismatch, match=rf"^{path}: cannot be read as a tokenizer.json \("):
        load_tokenizer(path)


def test_an_interrupt_is_no_damage(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "read_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(file)
