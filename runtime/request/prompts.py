# SPDX-License-Identifier: Apache-2.0
"""Chat messages to the pieces of a prompt, in the templates of the official code."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias, TypeVar

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request import video


class Marker(Enum):
    """A place in a prompt that is neither text nor a token of the template."""

    BOS = "bos"
    EOS = "eos"
    IMAGE = "image"


@dataclass(frozen=True)
class Special:
    """A token that the template writes, by its name. The same characters in somebody's text are text."""

    token: str


Piece: TypeAlias = "str | Special | Marker"
Content: TypeAlias = "list[str | Marker]"
"""One message's text, with Marker.IMAGE at the place of each picture; no two strings in a row, none empty."""
Messages: TypeAlias = Sequence[Mapping[str, Any]]
PieceT = TypeVar("PieceT", bound="Special | Marker")

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
GPT_OSS_ANSWER_HEADER: tuple[str | Special, ...] = (Special("<|channel|>"), "final", Special("<|message|>"))

# What closes a message of InternVL's templates.
INTERNVL2_5_END: tuple[Piece, ...] = (Special("<|im_end|>"), "\n")
GPT_OSS_END: tuple[Piece, ...] = (Special("<|end|>"),)


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation, or its next question, that ends where the model's answer starts.

    Attributes:
        pieces: text, tokens of the template and markers. Each string is encoded by itself; none is empty.
        images: what the messages gave as pictures, one for each Marker.IMAGE, in order.
        is_complete: the tokenizer puts nothing around the pieces: they go on where an answer stopped, or have it.
    """

    pieces: tuple[Piece, ...]
    images: tuple[Any, ...]
    is_complete: bool = False


@dataclass(frozen=True)
class Turn:
    """One message: `content` has a line break behind a picture where `render_prompt` says so, `parts` is as given."""

    role: str
    content: Content
    parts: Content
    images: tuple[Any, ...]


@dataclass(frozen=True)
class _Template:
    """A way to write a conversation: its start, then questions with answers between them.

    Attributes:
        start: the system message or None -> what stands before the first question.
        question: a user's message -> the user's turn and the start of the answer to it.
        answer: an assistant's message -> the rest of the assistant's turn, its end included.
        answer_end: the end of an assistant's turn, also where the model itself stopped with another token.
        has_parts: the official code encodes these parts one by one; otherwise the whole text at once.
    """

    start: Callable[[Content | None], list[Piece]]
    question: Callable[[Content], list[Piece]]
    answer: Callable[[Content], list[Piece]]
    answer_end: tuple[Piece, ...]
    has_parts: bool = False

    def join(self, parts: Iterable[Iterable[Piece]]) -> tuple[Piece, ...]:
        """The pieces of all parts, with a string for each stretch of text that is encoded at once."""
        if self.has_parts:
            return tuple(piece for part in parts for piece in join_text(part))
        return tuple(join_text(piece for part in parts for piece in part))


def render_prompt(messages: Messages, template: str) -> Prompt:
    """Render a conversation.

    Args:
        messages: Hugging Face schema: {"role": "system" | "user" | "assistant", "content": str or a list of
            {"type": "text", "text": str}, {"type": "image", "image": picture} (or "path": file) and {"type": "video",
            "video": frames} (see `video.read_video`)}. A system message may only be the first; user and assistant
            alternate; the last is the user's. A picture stands where its part stands, on a line of its own unless the
            next text starts with white space. Text is text, also where it spells a token of the template or of
            pictures. Other keys are refused, as a picture may be in them, unless their value says nothing: None, or
            empty, as clients write what is not used.
        template: "deepseek", "internvl2_5" or "internvl3_5_gpt_oss".
    Raises:
        InvalidRequest: a message is not in this schema.
    Source: conversation.py and processing_deepseek_vl_v2.py of DeepSeek-VL2, conversation.py of InternVL.
    """
    style = _find_template(template)
    turns = read_turns(messages)
    system = turns.pop(0).content if turns[0].role == "system" else None
    parts = [style.start(system)]
    parts += [(style.question if turn.role == "user" else style.answer)(turn.content) for turn in turns]
    return Prompt(style.join(parts), tuple(image for turn in turns for image in turn.images))


def render_follow_up(content: Any, template: str) -> Prompt:
    """Render a further question of a conversation: the end of the answer before it, and the question.

    The prompt of the conversation so far, the answer as the model wrote it, without the stop token, and this are
    together what `render_prompt` makes of all messages; but there "deepseek" strips an answer, and "internvl2_5"
    leaves out the end of an answer without text.

    Args:
        content: the user's message: str or a list of parts. It and template: see `render_prompt`.
    Raises:
        InvalidRequest: the content is not in this schema.
    """
    style = _find_template(template)
    turn = read_content(content)
    return Prompt(style.join([style.answer_end, style.question(turn.content)]), turn.images, is_complete=True)


def answer_header(template: str) -> tuple[str | Special, ...]:
    """What the template writes between a question and the text of an answer; models write it themselves."""
    written = _find_template(template).answer(["a"])
    return tuple(piece for piece in written[: written.index("a")] if not isinstance(piece, Marker))


def template_tokens(template: str) -> set[str]:
    """Names of all tokens that the template writes."""
    style = _find_template(template)
    pieces = [*style.start(["a"]), *style.question(["a"]), *style.answer(["a"]), *style.answer_end]
    return {piece.token for piece in pieces if isinstance(piece, Special)}


def join_text(pieces: Iterable[str | PieceT]) -> list[str | PieceT]:
    """The pieces with neighbouring strings as one, and without empty ones."""
    joined: list[str | PieceT] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, str) and isinstance(last, str):
            joined[-1] = last + piece
        elif piece != "":
            joined.append(piece)
    return joined


def _find_template(name: str) -> _Template:
    if name not in _TEMPLATES:
        raise InvalidRequest(f"template {name!r}: expected one of {', '.join(_TEMPLATES)}")
    return _TEMPLATES[name]


def _strip(content: Content) -> Content:
    """As str.strip does it with the whole message, in which a picture is no white space."""
    first = [piece.lstrip() if i == 0 and isinstance(piece, str) else piece for i, piece in enumerate(content)]
    last = len(first) - 1
    return join_text(piece.rstrip() if i == last and isinstance(piece, str) else piece for i, piece in enumerate(first))


def _deepseek_start(system: Content | None) -> list[Piece]:
    return [Marker.BOS, *_strip(system or [])]


def _deepseek_question(content: Content) -> list[Piece]:
    content = _strip(content)
    question: list[Piece] = [" ", *content, "\n\n"] if content else []
    return [Special("<|User|>"), ":", *question, Special("<|Assistant|>"), ":"]


def _deepseek_answer(content: Content) -> list[Piece]:
    return [*_strip(content), Marker.EOS]


def _close(content: Content, end: tuple[Piece, ...]) -> list[Piece]:
    """InternVL's templates close a message only if it has text."""
    return [*content, *end] if content else []


