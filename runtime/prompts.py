# SPDX-License-Identifier: Apache-2.0
"""Chat messages to the pieces of a prompt, in the templates of the official code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from fastmmoe.runtime.errors import InvalidRequest


class Marker(Enum):
    """A place in a prompt that is not text."""

    BOS = "bos"
    EOS = "eos"
    IMAGE = "image"


Piece: TypeAlias = "str | Marker"
Messages: TypeAlias = Sequence[Mapping[str, Any]]

IMAGE_PLACEHOLDER = "<image>"

# Default system texts of the checkpoints, from conversation.py of InternVL's repository.
INTERNVL2_5_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
INTERNVL3_5_GPT_OSS_SYSTEM = (
    "You are InternVL, a large language model trained by Shanghai AI Laboratory.\n"
    "Knowledge cutoff: 2024-06\nCurrent date: 2025-08-06\n\nReasoning: low\n\n"
    "# Valid channels: final. Channel must be included for every message."
)

# An answer of gpt-oss starts with its channel; earlier answers are given back to the model the same way.
GPT_OSS_CHANNEL = "<|channel|>"
GPT_OSS_ANSWER_HEADER = "<|channel|>final<|message|>"

# What closes a message of InternVL's templates.
INTERNVL2_5_END = "<|im_end|>\n"
GPT_OSS_END = "<|end|>"


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation, or what one goes on with, that ends where the model's answer starts.

    Attributes:
        pieces: text, and markers between it. A tokenizer that encodes piece by piece must add no special tokens.
        images: what the messages gave as pictures, one for each Marker.IMAGE, in order.
        is_follow_up: the pieces go on where an answer stopped, so nothing may be put in front of them.
    """

    pieces: tuple[Piece, ...]
    images: tuple[Any, ...]
    is_follow_up: bool = False


@dataclass(frozen=True)
class _Turn:
    """One message: its text, with IMAGE_PLACEHOLDER at the place of every picture, and the pictures."""

    role: str
    text: str
    images: tuple[Any, ...]


@dataclass(frozen=True)
class _Template:
    """How a conversation is written: its start, then questions with answers between them.

    Attributes:
        start: text of the system message or None -> what stands before the first question.
        question: text of a user's message -> the user's turn and the start of the answer to it.
        answer: text of an assistant's message -> the rest of the assistant's turn, its end included.
        answer_end: the end of an assistant's turn, also where the model itself stopped with another token.
    """

    start: Callable[[str | None], list[Piece]]
    question: Callable[[str], Piece]
    answer: Callable[[str], list[Piece]]
    answer_end: Piece


def render_prompt(messages: Messages, template: str, placeholders: Sequence[str] = (IMAGE_PLACEHOLDER,)) -> Prompt:
    """Render a conversation.

    Args:
        messages: Hugging Face schema: {"role": "system" | "user" | "assistant", "content": str or a list of
            {"type": "text", "text": str} and {"type": "image", "image": picture} (or "path": file)}. A system message
            may only be the first; user and assistant alternate; the last is the user's. Where the text of a message
            holds placeholders, the pictures of that message take their places in order; otherwise each picture stands
            where its part stands, on a line of its own unless the next text starts with white space.
        template: "deepseek", "internvl2_5" or "internvl3_5_gpt_oss".
        placeholders: strings that stand for a picture in a user's text.
    Raises:
        InvalidRequest: a message is not in this schema, or placeholders and pictures differ in number.
    Source: conversation.py and processing_deepseek_vl_v2.py of DeepSeek-VL2, conversation.py of InternVL.
    """
    style = _find_template(template)
    turns = _read_turns(messages, tuple(placeholders))
    system = turns.pop(0).text if turns[0].role == "system" else None
    pieces = style.start(system)
    for turn in turns:
        pieces += [style.question(turn.text)] if turn.role == "user" else style.answer(turn.text)
    return Prompt(_mark_images(pieces), tuple(image for turn in turns for image in turn.images))


def render_follow_up(content: Any, template: str, placeholders: Sequence[str] = (IMAGE_PLACEHOLDER,)) -> Prompt:
    """Render what a conversation goes on with when the user asks again: the end of the answer and the next question.

    The prompt of the conversation so far, the answer as the model wrote it, without the stop token, and this are
    together what `render_prompt` makes of all messages; but there "deepseek" strips an answer, and "internvl2_5"
    leaves out the end of an answer without text.

    Args:
        content: of the user's message: str or a list of parts. It, template and placeholders: see `render_prompt`.
    Raises:
        InvalidRequest: the content is not in this schema, or placeholders and pictures differ in number.
    """
    style = _find_template(template)
    turn = _read_turn({"role": "user", "content": content}, "message", tuple(placeholders))
    return Prompt(_mark_images([style.answer_end, style.question(turn.text)]), turn.images, is_follow_up=True)


def _find_template(name: str) -> _Template:
    if name not in _TEMPLATES:
        raise InvalidRequest(f"template {name!r}: expected one of {', '.join(_TEMPLATES)}")
    return _TEMPLATES[name]


def _mark_images(pieces: list[Piece]) -> tuple[Piece, ...]:
    """The pieces with Marker.IMAGE instead of the placeholders in their text, and without empty text."""
    marked: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Marker):
            marked.append(piece)
        else:
            first, *rest = piece.split(IMAGE_PLACEHOLDER)
            marked.append(first)
            for text in rest:
                marked += [Marker.IMAGE, text]
    return tuple(piece for piece in marked if piece != "")


