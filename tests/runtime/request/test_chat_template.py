# SPDX-License-Identifier: Apache-2.0
"""Templates of checkpoints as pieces of prompts; their ids beside the built-in ones are in tests/exporter."""

from __future__ import annotations

from typing import Any

import pytest

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.chat_template import ChatRenderer
from fastmmoe.runtime.request.config import ChatTemplate
from fastmmoe.runtime.request.prompts import Marker, Special

STRINGS = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)
PARTS = (
    "{% for m in messages %}<s>{{ m.role }}: {% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{% generation %}{{ part.text | trim }}{% endgeneration %}{% endif %}"
    "{% endfor %}</s>{% endfor %}<s>"
)
START, END = Special("<s>"), Special("</s>")


def renderer(source: str = STRINGS, *, takes_parts: bool = False, **tokens: str) -> ChatRenderer:
    template = ChatTemplate(source=source, takes_parts=takes_parts, tokens=tokens)
    return ChatRenderer(template, ("<s>", "</s>"), "<picture>")


def user(*parts: str | None) -> list[dict[str, Any]]:
    """A question, None for a picture."""
    content = [{"type": "image", "image": 7} if part is None else {"type": "text", "text": part} for part in parts]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("takes_parts", [False, True])
def test_a_template_writes_tokens_and_pictures(takes_parts: bool) -> None:
    """Where it takes strings, the picture's place in them is followed by a line break, as in the built-in templates."""
    found = renderer(PARTS if takes_parts else STRINGS, takes_parts=takes_parts).prompt(user("Is", None, "red?"))
    end = "red?" if takes_parts else "\nred?"
    assert found.pieces == (START, "user: Is", Marker.IMAGE, end, END, START)
    assert found.images == (7,) and found.is_complete


@pytest.mark.parametrize("word", ["<s>", "</s>", "<picture>", "<image>", "\U000f0000", "<s", "{{1}}"])
@pytest.mark.parametrize("takes_parts", [False, True])
def test_what_a_text_spells_is_text(word: str, takes_parts: bool) -> None:
    one = renderer(PARTS if takes_parts else STRINGS, takes_parts=takes_parts)
    assert one.prompt(user(word)).pieces == (START, f"user: {word}", END, START)
    if not takes_parts:
        return
    assert one.prompt(user(*word)).pieces == (START, f"user: {word}", END, START)


def test_a_text_cannot_complete_a_token_of_the_template() -> None:
    """The template trims and writes texts one behind the other."""
    assert renderer(PARTS, takes_parts=True).prompt(user("< ", " s", " >")).pieces == (START, "user: <s>", END, START)


def test_the_template_knows_tokens_by_name() -> None:
    found = renderer("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", bos_token="<s>", eos_token="end")
    assert found.prompt(user("Hi")).pieces == (START, "Hiend")
    assert found.text(user(None, "Hi")) == "<s><picture>\nHiend"


def test_what_transformers_gives_a_template() -> None:
    source = "{{ {'b': 'ü', 'a': [1]} | tojson }}{{ strftime_now('%%') }}"
    source += "{% for i in [1, 2] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert renderer(source).prompt(user("Hi")).pieces == ('{"b": "ü", "a": [1]}%1',)


def test_a_question_behind_an_earlier_answer() -> None:
    for one, end in ((renderer(), "\nAnd?"), (renderer(PARTS, takes_parts=True), "And?")):
        found = one.follow_up(user(None, "And?")[0]["content"])
        assert found.pieces == (END, START, "user: ", Marker.IMAGE, end, END, START)
        assert found.images == (7,)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% if %}", "the checkpoint's chat template is not valid: TemplateSyntaxError: Expected an expression"),
        ("{{ x.y }}", "cannot be rendered: UndefinedError: 'x' is undefined"),
        ("{{ raise_exception('no such role') }}", "cannot be rendered: TemplateError: no such role"),
        ("{{ 1 / 0 }}", "cannot be rendered: ZeroDivisionError: division by zero"),
        ("{{ messages.append(1) }}", "cannot be rendered: SecurityError"),
        ("{{ raise_exception('a\nb' * 200) }}", "cannot be rendered: TemplateError: a\\nb"),
        ("no picture", "the checkpoint's chat template writes 0 pictures for 1"),
        ("<image><picture>{{ messages[0].content }}", "the checkpoint's chat template writes 3 pictures for 1"),
    ],
)
def test_templates_that_cannot_be_used(source: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        renderer(source).prompt(user("Hi", None))
    line = str(refusal.value)
    assert words in line and "\n" not in line and len(line) < 400


@pytest.mark.parametrize(
    "source",
    ["{{ messages[-1].content }}", "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"],
    ids=["left out", "twice"],
)
def test_answers_that_a_template_changes(source: str) -> None:
    with pytest.raises(InvalidRequest, match=r"does not keep earlier answers as they are: a conversation cannot go on"):
        renderer(source).follow_up("And?")


def test_a_video_is_refused_in_questions_and_further_ones() -> None:
    content = [{"type": "video", "video": ["a"]}]
    with pytest.raises(InvalidRequest, match=r"hold a video, .* export with --chat-template builtin"):
        renderer().prompt([{"role": "user", "content": content}])
    with pytest.raises(InvalidRequest, match=r"hold a video, .* export with --chat-template builtin"):
        renderer().follow_up(content)
