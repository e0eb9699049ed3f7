# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's own chat template, rendered as transformers does, to the pieces of a prompt.

Text stays text: what a message spells is marked before rendering, so that only tokens that the template itself writes
become tokens. The start of a name at the end of a text is marked, too: templates write texts one behind the other, and
may trim them. Needs jinja2, which only bundles with such a template do.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.config import ChatTemplate
from fastmmoe.runtime.request.prompts import Marker, Piece, Prompt, Special, Turn, join_text, read_content, read_turns
from fastmmoe.runtime.request.video import VideoFrame

INSTALL = "pip install 'fastmmoe[chat-template]'"
_WRONG = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError)

PLACEHOLDER = "<image>"
"""What some templates write for a picture; others write the token itself."""


class ChatRenderer:
    """Renders one template.

    Args:
        tokens: names that become tokens where the template writes them.
        image_token: the name of the token at the visual positions.
    Raises:
        InvalidRequest: jinja2 is not installed, or the template is none.
    """

    def __init__(self, template: ChatTemplate, tokens: Collection[str], image_token: str) -> None:
        self._template, self._image_token = template, image_token
        names = sorted({*tokens, image_token, PLACEHOLDER}, key=len, reverse=True)
        self._names = re.compile(f"({'|'.join(map(re.escape, names))})")
        self._starts = {name[:length] for name in names for length in range(1, len(name))}
        self._longest_start = max(map(len, self._starts))
        self._jinja2 = _import_jinja2()
        try:
            self._compiled = _environment(self._jinja2).from_string(template.source)
        except (self._jinja2.TemplateError, *_WRONG) as error:
            raise InvalidRequest(f"the checkpoint's chat template is not valid: {_line(error)}") from error

    def prompt(self, messages: Any) -> Prompt:
        """As `render_prompt`."""
        turns = read_turns(messages)
        _refuse_video(turns)
        marks = _Marks(self._template.source, turns)
        pieces = self._pieces(self._render(turns, marks), marks)
        images = tuple(image for turn in turns for image in turn.images)
        return Prompt(self._counted(pieces, len(images)), images, is_complete=True)

    def follow_up(self, content: Any) -> Prompt:
        """As `render_follow_up`: what the template writes behind an earlier answer."""
        asked = read_content(content)
        _refuse_video([asked])
        marks = _Marks(self._template.source, [asked])
        turns = [Turn("user", ["a"], ["a"], ()), Turn("assistant", [marks.answer], [marks.answer], ()), asked]
        _, *rest = self._render(turns, marks).split(marks.answer)
        if len(rest) != 1:
            raise InvalidRequest(
                "the checkpoint's chat template does not keep earlier answers as they are: a conversation cannot go on "
                "from its cache; give all messages to generate(), or export with --chat-template builtin"
            )
        return Prompt(self._counted(self._pieces(rest[0], marks), len(asked.images)), asked.images, is_complete=True)

    def text(self, messages: Any) -> str:
        """What the template writes, the image token at the place of each picture. For messages without its tokens."""
        return "".join(
            piece if isinstance(piece, str) else piece.token if isinstance(piece, Special) else self._image_token
            for piece in self.prompt(messages).pieces
        )

    def _render(self, turns: Sequence[Turn], marks: _Marks) -> str:
        messages = [{"role": turn.role, "content": self._content(turn, marks)} for turn in turns]
        names = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            return str(self._compiled.render(**names, **self._template.tokens))
        # A template is a program: anything may go wrong in it.
        except (self._jinja2.TemplateError, *_WRONG) as error:
            raise InvalidRequest(f"the checkpoint's chat template cannot be rendered: {_line(error)}") from error

    def _content(self, turn: Turn, marks: _Marks) -> Any:
        if self._template.takes_parts:
            return [
                {"type": "text", "text": self._hidden(piece, marks)} if isinstance(piece, str) else {"type": "image"}
                for piece in turn.parts
            ]
        return "".join(self._hidden(piece, marks) if isinstance(piece, str) else marks.image for piece in turn.content)

    def _hidden(self, text: str, marks: _Marks) -> str:
        """The text without any name, and without the start of one that the text behind it could complete."""
        text = self._names.sub(lambda name: marks.hide(name[0]), text)
        end = len(text.rstrip())
        for start in range(max(0, end - self._longest_start), end):
            if text[start:end] in self._starts:
                return text[:start] + marks.hide(text[start:end]) + text[end:]
        return text

    def _pieces(self, rendered: str, marks: _Marks) -> list[Piece]:
        pieces: list[Piece] = []
        for i, part in enumerate(self._names.split(rendered)):
            if i % 2:
                pieces.append(Marker.IMAGE if part in (self._image_token, PLACEHOLDER) else Special(part))
            else:
                first, *more = part.split(marks.image)
                pieces += [first, *(piece for text in more for piece in (Marker.IMAGE, text))]
        return join_text([marks.shown(piece) if isinstance(piece, str) else piece for piece in pieces])

    def _counted(self, pieces: list[Piece], images: int) -> tuple[Piece, ...]:
        found = pieces.count(Marker.IMAGE)
        if found != images:
            raise InvalidRequest(f"the checkpoint's chat template writes {found} pictures for {images}")
        return tuple(pieces)


def _refuse_video(turns: Iterable[Turn]) -> None:
    """Templates write videos each in their own way, which is not read here."""
    if any(isinstance(image, VideoFrame) for turn in turns for image in turn.images):
        raise InvalidRequest(
            "the messages hold a video, which the checkpoint's own chat template is not asked to write; give frames as "
            "pictures, or export with --chat-template builtin"
        )


class _Marks:
    """Characters that no text and no template has: for names that a text spells, for pictures, for an answer."""

    def __init__(self, source: str, turns: Iterable[Turn]) -> None:
        used = {letter for turn in turns for piece in turn.content if isinstance(piece, str) for letter in piece}
        used |= set(source)
        self._free = (chr(code) for code in range(0xF0000, 0xFFFFD) if chr(code) not in used)
        self.image, self.answer = next(self._free), next(self._free)
        self._hidden: dict[str, str] = {}

    def hide(self, name: str) -> str:
        """A character instead of the name, or of its start."""
        if name not in self._hidden:
            self._hidden[name] = next(self._free)
        return self._hidden[name]

    def shown(self, text: str) -> str:
        """The text with the names that were hidden."""
        for name, mark in self._hidden.items():
            text = text.replace(mark, name)
        return text


def _import_jinja2() -> Any:
    try:
        importlib.import_module("jinja2.sandbox")
        importlib.import_module("jinja2.ext")
        return importlib.import_module("jinja2")
    except ModuleNotFoundError as error:
        raise InvalidRequest(f"the checkpoint's chat template needs {error.name}: {INSTALL}") from error


def _environment(jinja2: Any) -> Any:
    """As transformers sets it up (utils/chat_template_utils.py)."""
    extensions = [_generation_block(jinja2), jinja2.ext.loopcontrols]
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raiser(jinja2)
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _generation_block(jinja2: Any) -> Any:
    """{% generation %} marks what an assistant wrote, for training; what is in it is rendered as it is."""

    def parse(_self: Any, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return type("GenerationBlock", (jinja2.ext.Extension,), {"tags": {"generation"}, "parse": parse})


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raiser(jinja2: Any) -> Any:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    return raise_exception


def _line(error: Exception) -> str:
    return ascii(f"{type(error).__name__}: {error}"[:200])[1:-1]