def _deepseek_start(system: str | None) -> list[Piece]:
    return [Marker.BOS, "" if system is None else system.strip()]


def _deepseek_question(text: str) -> str:
    text = text.strip()
    question = f" {text}\n\n" if text else ""
    return f"<|User|>:{question}<|Assistant|>:"


def _deepseek_answer(text: str) -> list[Piece]:
    return [text.strip(), Marker.EOS]


def _close(text: str, end: str) -> str:
    """InternVL's templates close a message only if it has text."""
    return text + end if text else ""


def _internvl2_5_start(system: str | None) -> list[Piece]:
    return [f"<|im_start|>system\n{INTERNVL2_5_SYSTEM if system is None else system}{INTERNVL2_5_END}"]


def _internvl2_5_question(text: str) -> str:
    return f"<|im_start|>user\n{_close(text, INTERNVL2_5_END)}<|im_start|>assistant\n"


def _internvl2_5_answer(text: str) -> list[Piece]:
    return [_close(text, INTERNVL2_5_END)]


def _gpt_oss_start(system: str | None) -> list[Piece]:
    return [f"<|start|>system<|message|>{INTERNVL3_5_GPT_OSS_SYSTEM if system is None else system}{GPT_OSS_END}"]


def _gpt_oss_question(text: str) -> str:
    return f"<|start|>user<|message|>{_close(text, GPT_OSS_END)}<|start|>assistant"


def _gpt_oss_answer(text: str) -> list[Piece]:
    header = "" if text.startswith(GPT_OSS_CHANNEL) else GPT_OSS_ANSWER_HEADER
    return [header + text + GPT_OSS_END]


_TEMPLATES: dict[str, _Template] = {
    "deepseek": _Template(_deepseek_start, _deepseek_question, _deepseek_answer, Marker.EOS),
    "internvl2_5": _Template(_internvl2_5_start, _internvl2_5_question, _internvl2_5_answer, INTERNVL2_5_END),
    "internvl3_5_gpt_oss": _Template(_gpt_oss_start, _gpt_oss_question, _gpt_oss_answer, GPT_OSS_END),
}


def _read_turns(messages: Messages, placeholders: tuple[str, ...]) -> list[_Turn]:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequest(
            f"messages is {messages!r:.60}: expected a list of {{'role': ..., 'content': ...}}, at least one"
        )
    turns = [_read_turn(message, f"messages[{i}]", placeholders) for i, message in enumerate(messages)]
    roles = [turn.role for turn in turns]
    asked = roles[1:] if roles[0] == "system" else roles
    if len(asked) % 2 == 0 or asked != (["user", "assistant"] * len(asked))[: len(asked)]:
        raise InvalidRequest(
            f"messages have the roles {', '.join(roles)}: expected an optional system message, "
            "then user and assistant in turn, the last one a user's"
        )
    return turns


def _read_turn(message: Any, name: str, placeholders: tuple[str, ...]) -> _Turn:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise InvalidRequest(f"{name} is {message!r:.60}: expected an object with 'role' and 'content'")
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise InvalidRequest(f"{name} has the role {role!r}: expected 'system', 'user' or 'assistant'")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise InvalidRequest(f"{name} has content of type {type(content).__name__}: expected a string or a list")
    read = [_read_part(part, f"{name}.content[{i}]") for i, part in enumerate(parts)]
    images = tuple(image for is_image, image in read if is_image)
    if images and role != "user":
        raise InvalidRequest(f"{name} ({role}) holds {len(images)} image(s): expected them in user messages only")
    text = _place_images(read, placeholders)
    found = text.count(IMAGE_PLACEHOLDER)
    if found != len(images):
        raise InvalidRequest(
            f"{name} ({role}) has {found} placeholder(s) {' or '.join(placeholders)} in its text and {len(images)} "
            "image(s): expected as many of one as of the other, or no placeholder"
        )
    return _Turn(role, text, images)


def _read_part(part: Any, name: str) -> tuple[bool, Any]:
    """(False, text) or (True, picture)."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return False, part["text"]
    if kind == "image":
        for key in ("image", "path"):
            if part.get(key) is not None:
                return True, part[key]
    raise InvalidRequest(
        f"{name} is {part!r:.80}: expected {{'type': 'text', 'text': str}} or {{'type': 'image', 'image': picture}}"
    )


def _place_images(read: list[tuple[bool, Any]], placeholders: tuple[str, ...]) -> str:
    """The text of a message with IMAGE_PLACEHOLDER for typed placeholders or, where there are none, for the images."""
    texts = "".join(value for is_image, value in read if not is_image)
    if any(placeholder in texts for placeholder in placeholders):
        for placeholder in placeholders:
            texts = texts.replace(placeholder, IMAGE_PLACEHOLDER)
        return texts
    placed = ""
    for i, (is_image, value) in enumerate(read):
        if not is_image:
            placed += value
            continue
        following = read[i + 1] if i + 1 < len(read) else (False, "")
        starts_with_space = not following[0] and following[1][:1].isspace()
        placed += IMAGE_PLACEHOLDER if starts_with_space else IMAGE_PLACEHOLDER + "\n"
    return placed
