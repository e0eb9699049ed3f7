# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a checkpoint: tokenizer.json, and the tokens that only the files beside it have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader, shown
from fastmmoe.exporter.checkpoint.side_files import (
    ADDED_TOKENS,
    GENERATION,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    SideFiles,
)
from fastmmoe.runtime.errors import BundleMismatch, UnsupportedModel
from fastmmoe.runtime.ranges import TokenId
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.request.family import family_of
from fastmmoe.runtime.request.processor import Processor, image_tokens
from fastmmoe.runtime.request.prompts import Marker, Special, render_prompt
from fastmmoe.runtime.request.tokens import REGION_TOKENS, Encoder, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
FLAGS = ("lstrip", "rstrip", "single_word")
"""Of a token: that it takes white space beside it, or stands for a whole word only. No token that is added may."""


@dataclass(frozen=True)
class _Declared:
    """A token that a file beside tokenizer.json gives an id."""

    content: str
    token_id: int
    is_special: bool
    where: str


def token_name(files: SideFiles, key: str) -> str | None:
    """A token that tokenizer_config.json names, as a string or an object with `content`, or None.

    Where that file has no added_tokens_decoder, special_tokens_map.json counts in transformers, whatever it says.

    Raises:
        UnsupportedModel: the two name different tokens.
    """
    names = files[TOKENIZER_CONFIG]
    found = _token_name(names, key)
    if "added_tokens_decoder" in names.values or key not in files[SPECIAL_TOKENS].values:
        return found
    other = _token_name(files[SPECIAL_TOKENS], key)
    if found not in (None, other):
        raise UnsupportedModel(
            f"{key}: {TOKENIZER_CONFIG} names {shown(found)}, {SPECIAL_TOKENS} names {shown(other)}, which counts "
            "where there is no added_tokens_decoder: correct the one that is not meant"
        )
    return other


def _token_name(reader: ConfigReader, key: str) -> str | None:
    value = reader.get(key, None, str | dict | None)
    return reader.section(key).require("content", str) if isinstance(value, dict) else value


def read_tokenizer(
    files: SideFiles, special_tokens: Sequence[str], vocab_size: int
) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """The tokenizer, None where there is no tokenizer.json, and the special tokens that were added to it.

    Args:
        special_tokens: tokens that the family's processor adds, after those that the checkpoint's files declare.
    Raises:
        UnsupportedModel: a file is damaged, gives a token another id than tokenizer.json, or declares a token that is
            missing there and cannot be added at its id; an id is outside the vocabulary.
    """
    declared = list(_declared_tokens(files))
    file = files.directory / TOKENIZER
    if not files.has(TOKENIZER):
        return None, tuple(special_tokens)
    plain = _load(file, ())
    missing = [token for token in declared if plain.token_to_id(token.content) is None]
    added = plain.get_added_tokens_decoder()
    marked = [t.content for t in declared if t.is_special and t.token_id in added and not added[t.token_id].special]
    for token in missing:
        if not token.is_special:
            raise UnsupportedModel(
                f"{token.where} has {shown(token.content)}, which {TOKENIZER} lacks and which is not special: save the "
                "tokenizer again with transformers (use_fast=True), which writes such tokens into tokenizer.json"
            )
    known = {token.content for token in declared}
    for name in _more_special_tokens(files[TOKENIZER_CONFIG]):
        if name not in known and plain.token_to_id(name) is None:
            raise UnsupportedModel(
                f"{TOKENIZER_CONFIG} names the special token {shown(name)}, which {TOKENIZER} does not have; take both "
                "files of one checkpoint"
            )
    all_added = tuple(dict.fromkeys([*(token.content for token in missing), *marked, *special_tokens]))
    tokenizer = _load(file, all_added)
    for token in declared:
        if (found := tokenizer.token_to_id(token.content)) != token.token_id:
            raise UnsupportedModel(
                f"{token.where} gives {shown(token.content)} the id {token.token_id}, {TOKENIZER} gives it {found}; "
                "take all files of one checkpoint"
            )
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= vocab_size:
        raise UnsupportedModel(f"{TOKENIZER}: ids up to {largest}, expected less than vocab_size {vocab_size}")
    return tokenizer, all_added


def _load(file: Path, added: Sequence[str]) -> Tokenizer:
    try:
        return load_tokenizer(file, added)
    except BundleMismatch as error:
        raise UnsupportedModel(str(error)) from error


