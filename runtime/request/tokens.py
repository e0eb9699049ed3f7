# SPDX-License-Identifier: Apache-2.0
"""Pieces of a prompt to token ids: which characters are tokens of the template and which are somebody's text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.request.prompts import Special

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REGION_TOKENS = (
    *("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"),
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"),
)
"""Tokens that questions name regions of a picture with, where the tokenizer has them: the only ones that a text may
spell. The others are made by the template and by pictures alone, so no text can end a turn or stand for a picture."""


def load_tokenizer(file: Path, special_tokens: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer, with the special tokens it lacks added in the order given.

    Raises:
        BundleMismatch: the file cannot be read as a tokenizer.json.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        tokenizer.add_special_tokens(list(special_tokens))
    # The library has no exception of its own: it raises Exception for a file that it cannot parse, and some damaged
    # ones make it panic, which arrives as a BaseException.
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        raise BundleMismatch(f"{file}: cannot be read as a tokenizer.json ({error})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Encoder:
    """Token ids of text and of a template's tokens.

    Args:
        tokenizer: is changed: `control_tokens` are marked as special.
        control_tokens: tokens that templates and pictures use.
    Raises:
        BundleMismatch: the tokenizer lacks one of `control_tokens`.
    """

    def __init__(self, tokenizer: Tokenizer, control_tokens: Collection[str]) -> None:
        self._tokenizer = tokenizer
        self._ids = _find_ids(tokenizer, control_tokens)
        missing = sorted(set(control_tokens) - self._ids.keys())
        if missing:
            raise BundleMismatch(f"tokenizer.json lacks {', '.join(missing)}; take the file of the same checkpoint")
        added = tokenizer.get_added_tokens_decoder()
        plain = [token for token, i in self._ids.items() if i not in added or not added[i].special]
        tokenizer.add_special_tokens(sorted(plain))
        special = (token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
        self._ids |= _find_ids(tokenizer, set(special) - set(REGION_TOKENS))
        # From here on what spells a special token is text.
        tokenizer.encode_special_tokens = True
        self._region_ids = _find_ids(tokenizer, REGION_TOKENS)
        self._regions = re.compile(f"({'|'.join(map(re.escape, self._region_ids))})") if self._region_ids else None

    @property
    def names(self) -> Collection[str]:
        """Names of the tokens that no text may spell."""
        return self._ids.keys()

    def text(self, text: str) -> list[int]:
        """Ids of a text, the tokens of REGION_TOKENS in it included."""
        ids: list[int] = []
        for i, part in enumerate(self._regions.split(text) if self._regions else [text]):
            if i % 2:
                ids.append(self._region_ids[part])
            elif part:
                ids += self._tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def pieces(self, pieces: Iterable[str | Special]) -> list[int]:
        """Ids of text and of tokens between it."""
        ids: list[int] = []
        for piece in pieces:
            ids += self.text(piece) if isinstance(piece, str) else [self._ids[piece.token]]
        return ids

    def surrounding(self) -> tuple[list[int], list[int]]:
        """What the tokenizer itself puts in front of a text and behind it."""
        probe = self._tokenizer.encode("a", add_special_tokens=True)
        is_text = [not mask for mask in probe.special_tokens_mask]
        start = is_text.index(True) if True in is_text else len(is_text)
        end = len(is_text) - is_text[::-1].index(True) if True in is_text else len(is_text)
        return probe.ids[:start], probe.ids[end:]


def _find_ids(tokenizer: Tokenizer, tokens: Iterable[str]) -> dict[str, int]:
    """Name -> id of those tokens that the tokenizer has."""
    found = {token: tokenizer.token_to_id(token) for token in tokens}
    return {token: token_id for token, token_id in found.items() if token_id is not None}
