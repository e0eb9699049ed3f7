# SPDX-License-Identifier: Apache-2.0
"""Messages to the inputs of the graphs, by every family: what is text, what are tokens, how pictures are cut."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.request.image_reader import Picture
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.request.prompts import Special, render_prompt
from fastmmoe.runtime.request.tokens import load_tokenizer
from tests.support.processors import MakeMessages, MakeProcessor, processor_of

OwnCheckpoint = Callable[[str], Path]
INTERNVL = ("internvl-qwen3moe", "internvl-gptoss")


@pytest.mark.parametrize("name", ["dsvl2-mha", "internvl-qwen3moe"])
def test_text_tensors_need_no_images_and_no_mask(name: str, processor: MakeProcessor) -> None:
    (inputs,) = processor(name).from_tensors({"input_ids": np.array([[5, 6, 7]])})
    assert inputs.input_ids.tolist() == [5, 6, 7]
    assert inputs.visual_index.shape == (0,)
    assert inputs.vision_inputs == {}
    assert inputs.tile_counts == ()


@pytest.mark.parametrize(("size", "grid", "visual"), [((3456, 384), (9, 1), 1989), ((384, 3456), (1, 9), 2101)])
def test_longest_pictures(size: tuple[int, int], grid: tuple[int, int], visual: int, processor: MakeProcessor) -> None:
    message = {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", size)}]}
    inputs = processor("dsvl2-mha")([message])
    assert inputs.tile_counts == (10,)
    assert len(inputs.visual_index) == len(inputs.vision_inputs["layout_index"]) == visual
    assert visual == 211 + 14 * grid[1] * (14 * grid[0] + 1)


def test_third_picture_stops_tiling_over_the_whole_conversation(
    processor: MakeProcessor, messages: MakeMessages
) -> None:
    history = [
        *messages(["img0_700x500", "img1_420x980"], "First?"),
        {"role": "assistant", "content": "One."},
        *messages([], "Second?"),
    ]
    assert processor("dsvl2-mha")(history).tile_counts == (5, 7)
    history[2] = messages(["img2_300x260"], "Second?")[0]
    assert processor("dsvl2-mha")(history).tile_counts == (2, 2, 2)


def test_max_tiles_reaches_every_picture(processor: MakeProcessor, messages: MakeMessages) -> None:
    question = messages(["img0_700x500", "img1_420x980"], "Compare.")
    assert processor("dsvl2-mha")(question, max_tiles=2).tile_counts == (3, 3)
    assert processor("internvl-gptoss")(question, max_tiles=2).tile_counts == (1, 3)
    for name in ("dsvl2-mha", "internvl-gptoss"):
        with pytest.raises(InvalidRequest, match="max_tiles 0: expected at least 1"):
            processor(name)(question, max_tiles=0)


# What each model's templates and pictures are written with, and what ends a turn.
SPELLED = {
    "dsvl2-mha": ("<image>", "<|User|>", "<|Assistant|>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
    "internvl-qwen3moe": ("<IMG_CONTEXT>", "<img>", "</img>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<image>"),
    "internvl-gptoss": ("<IMG_CONTEXT>", "<img>", "<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>"),
}


@pytest.mark.parametrize(("name", "spelled"), [(name, word) for name, words in SPELLED.items() for word in words])
@pytest.mark.parametrize("place", ["system", "question", "answer", "last"])
def test_text_that_spells_a_token_has_the_ids_of_its_characters(
    name: str, spelled: str, place: str, processor: MakeProcessor, messages: MakeMessages
) -> None:
    """The golden tokenizers have a token for each byte, so ~ stands for as many tokens as the word has bytes."""
    make = processor(name)

    def inputs(word: str) -> ModelInputs:
        texts = {part: f"a {word if part == place else 'b'} c" for part in ("system", "question", "answer", "last")}
        system, question = messages(["img2_300x260"], "", texts["system"])
        question["content"][-1]["text"] = texts["question"]
        history = [system, question, {"role": "assistant", "content": texts["answer"]}, *messages([], texts["last"])]
        return make(history, max_tiles=1)

    found, expected = inputs(spelled), inputs("~" * len(spelled.encode()))
    different = np.flatnonzero(found.input_ids != expected.input_ids)
    np.testing.assert_array_equal(found.visual_index, expected.visual_index)
    assert different.tolist() == list(range(different[0], different[0] + len(spelled.encode())))
    assert make.decode(found.input_ids[different]) == spelled


def test_typed_image_tokens_do_not_take_pictures(processor: MakeProcessor, messages: MakeMessages) -> None:
    for name, typed in (("internvl-qwen3moe", "<IMG_CONTEXT>"), ("dsvl2-mha", "<image>")):
        make = processor(name)
        found = make([{"role": "user", "content": [*messages(["img2_300x260"], f"{typed}{typed}?")[0]["content"]]}])
        assert found.tile_counts in ((1,), (2,))
        assert np.count_nonzero(found.input_ids == make.config.image_token_id) == len(found.visual_index)
        assert make([{"role": "user", "content": typed}]).visual_index.shape == (0,)


def test_an_image_token_that_is_not_marked_as_special_is_text_all_the_same(own_checkpoint: OwnCheckpoint) -> None:
    directory = own_checkpoint("internvl-qwen3moe")
    file = directory / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = False
    file.write_text(json.dumps(tokenizer))
    make = processor_of(directory, vocab_size=400)
    ids = make([{"role": "user", "content": "<IMG_CONTEXT><|im_end|>"}]).input_ids.tolist()
    assert 392 not in ids and ids.count(382) == 2


@pytest.mark.parametrize(
    ("name", "question", "ids"),
    [
        ("dsvl2-mha", "<|grounding|><|ref|>box<|/ref|>", [305, 301, 302]),
        ("internvl-qwen3moe", "<ref>box</ref><box></box>", [395, 396, 397, 398]),
    ],
)
def test_a_question_names_regions_with_their_tokens(
    name: str, question: str, ids: list[int], processor: MakeProcessor, messages: MakeMessages
) -> None:
    found = processor(name)(messages([], question)).input_ids.tolist()
    assert [i for i in found if i in ids] == ids


@pytest.mark.parametrize("name", [*SPELLED])
def test_words_beside_those_of_the_template_are_encoded_with_them(
    name: str, own_checkpoint: OwnCheckpoint, messages: MakeMessages
) -> None:
    """As the official code does, which encodes text and template at once: "user\n" and "Hi" may share a token."""
    directory = own_checkpoint(name)
    file = directory / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    merged = {"dsvl2-mha": [": H", ":One"], "internvl-qwen3moe": ["\nHi", "\nOne"], "internvl-gptoss": ["Hi", "One"]}
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    letters = {" ": "Ġ", "\n": "Ċ"}
    free = itertools.count(400)
    for words in merged[name]:
        symbols = [letters.get(letter, letter) for letter in words]
        for end in range(2, len(symbols) + 1):
            vocab.setdefault("".join(symbols[:end]), next(free))
            merges.append(["".join(symbols[: end - 1]), symbols[end - 1]])
    file.write_text(json.dumps(tokenizer))
    make = processor_of(directory, vocab_size=1000)
    conversation = [*messages([], "Hi"), {"role": "assistant", "content": "One"}, *messages([], "Hi")]
    if name == "dsvl2-mha":  # questions and answers one by one
        texts = ["<｜begin▁of▁sentence｜><|User|>: Hi\n\n<|Assistant|>:", "One<｜end▁of▁sentence｜>"]
        texts.append("<|User|>: Hi\n\n<|Assistant|>:")
    else:
        prompt = render_prompt(conversation, make.config.template)
        texts = ["".join(p.token if isinstance(p, Special) else str(p) for p in prompt.pieces)]
    whole = load_tokenizer(file, getattr(make.config, "special_tokens", ()))
    expected = [i for text in texts for i in whole.encode(text, add_special_tokens=False).ids]
    assert make(conversation).input_ids.tolist() == expected
    assert sum(i >= 400 for i in expected) == (2 if name == "dsvl2-mha" else 3)


def test_missing_special_tokens_get_the_ids_that_the_official_processor_gives(
    own_checkpoint: Callable[[str], Path],
) -> None:
    directory = own_checkpoint("dsvl2-mha")
    file = directory / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < 3]
    tokenizer["model"]["vocab"] = {token: i for token, i in tokenizer["model"]["vocab"].items() if i < 300}
    file.write_text(json.dumps(tokenizer))
    make = processor_of(directory)
    assert make.config.image_token_id == 300
    ids = make([{"role": "user", "content": "<|ref|>"}]).input_ids.tolist()
    assert (ids[0], ids[1], ids[4], ids[-2]) == (0, 306, 301, 307)


@pytest.mark.parametrize("name", ["dsvl2-mha", "internvl-qwen3moe"])
def test_text_comes_back(name: str, processor: MakeProcessor, checkpoint: Callable[[str], Path]) -> None:
    make = processor(name)
    stop = make.config.stop_token_ids[0]
    tokenizer = load_tokenizer(checkpoint(name) / "tokenizer.json")
    ids = [*tokenizer.encode("héllo 万", add_special_tokens=False).ids, stop]
    stream = make.new_stream()
    pieces = [stream.push(i) for i in ids]
    assert pieces[1:3] == ["", "é"]
    assert "".join(pieces) == make.decode(ids) == make.decode(np.array(ids)) == "héllo 万"


def test_other_tokenizer_than_the_bundle(
    processor: MakeProcessor, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    file = checkpoint("dsvl2-mha") / "tokenizer.json"
    config = msgspec.structs.replace(processor("dsvl2-mha").config, image_token_id=5)
    with pytest.raises(BundleMismatch, match="<image> has the id 300, the bundle's manifest says 5"):
        Processor(config, file)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleMismatch, match=r"cannot be read as a tokenizer.json"):
        Processor(config, tmp_path / "tokenizer.json")


def test_without_a_tokenizer_only_tensors_work(processor: MakeProcessor) -> None:
    make = Processor(processor("dsvl2-mha").config, None)
    assert make.from_tensors({"input_ids": np.array([[1]])})[0].input_ids.tolist() == [1]
    calls: list[Callable[[], Any]] = [
        lambda: make([{"role": "user", "content": "a"}]),
        lambda: make.follow_up("a"),
        make.new_stream,
        lambda: make.decode([1]),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest, match="there is no tokenizer"):
            call()


def test_too_long_a_sequence(processor: MakeProcessor) -> None:
    tall = {"type": "image", "image": Image.new("RGB", (384, 3456))}
    make = processor("dsvl2-mha")
    expected = (
        r"has 4\d\d\d tokens, 4202 of them visual: the model takes at most 4096; give fewer tiles \(--max-tiles\)"
    )
    with pytest.raises(InvalidRequest, match=expected):
        make([{"role": "user", "content": [tall, tall]}])
    assert make.from_tensors({"input_ids": np.zeros((1, 4096), np.int32)})[0].input_ids.shape == (4096,)
    with pytest.raises(InvalidRequest, match=r"has 4097 tokens, 0 of them visual: the model takes at most 4096"):
        make.from_tensors({"input_ids": np.zeros((1, 4097), np.int32)})


@pytest.mark.parametrize("name", ["dsvl2-mha", "internvl-qwen3moe"])
def test_too_many_pictures_are_refused_before_any_is_decoded(
    name: str, processor: MakeProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (1344, 896)).save(tmp_path / "a.png")
    monkeypatch.setattr(Picture, "decode", lambda _: pytest.fail("decoded"))
    content = [*[{"type": "image", "image": tmp_path / "a.png"}] * 60, {"type": "text", "text": "Compare."}]
    with pytest.raises(
        InvalidRequest, match=r"the sequence has \d+ tokens, \d+ of them visual: the model takes"
    ) as error:
        processor(name)([{"role": "user", "content": content}])
    tokens, visual = (int(number) for number in re.findall(r"\d+", str(error.value))[:2])
    assert visual == {"dsvl2-mha": 60 * 421, "internvl-qwen3moe": 60 * 7 * 256}[name]
    assert visual < tokens < visual + 1000