def _internvl2_5_start(system: Content | None) -> list[Piece]:
    text = [INTERNVL2_5_SYSTEM] if system is None else system
    return [Special("<|im_start|>"), "system\n", *text, *INTERNVL2_5_END]


def _internvl2_5_question(content: Content) -> list[Piece]:
    start = Special("<|im_start|>")
    return [start, "user\n", *_close(content, INTERNVL2_5_END), start, "assistant\n"]


def _internvl2_5_answer(content: Content) -> list[Piece]:
    return _close(content, INTERNVL2_5_END)


def _gpt_oss_start(system: Content | None) -> list[Piece]:
    text = [INTERNVL3_5_GPT_OSS_SYSTEM] if system is None else system
    return [Special("<|start|>"), "system", Special("<|message|>"), *text, *GPT_OSS_END]


def _gpt_oss_question(content: Content) -> list[Piece]:
    start = Special("<|start|>")
    return [start, "user", Special("<|message|>"), *_close(content, GPT_OSS_END), start, "assistant"]


def _gpt_oss_answer(content: Content) -> list[Piece]:
    return [*GPT_OSS_ANSWER_HEADER, *content, *GPT_OSS_END]


_TEMPLATES: dict[str, _Template] = {
    "deepseek": _Template(_deepseek_start, _deepseek_question, _deepseek_answer, (Marker.EOS,), has_parts=True),
    "internvl2_5": _Template(_internvl2_5_start, _internvl2_5_question, _internvl2_5_answer, INTERNVL2_5_END),
    "internvl3_5_gpt_oss": _Template(_gpt_oss_start, _gpt_oss_question, _gpt_oss_answer, GPT_OSS_END),
}


def read_content(content: Any) -> Turn:
    """The turn of a user's message. Raises InvalidRequest as `render_follow_up`."""
    return _read_turn({"role": "user", "content": content}, "message")


