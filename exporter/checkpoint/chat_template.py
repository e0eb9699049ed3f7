# SPDX-License-Identifier: Apache-2.0
"""The chat template that a checkpoint ships, compared with the built-in one on a few conversations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from fastmmoe.exporter.checkpoint.bounded import run_bounded
from fastmmoe.exporter.checkpoint.files import read_bytes
from fastmmoe.exporter.checkpoint.side_files import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_JSON,
    PROCESSOR,
    TOKENIZER_CONFIG,
    SideFiles,
)
from fastmmoe.exporter.checkpoint.tokenizer_files import token_name
from fastmmoe.runtime.errors import InvalidRequest, UnsupportedModel
from fastmmoe.runtime.request.chat_template import ChatRenderer
from fastmmoe.runtime.request.config import ChatTemplate, ProcessorConfig
from fastmmoe.runtime.request.processor import image_tokens
from fastmmoe.runtime.request.prompts import Marker, Special, render_prompt, template_tokens

BUILTIN, CHECKPOINT = "builtin", "checkpoint"

TEXT: dict[str, Any] = {"type": "text", "text": "What is this?"}
PICTURE: dict[str, Any] = {"type": "image", "image": "a.png"}
SYSTEM = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "A star."}]}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": [{"role": "user", "content": [TEXT]}],
    "a system prompt and a question": [SYSTEM, {"role": "user", "content": [TEXT]}],
    "a question about a picture": [SYSTEM, {"role": "user", "content": [PICTURE, TEXT]}],
    "a question about two pictures": [SYSTEM, {"role": "user", "content": [PICTURE, PICTURE, TEXT]}],
    "two questions": [
        SYSTEM,
        {"role": "user", "content": [PICTURE, TEXT]},
        ANSWER,
        {"role": "user", "content": [TEXT]},
    ],
}
_SHOWN = 40


def choose_template(files: SideFiles, config: ProcessorConfig, choice: str) -> tuple[ChatTemplate | None, str | None]:
    """The template for the bundle, None = the built-in one, and a line where the checkpoint's is another one.

    Args:
        choice: BUILTIN or CHECKPOINT.
    Raises:
        UnsupportedModel: CHECKPOINT, and there is no template or it cannot be rendered.
    """
    found = _find(files)
    if found is None:
        if choice == CHECKPOINT:
            raise UnsupportedModel(f"{files.directory}: no chat template in it; export with --chat-template {BUILTIN}")
        return None, None
    source, where = found
    try:
        template, difference = _judge(source, _tokens(files), config)
    except InvalidRequest as error:
        if choice == CHECKPOINT:
            raise UnsupportedModel(f"{where}: {error}; export with --chat-template {BUILTIN}") from error
        return None, f"chat template: the built-in {config.template} is used; {where}: {error}"
    if choice == CHECKPOINT:
        return template, None
    if difference is None:
        return None, None
    line = f"chat template: the built-in {config.template} is used; {where} has another one (--chat-template): "
    return None, line + difference


class _Judged(msgspec.Struct):
    template: ChatTemplate | None = None
    difference: str | None = None
    refusal: str | None = None


def _judge(source: str, tokens: dict[str, str], config: ProcessorConfig) -> tuple[ChatTemplate, str | None]:
    """The template, and where it differs from the built-in one. It is a program: it may not end, or fill the memory."""

    def render() -> bytes:
        judged = _Judged()
        try:
            judged.template = _with_form(source, tokens, config)
            judged.difference = _difference(_renderer(judged.template, config), config, tokens)
        except InvalidRequest as error:
            judged.refusal = str(error)
        return msgspec.json.encode(judged)

    judged = msgspec.json.decode(run_bounded(render, "to render the checkpoint's chat template"), type=_Judged)
    if judged.refusal is not None or judged.template is None:
        raise InvalidRequest(judged.refusal or "the checkpoint's chat template cannot be rendered")
    return judged.template, judged.difference


def _find(files: SideFiles) -> tuple[str, str] | None:
    """(template, file), in the order in which transformers' processors look for it."""
    if files.has(CHAT_TEMPLATE):
        try:
            return read_bytes(files.directory / CHAT_TEMPLATE).decode("utf-8"), CHAT_TEMPLATE
        except UnicodeDecodeError as error:
            raise UnsupportedModel(f"{files.directory / CHAT_TEMPLATE}: is not UTF-8 ({error.reason})") from error
    for name in (CHAT_TEMPLATE_JSON, PROCESSOR, TOKENIZER_CONFIG):
        value = files[name].get("chat_template", None, str | list[dict] | dict | None)
        if isinstance(value, list):
            value = next((one.get("template") for one in value if one.get("name") == "default"), None)
        elif isinstance(value, dict):
            value = value.get("default")
        if isinstance(value, str) and value:
            return value, name
    return None


def _tokens(files: SideFiles) -> dict[str, str]:
    """What a template knows by name."""
    keys = ("bos_token", "eos_token", "pad_token", "unk_token")
    return {key: token for key in keys if (token := token_name(files, key)) is not None}


def _renderer(template: ChatTemplate, config: ProcessorConfig) -> ChatRenderer:
    names = template_tokens(config.template) | image_tokens(config) | set(template.tokens.values())
    return ChatRenderer(template, names, config.image_token)


def _with_form(source: str, tokens: dict[str, str], config: ProcessorConfig) -> ChatTemplate:
    """The template in the form of messages that it takes: parts, as processors' templates do, or strings."""
    question, failure = CONVERSATIONS["a question"], None
    for takes_parts in (True, False):
        template = ChatTemplate(source=source, takes_parts=takes_parts, tokens=tokens)
        try:
            text = _renderer(template, config).text(question)
        except InvalidRequest as error:
            failure = failure or error
            continue
        # A template of strings writes a list as Python does.
        if TEXT["text"] in text and "'type'" not in text:
            return template
    raise failure or InvalidRequest("the checkpoint's chat template does not write the question")


def _difference(renderer: ChatRenderer, config: ProcessorConfig, tokens: dict[str, str]) -> str | None:
    """Where the first conversation that differs does, or None."""
    for what, messages in CONVERSATIONS.items():
        ours = "".join(_words(messages, config, tokens))
        theirs = renderer.text(messages)
        if ours != theirs:
            start = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
            at = min(len(ours), len(theirs)) if start is None else start
            a, b = (repr(text[at : at + _SHOWN]) for text in (ours, theirs))
            return f"for {what} {b} where the built-in one has {a}"
    return None


def _words(messages: list[dict[str, Any]], config: ProcessorConfig, tokens: dict[str, str]) -> Iterator[str]:
    markers = {Marker.BOS: tokens.get("bos_token", ""), Marker.EOS: tokens.get("eos_token", "")}
    for piece in render_prompt(messages, config.template).pieces:
        if isinstance(piece, Marker):
            yield markers.get(piece, config.image_token)
        else:
            yield piece.token if isinstance(piece, Special) else piece