def _declared_tokens(files: SideFiles) -> Iterator[_Declared]:
    """Tokens of added_tokens_decoder, or of added_tokens.json, which older versions wrote instead; by id."""
    names = files[TOKENIZER_CONFIG]
    if names.get("added_tokens_decoder", None, dict | None) is None:
        legacy = files[ADDED_TOKENS]
        ids = [(legacy.require(content, TokenId), content) for content in legacy.values]
        special = set(_names_in(files[SPECIAL_TOKENS]))
        for token_id, content in sorted(ids):
            yield _Declared(content, token_id, content in special, ADDED_TOKENS)
        return
    decoder = names.section("added_tokens_decoder")
    for key in sorted(decoder.values, key=lambda key: (len(key), key)):
        where = decoder.name(key)
        if not (key.isascii() and key.isdecimal() and len(key) <= 7):
            raise UnsupportedModel(f"{where}: expected an id as key")
        token = decoder.section(key)
        flags = [flag for flag in FLAGS if token.get(flag, False)]
        if flags:
            raise UnsupportedModel(f"{token.name(flags[0])} is True: tokens that take their surroundings with them")
        yield _Declared(token.require("content", str), int(key), token.get("special", False), where)


def _names_in(reader: ConfigReader) -> Iterator[str]:
    """All token names of special_tokens_map.json."""
    for value in reader.values.values():
        yield from _contents(value if isinstance(value, list) else [value])


def _more_special_tokens(reader: ConfigReader) -> Iterator[str]:
    """Names that tokenizer_config.json lists beside those of a role."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = reader.get(key, None, list | dict | None) or []
        yield from _contents(list(value.values()) if isinstance(value, dict) else value)


def _contents(tokens: list[Any]) -> Iterator[str]:
    """Names of tokens that stand there as strings or as objects with `content`."""
    for token in tokens:
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            yield content


def stop_ids(files: SideFiles, config: ConfigReader, language: ConfigReader, tokenizer: Tokenizer | None) -> list[int]:
    """Ids that end an answer: the tokenizer's, those of config.json's levels and of generation_config.json together."""
    name = token_name(files, "eos_token")
    named = None if tokenizer is None or name is None else tokenizer.token_to_id(name)
    ids = [] if named is None else [named]
    for reader in (language, config, files[GENERATION]):
        value = reader.get("eos_token_id", None, TokenId | list[TokenId] | None)
        ids += [] if value is None else [value] if isinstance(value, int) else value
    return list(dict.fromkeys(ids))


def check_encoding(config: ProcessorConfig, file: Path) -> None:
    """Raise UnsupportedModel unless a prompt has the ids that the official code gives it, by encoding it as a whole.

    Prompts are encoded between the template's tokens, which is the same unless the tokenizer looks beyond them.
    """
    processor = Processor(config, file)
    question = "Hi,  you.\n\nWhich box: 3x4? "
    prompt = render_prompt([{"role": "user", "content": question}], config.template)
    texts = [p.token if isinstance(p, Special) else p for p in prompt.pieces if not isinstance(p, Marker)]
    starts = [config.bos_token_id] if Marker.BOS in prompt.pieces else []
    tokenizer = _load(file, config.special_tokens)
    whole = tokenizer.encode("".join(texts), add_special_tokens=not starts).ids
    found = processor([{"role": "user", "content": question}]).input_ids.tolist()
    if found != [*starts, *whole] or not _stands_apart(tokenizer, config):
        raise UnsupportedModel(
            f"{file}: text beside the template's tokens becomes other ids than text by itself (lstrip, rstrip, or a "
            "mark at the start of a text), which is not implemented"
        )


def _stands_apart(tokenizer: Tokenizer, config: ProcessorConfig) -> bool:
    """Whether text beside the tokens of pictures and regions has the ids that it has by itself; changes the tokenizer.

    Around pictures it may have others where the official code, too, encodes what stands between them by itself.
    """
    of_pictures = set() if family_of(config).SPLITS_AT_PICTURES else image_tokens(config)
    of_regions = [name for name in REGION_TOKENS if tokenizer.token_to_id(name) is not None]
    pieces: list[str | Special] = ["a \n"]
    for name in (*sorted(of_pictures), *of_regions):
        pieces += [Special(name) if name in of_pictures else name, " \n a \n"]
    text = "".join(piece.token if isinstance(piece, Special) else piece for piece in pieces)
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    return bool(Encoder(tokenizer, of_pictures).pieces(pieces) == whole)
