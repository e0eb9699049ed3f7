# SPDX-License-Identifier: Apache-2.0
"""Token ids of an answer back to text, channel by channel where the template has channels, and where it ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

FINAL = "final"
"""The channel that is the answer; without channels everything is."""

# Templates whose answers are messages in channels: "<|channel|>analysis<|message|>...<|end|><|start|>assistant...".
CHANNEL_TEMPLATES = ("internvl3_5_gpt_oss",)
ROLE = "assistant"
RECIPIENT = " to="


class AnswerStream:
    """Text of one answer, token by token, without special tokens and headers.

    Args:
        stop_token_ids: each ends the answer.

    Attributes:
        channel: of the last token: FINAL, or as "analysis" or "commentary to=functions.find".
        aside: text that the last token completes in another channel than FINAL.
        has_ended: the last token ends the answer, its text is not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, stop_token_ids: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = frozenset(stop_token_ids)
        self._messages = _Messages(tokenizer) if template in CHANNEL_TEMPLATES else None
        self._decoder = self._new_decoder()
        self.channel, self.aside, self.has_ended = FINAL, "", False

    def push(self, token_id: int) -> str:
        """The text of the answer that this token completes; "" in the middle of a character or in another channel."""
        token_id = int(token_id)
        if token_id in self._stops:
            self.has_ended = True
            return self.rest()
        if self._messages is None:
            return self._decoder.step(self._tokenizer, token_id) or ""
        return self._shown(self._messages.read(token_id))

    def rest(self) -> str:
        """Call it where no token follows: the text that waited for what would follow."""
        return "" if self._messages is None else self._shown(self._messages.release())

    def _shown(self, token_ids: list[int]) -> str:
        """The text of these tokens of the current message, which goes to `aside` in other channels than FINAL."""
        messages = self._messages
        assert messages is not None
        self.has_ended = self.has_ended or messages.has_ended
        if messages.channel != self.channel:
            self._decoder = self._new_decoder()
        self.channel = messages.channel
        text = "".join(self._decoder.step(self._tokenizer, token_id) or "" for token_id in token_ids)
        self.aside = "" if self.channel == FINAL else text
        return text if self.channel == FINAL else ""

    @staticmethod
    def _new_decoder() -> DecodeStream:
        from tokenizers.decoders import DecodeStream

        return DecodeStream(skip_special_tokens=True)


class StopTexts:
    """Holds back what may be the start of one of some texts, and cuts an answer in front of the first that ends in it.

    Of texts that end at the same letter the longest counts. What is shown does not depend on the borders of tokens.

    Attributes:
        found: the text that the answer was cut at, or None.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops, self._held = tuple(stops), ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """What may be shown once this text follows."""
        text, self._held = self._held + text, ""
        ends = [(place + len(stop), place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            _, place, self.found = min(ends)
            return text[:place]
        most = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - most :]
        return text[: len(text) - most]

    def rest(self) -> str:
        """What was held back, once nothing follows."""
        held, self._held = self._held, ""
        return held


class _Messages:
    """The messages of one turn of gpt-oss: which tokens are text, of which channel, and where the turn ends.

    A turn ends with the end of the final message, with a call, and where the model starts a message of somebody else
    or another one after the final message. Text without a header is the final message.

    Attributes: channel: of the current message. has_ended: the turn ended with the last token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        names = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
        self._start, self._channel, self._message, self._end, *self._last = map(tokenizer.token_to_id, names)
        self.channel, self.has_ended = FINAL, False
        self._is_answering = False  # the final message has begun
        self._role: list[int] | None = None  # tokens of the header that is being read, first part
        self._header: list[int] | None = None  # second part, from <|channel|> on
        self._held: list[int] = []  # a recipient may stand in front of the first header: text, as long as it may not

    def read(self, token_id: int) -> list[int]:
        """The tokens that turn out to be text with this one."""
        if token_id in self._last or (self._is_mark(token_id) and self._is_over(token_id)):
            self.has_ended = True
            return self.release()
        if token_id == self._start:
            self._role, self._header = [], None
        elif token_id == self._channel:
            self._header = []
        elif token_id == self._message:
            self._open()
        elif token_id == self._end:
            # What follows without a header is the answer.
            self.channel, self._role, self._header = FINAL, None, None
        elif self._header is not None:
            self._header.append(token_id)
        elif self._role is not None:
            self._role.append(token_id)
            role = self._text(self._role)
            self.has_ended = not f"{ROLE} ".startswith(role) and not role.startswith(f"{ROLE} ")
        else:
            return self._read_text(token_id)
        return []

    def release(self) -> list[int]:
        """The tokens held back: text after all, since nothing follows."""
        held, self._held = self._held, []
        return held

    def _is_mark(self, token_id: int) -> bool:
        return token_id in (self._start, self._channel, self._message, self._end)

    def _is_over(self, mark: int) -> bool:
        """Whether the turn ends with this mark: after the final message, text held back or no message at all."""
        is_outside = self.channel == FINAL and self._role is None and self._header is None
        return self._is_answering or (is_outside and (mark == self._end or (mark == self._start and bool(self._held))))

    def _read_text(self, token_id: int) -> list[int]:
        if self.channel != FINAL or self._is_answering:
            return [token_id]
        self._held.append(token_id)
        text = self._text(self._held)
        if text.startswith(RECIPIENT) or RECIPIENT.startswith(text):
            return []
        self._is_answering = True
        return self.release()

    def _open(self) -> None:
        """A message starts behind its header."""
        header = self._text(self._header or []).split()
        words = header + self._text([*self._held, *(self._role or [])]).split()
        recipient = next((word for word in words if word.startswith(RECIPIENT.strip())), None)
        channel = header[0] if header else FINAL
        self.channel = channel if recipient is None else f"{channel} {recipient}"
        self._is_answering = self.channel == FINAL
        self._held, self._role, self._header = [], None, None

    def _text(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