def read_turns(messages: Messages) -> list[Turn]:
    """The messages, checked. Raises InvalidRequest as `render_prompt`."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequest(
            f"messages is {messages!r:.60}: expected a list of {{'role': ..., 'content': ...}}, at least one"
        )
    turns = [_read_turn(message, f"messages[{i}]") for i, message in enumerate(messages)]
    roles = [turn.role for turn in turns]
    asked = roles[1:] if roles[0] == "system" else roles
    if len(asked) % 2 == 0 or asked != (["user", "assistant"] * len(asked))[: len(asked)]:
        raise InvalidRequest(
            f"messages have the roles {', '.join(roles)}: expected an optional system message, "
            "then user and assistant in turn, the last one a user's"
        )
    return turns


def _read_turn(message: Any, name: str) -> Turn:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise InvalidRequest(f"{name} is {message!r:.60}: expected an object with 'role' and 'content'")
    _check_keys(message, ("role", "content"), name)
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise InvalidRequest(f"{name} has the role {role!r:.60}: expected 'system', 'user' or 'assistant'")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise InvalidRequest(f"{name} has content of type {type(content).__name__}: expected a string or a list")
    read = [one for i, part in enumerate(parts) for one in _read_part(part, f"{name}.content[{i}]")]
    images = tuple(image for is_image, image in read if is_image)
    if images and role != "user":
        raise InvalidRequest(f"{name} ({role}) holds {len(images)} image(s): expected them in user messages only")
    as_given: Content = [Marker.IMAGE if is_image else value for is_image, value in read]
    return Turn(role, _place_images(read), as_given, images)


def _read_part(part: Any, name: str) -> list[tuple[bool, Any]]:
    """[(False, text)], [(True, picture)], or several of both for a video."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        _check_keys(part, ("type", "text"), name)
        if any("\ud800" <= letter <= "\udfff" for letter in part["text"]):
            raise InvalidRequest(f"{name} has half of a surrogate pair in {part['text']!r:.80}: expected Unicode text")
        return [(False, part["text"])]
    if kind == "video" and part.get("video") is not None:
        _check_keys(part, video.KEYS, name)
        return video.read_video(part, name)
    if kind == "image":
        given = [part[key] for key in ("image", "path") if part.get(key) is not None]
        if len(given) > 1:
            raise InvalidRequest(f"{name} has both 'image' and 'path': expected one picture in a part")
        if given:
            _check_keys(part, ("type", "image", "path"), name)
            return [(True, given[0])]
    words = [kind, *part] if isinstance(part, Mapping) else []
    advice = next((f"; {_KEY_ADVICE[word]}" for word in words if isinstance(word, str) and word in _OTHER_MEDIA), "")
    raise InvalidRequest(
        f"{name} is {part!r:.80}: expected {{'type': 'text', 'text': str}}, {{'type': 'image', 'image': picture}} or "
        f"{video.EXPECTED}{advice}"
    )


def _check_keys(given: Mapping[Any, Any], known: Sequence[str], name: str) -> None:
    """Refuse a key that would have no effect."""
    for key, value in given.items():
        is_empty = value is None or (isinstance(value, (str, Sequence, Mapping)) and not len(value))
        if key in known or is_empty:
            continue
        close = difflib.get_close_matches(str(key), [*known, *_KEY_ADVICE], n=1, cutoff=0.7)
        meant = close[0] if close else None
        advice = f"did you mean {meant!r}?" if meant in known else _KEY_ADVICE.get(meant or "", "leave it out")
        raise InvalidRequest(f"{name} has the key {key!r:.60}: known are {', '.join(map(repr, known))}; {advice}")


_A_PICTURE = "a picture is a part of a user's content: {'type': 'image', 'image': picture or path}"
_AN_ADDRESS = "addresses are not read: save the picture to a file and give {'type': 'image', 'path': file}"
_OTHER_MEDIA = {
    **dict.fromkeys(("image_url", "input_image", "url"), _AN_ADDRESS),
    **dict.fromkeys(("audio", "audios", "input_audio"), "text and pictures are all that is read"),
    **dict.fromkeys(("video", "videos", "video_url"), f"a video is a part of a user's content: {video.EXPECTED}"),
}
_KEY_ADVICE = {
    **dict.fromkeys(("image", "images", "path", "paths", "picture", "pictures"), _A_PICTURE),
    **_OTHER_MEDIA,
    "text": "a text is a part of its own: {'type': 'text', 'text': str}",
    **dict.fromkeys(("tools", "tool_calls", "function_call"), "no template here writes calls; put them into the text"),
}


def _place_images(read: list[tuple[bool, Any]]) -> Content:
    """The text of a message with Marker.IMAGE at the place of each picture."""
    placed: Content = []
    for i, (is_image, value) in enumerate(read):
        if not is_image:
            placed.append(value)
            continue
        following = read[i + 1] if i + 1 < len(read) else (False, "")
        starts_with_space = not following[0] and following[1][:1].isspace()
        placed += [Marker.IMAGE, "" if starts_with_space else "\n"]
    return join_text(placed)
