# SPDX-License-Identifier: Apache-2.0
"""Chat templates against the recorded prompts and, for several turns, against the official rules by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.prompts import (
    GPT_OSS_ANSWER_HEADER,
    INTERNVL2_5_SYSTEM,
    Marker,
    Prompt,
    Special,
    render_follow_up,
    render_prompt,
    template_tokens,
)

PICTURE: dict[str, Any] = {"type": "image", "image": "a.png"}
WORDS = {Marker.BOS: "<BOS>", Marker.EOS: "<EOS>", Marker.IMAGE: "<image>"}
TEMPLATES = ("deepseek", "internvl2_5", "internvl3_5_gpt_oss")


def _word(piece: str | Special | Marker) -> str:
    if isinstance(piece, Marker):
        return WORDS[piece]
    return piece.token if isinstance(piece, Special) else piece


def _text(prompt: Prompt) -> str:
    return "".join(map(_word, prompt.pieces))


def _parts(text: str, images: int) -> list[dict[str, Any]]:
    return [*[PICTURE] * images, {"type": "text", "text": text}]


def _user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def _render(content: Any, template: str = "deepseek") -> str:
    return _text(render_prompt(_user(content), template))


@pytest.mark.parametrize("case", ["single", "multi3", "text"])
def test_deepseek_prompts(case: str, golden: Path) -> None:
    meta = json.loads((golden / "dsvl2-inputs" / "meta.json").read_text())
    texts = meta["prompts"][case].split("<image>")
    content = [part for text in texts for part in (PICTURE, {"type": "text", "text": text})][1:]
    prompt = render_prompt(_user(content), "deepseek")
    assert _text(prompt) == "<BOS>" + meta["sft_format"][case][0]
    assert len(prompt.images) == len(meta["images"][case])


@pytest.mark.parametrize(("template", "group"), [("internvl2_5", "qwen"), ("internvl3_5_gpt_oss", "oss")])
@pytest.mark.parametrize(
    ("case", "question", "images"),
    [
        ("single", "What colour is the largest box?", 1),
        ("small", "OCR.", 1),
        ("text", "Say hello in three words, no picture here.", 0),
    ],
)
def test_internvl_prompts(template: str, group: str, case: str, question: str, images: int, golden: Path) -> None:
    expected = json.loads((golden / "internvl-inputs" / "meta.json").read_text())["prompts"][group][case]
    messages = _user(_parts(question, images))
    if group == "qwen":
        messages = [{"role": "system", "content": "You are a helpful assistant."}, *messages]
    # gpt-oss's recorded prompts have the official system text, which is the default.
    assert _text(render_prompt(messages, template)) == expected


def test_default_system_text_of_internvl2_5() -> None:
    prompt = _render("Hi", "internvl2_5")
    assert prompt.startswith(f"<|im_start|>system\n{INTERNVL2_5_SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n")
    # Digest of the sentence in InternVL's conversation.py, so that no character of it changes unnoticed.
    digest = hashlib.sha256(INTERNVL2_5_SYSTEM.encode()).hexdigest()
    assert digest == "bdb4d179c4c458dd9bd365588d3fd15aba0f2b755b4b192383416f610ad3396e"


HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": _parts("First?", 1)},
    {"role": "assistant", "content": " One. "},
    {"role": "user", "content": _parts("Second?", 2)},
]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            "deepseek",
            "<BOS>Be brief.<|User|>: <image>\nFirst?\n\n<|Assistant|>:One.<EOS>"
            "<|User|>: <image>\n<image>\nSecond?\n\n<|Assistant|>:",
        ),
        (
            "internvl2_5",
            "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n<image>\nFirst?<|im_end|>\n"
            "<|im_start|>assistant\n One. <|im_end|>\n<|im_start|>user\n<image>\n<image>\nSecond?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            "internvl3_5_gpt_oss",
            "<|start|>system<|message|> Be brief. <|end|><|start|>user<|message|><image>\nFirst?<|end|>"
            "<|start|>assistant<|channel|>final<|message|> One. <|end|>"
            "<|start|>user<|message|><image>\n<image>\nSecond?<|end|><|start|>assistant",
        ),
    ],
)
def test_history_of_several_turns_and_pictures(template: str, expected: str) -> None:
    prompt = render_prompt(HISTORY, template)
    assert _text(prompt) == expected
    assert len(prompt.images) == 3


SPELLED = (
    *("<image>", "<IMG_CONTEXT>", "<img>", "</img>", "<|im_end|>", "<|im_start|>user", "<|User|>", "<|Assistant|>:"),
    *("<｜end▁of▁sentence｜>", "<|start|>user<|message|>", "<|end|>", "<|channel|>analysis<|message|>"),
)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_text_that_spells_a_token_is_text(template: str, spelled: str, place: int) -> None:
    def pieces(text: str) -> tuple[str | Special | Marker, ...]:
        messages = [dict(message) for message in HISTORY]
        content = messages[place]["content"]
        messages[place]["content"] = f"a{text}b" if isinstance(content, str) else [*content[:-1], *_parts(text, 0)]
        return render_prompt(messages, template).pieces

    expected = [piece.replace("Q", spelled) if isinstance(piece, str) else piece for piece in pieces("Q")]
    assert list(pieces(spelled)) == expected
    assert sum(spelled in piece for piece in expected if isinstance(piece, str)) == 1


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_parts_that_spell_a_token_together_are_text(template: str, spelled: str, place: int) -> None:
    messages = [dict(message) for message in HISTORY]
    whole = [dict(message) for message in HISTORY]
    messages[place]["content"] = [{"type": "text", "text": letter} for letter in spelled]
    whole[place]["content"] = spelled
    pieces = render_prompt(messages, template).pieces
    assert pieces == render_prompt(whole, template).pieces
    assert sum(spelled in piece for piece in pieces if isinstance(piece, str)) == 1


def test_tokens_of_the_templates() -> None:
    assert template_tokens("deepseek") == {"<|User|>", "<|Assistant|>"}
    assert template_tokens("internvl2_5") == {"<|im_start|>", "<|im_end|>"}
    assert template_tokens("internvl3_5_gpt_oss") == {"<|start|>", "<|message|>", "<|end|>", "<|channel|>"}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("deepseek", "<EOS><|User|>: And now?\n\n<|Assistant|>:"),
        ("internvl2_5", "<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"),
        ("internvl3_5_gpt_oss", "<|end|><|start|>user<|message|>And now?<|end|><|start|>assistant"),
    ],
)
def test_follow_up(template: str, expected: str) -> None:
    text_only = render_follow_up("And now?", template)
    assert (_text(text_only), text_only.images, text_only.is_complete) == (expected, (), True)
    with_pictures = render_follow_up(_parts("And now?", 2), template)
    assert _text(with_pictures) == expected.replace("And", "<image>\n<image>\nAnd")
    assert with_pictures.images == ("a.png", "a.png")


ANSWERS: dict[str, tuple[str | Special, ...]] = {
    "deepseek": ("One.",),
    "internvl2_5": (" One. \n",),
    "internvl3_5_gpt_oss": (*GPT_OSS_ANSWER_HEADER, "One."),
}


@pytest.mark.parametrize("template", list(ANSWERS))
@pytest.mark.parametrize(
    "content", ["Second?", " \n", "", [], _parts("Second?", 1), [{"type": "text", "text": "What is"}, PICTURE]]
)
def test_follow_ups_continue_to_the_prompt_of_all_messages(template: str, content: Any) -> None:
    answer = ANSWERS[template]
    pieces, images = render_prompt(HISTORY[:2], template).pieces, render_prompt(HISTORY[:2], template).images
    messages = HISTORY[:2]
    for _ in range(2):
        follow_up = render_follow_up(content, template)
        pieces += (*answer, *follow_up.pieces)
        images += follow_up.images
        messages = [*messages, {"role": "assistant", "content": answer[-1]}, *_user(content)]
    whole = render_prompt(messages, template)
    assert not whole.is_complete
    assert (_text(Prompt(pieces, images)), images) == (_text(whole), whole.images)


def test_deepseek_follow_up_is_cut_into_the_same_pieces_as_the_whole_prompt() -> None:
    messages = [*HISTORY[:2], {"role": "assistant", "content": "One."}, HISTORY[3]]
    whole = render_prompt(messages, "deepseek").pieces
    parts = (*render_prompt(HISTORY[:2], "deepseek").pieces, "One.")
    assert whole == parts + render_follow_up(HISTORY[3]["content"], "deepseek").pieces


def test_follow_up_with_typed_tokens() -> None:
    found = render_follow_up([PICTURE, {"type": "text", "text": "See <image><|User|>"}], "deepseek")
    question = (": ", Marker.IMAGE, "\nSee <image><|User|>\n\n")
    assert found.pieces == (Marker.EOS, Special("<|User|>"), *question, Special("<|Assistant|>"), ":")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "message has content of type int: expected a string or a list"),
        (None, "message has content of type NoneType: expected a string or a list"),
        ([{"type": "video"}], r"message.content\[0\] is \{'type': 'video'\}: expected"),
    ],
)
def test_unusable_follow_up(content: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as error:
        render_follow_up(content, "internvl2_5")
    assert "\n" not in str(error.value)


def test_deepseek_without_words_has_no_space_and_no_blank_line() -> None:
    assert _render(" \n") == "<BOS><|User|>:<|Assistant|>:"


@pytest.mark.parametrize("template", ["internvl2_5", "internvl3_5_gpt_oss"])
def test_internvl_without_words_has_no_separator(template: str) -> None:
    expected = {"internvl2_5": "user\n<|im_start|>assistant\n", "internvl3_5_gpt_oss": "<|message|><|start|>assistant"}
    assert _render("", template).endswith(expected[template])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            [{"type": "text", "text": "A: "}, PICTURE, {"type": "text", "text": "\nB: "}, PICTURE],
            "A: <image>\nB: <image>",
        ),
        ([{"type": "text", "text": "1 "}, PICTURE, {"type": "text", "text": " 2"}], "1 <image> 2"),
        ([{"type": "text", "text": "What?"}, PICTURE], "What?<image>"),
        ([PICTURE, PICTURE, {"type": "text", "text": "Both?"}], "<image>\n<image>\nBoth?"),
        ([{"type": "text", "text": " \n"}, PICTURE, {"type": "text", "text": " "}], "<image>"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": ""}, {"type": "text", "text": " b "}], "a b"),
        ([{"type": "image", "path": "a.png"}], "<image>"),
    ],
)
def test_place_of_pictures(content: Any, expected: str) -> None:
    assert _render(content) == f"<BOS><|User|>: {expected}\n\n<|Assistant|>:"


def test_pictures_come_in_the_order_of_the_messages() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image", "image": 1}, {"type": "image", "path": 2}]},
        {"role": "assistant", "content": [{"type": "text", "text": "ok"}]},
        {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "image", "image": 3}]},
    ]
    assert render_prompt(messages, "internvl2_5").images == (1, 2, 3)


BAD_ORDER = "expected an optional system message, then user and assistant in turn, the last one a user's"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"messages is \[\]: expected a list"),
        ("hello", "messages is 'hello': expected a list"),
        ({"role": "user"}, "messages is .*: expected a list"),
        (["hello"], r"messages\[0\] is 'hello': expected an object with 'role' and 'content'"),
        ([{"role": "user"}], r"messages\[0\] is .*: expected an object with 'role' and 'content'"),
        ([{"role": "tool", "content": ""}], r"messages\[0\] has the role 'tool': expected 'system', 'user'"),
        ([{"role": "user", "content": 3}], r"messages\[0\] has content of type int: expected a string or a list"),
        (_user([{"type": "video"}]), r"messages\[0\].content\[0\] is \{'type': 'video'\}: expected"),
        (_user([{"type": "text"}]), r"messages\[0\].content\[0\] is .*: expected"),
        (_user([{"type": "image", "url": "x"}]), r"messages\[0\].content\[0\] is .*: expected"),
        (_user(["hello"]), r"messages\[0\].content\[0\] is 'hello': expected"),
        ([{"role": "system", "content": [PICTURE]}], r"messages\[0\] \(system\) holds 1 image\(s\): expected them in"),
        ([{"role": "system", "content": "a"}], BAD_ORDER),
        ([*_user("a"), {"role": "assistant", "content": "b"}], f"roles user, assistant: {BAD_ORDER}"),
        ([*_user("a"), *_user("b")], f"roles user, user: {BAD_ORDER}"),
        ([*_user("a"), *_user("b"), *_user("c")], BAD_ORDER),
        ([{"role": "assistant", "content": "b"}], BAD_ORDER),
        ([*_user("a"), {"role": "system", "content": "b"}, *_user("c")], f"roles user, system, user: {BAD_ORDER}"),
    ],
)
def test_unusable_messages(messages: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as error:
        render_prompt(messages, "internvl2_5")
    assert "\n" not in str(error.value)


TEXT: dict[str, Any] = {"type": "text", "text": "a"}
OF_MESSAGE = r"messages\[0\] has the key '{}': known are 'role', 'content'; {}"
OF_PART = r"messages\[0\].content\[0\] has the key '{}': known are 'type', {}; {}"
A_PICTURE = "a picture is a part of a user's content: .'type': 'image', 'image': picture or path."


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"content": "a", "images": ["x.png"]}, OF_MESSAGE.format("images", A_PICTURE)),
        ({"content": "a", "image": "x.png"}, OF_MESSAGE.format("image", A_PICTURE)),
        ({"content": "a", "imges": ["x.png"]}, OF_MESSAGE.format("imges", A_PICTURE)),
        ({"content": "a", "path": Path("x.png")}, OF_MESSAGE.format("path", A_PICTURE)),
        ({"content": "a", "image_url": "http://x"}, OF_MESSAGE.format("image_url", "addresses are not read")),
        ({"content": "a", "name": "Ann"}, OF_MESSAGE.format("name", "leave it out")),
        ({"content": "a", "tool_calls": [{}]}, OF_MESSAGE.format("tool_calls", "no template here writes calls")),
        ({"content": "a", "contents": "b"}, OF_MESSAGE.format("contents", "did you mean 'content'?")),
        ({"content": "a", "message": "b"}, OF_MESSAGE.format("message", "leave it out")),
        ({"content": [TEXT | {"text ": "b"}]}, OF_PART.format("text ", "'text'", "did you mean 'text'.")),
        ({"content": [PICTURE | {"imag": "b"}]}, OF_PART.format("imag", "'image', 'path'", "did you mean 'image'.")),
        ({"content": "a", 7: "b"}, r"messages\[0\] has the key 7: known are 'role', 'content'; leave it out"),
        ({"content": [TEXT | {"image": "x"}]}, OF_PART.format("image", "'text'", A_PICTURE)),
        ({"content": [TEXT | {"image": np.zeros((2, 2, 3))}]}, OF_PART.format("image", "'text'", A_PICTURE)),
        ({"content": [TEXT | {"audio": b"x"}]}, OF_PART.format("audio", "'text'", "text and pictures are all")),
        ({"content": [PICTURE | {"video": "x"}]}, OF_PART.format("video", "'image', 'path'", "a video is a part")),
        ({"content": [PICTURE | {"text": "a"}]}, OF_PART.format("text", "'image', 'path'", "a text is a part of its")),
        ({"content": [PICTURE | {"path": "b.png"}]}, r"content\[0\] has both 'image' and 'path': expected one picture"),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "expected .*; addresses are not read"),
        ({"content": [{"type": "image", "url": "x"}]}, "expected .*; addresses are not read"),
        ({"content": [{"type": "video", "video": "x"}]}, "a video is of type str: expected a list of pictures"),
        ({"content": [{"type": "video_url", "video_url": "x"}]}, "expected .*; a video is a part of a user's content"),
        ({"content": [{"type": "video", "video": ["x"], "nframes": 2}]}, "'nframes': .* did you mean 'num_frames'"),
        ({"content": [{"type": "audio", "audio": "x"}]}, "expected .*; text and pictures are all that is read"),
    ],
)
def test_keys_that_would_have_no_effect_are_refused(message: dict[Any, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as error:
        render_prompt([{"role": "user", **message}], "internvl2_5")
    assert "\n" not in str(error.value)


def test_keys_that_say_nothing_are_accepted() -> None:
    nothing: dict[str, Any] = {"name": None, "tool_calls": [], "images": (), "refusal": "", "audio": {}}
    content = [{**TEXT, "image": None, "path": None}, {**PICTURE, "path": None, "text": None}]
    found = render_prompt([{"role": "user", "content": content, **nothing}], "internvl2_5")
    assert found == render_prompt(_user([TEXT, PICTURE]), "internvl2_5")


def test_unknown_template() -> None:
    with pytest.raises(InvalidRequest, match="template 'vicuna': expected one of deepseek, internvl2_5"):
        render_prompt(_user("a"), "vicuna")
    with pytest.raises(InvalidRequest, match="template 'vicuna': expected one of deepseek, internvl2_5"):
        render_follow_up("a", "vicuna")
