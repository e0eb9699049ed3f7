# SPDX-License-Identifier: Apache-2.0
"""Whole preprocessing against the recorded inputs of the official processors, for messages and for tensors."""

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

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.checkpoint.processor import read_processor_config
from fastmmoe.runtime.errors import BundleMismatch, InvalidRequest
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, ProcessorConfig
from fastmmoe.runtime.request.image_reader import Picture
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.request.prompts import Special, render_prompt
from fastmmoe.runtime.request.tokens import load_tokenizer
from fastmmoe.runtime.types import Array
from tests.support.golden import GoldenArray
from tests.support.processors import MakeMessages, MakeProcessor

OwnCheckpoint = Callable[[str], Path]
INTERNVL = ("internvl-qwen3moe", "internvl-gptoss")
TOLERANCE = 1e-6  # float32 pixels


def _deepseek_cases(golden: Path) -> dict[str, tuple[list[str], str, str, int]]:
    """Case -> (pictures, prompt, file, row)."""
    meta = json.loads((golden / "dsvl2-inputs" / "meta.json").read_text())
    cases = {
        name: (meta["images"][name], meta["prompts"][name], name, 0) for name in ("single", "two", "multi3", "text")
    }
    for row in (0, 1):
        cases[f"batch2-{row}"] = (meta["images"]["batch2"][row], meta["prompts"]["batch2"][row], "batch2", row)
    return cases


def _tensors(golden_array: GoldenArray, case: str) -> dict[str, Array]:
    names = ("input_ids", "attention_mask", "images_seq_mask", "images_spatial_crop", "images")
    return {name: golden_array(f"dsvl2-inputs/inputs_{case}.npz", name) for name in names}


def _assert_same(found: ModelInputs, expected: ModelInputs) -> None:
    assert found.input_ids.dtype == found.visual_index.dtype == np.int32
    np.testing.assert_array_equal(found.input_ids, expected.input_ids)
    np.testing.assert_array_equal(found.visual_index, expected.visual_index)
    assert found.tile_counts == expected.tile_counts
    assert found.vision_inputs.keys() == expected.vision_inputs.keys()
    for name, array in expected.vision_inputs.items():
        assert found.vision_inputs[name].dtype == array.dtype
        np.testing.assert_allclose(found.vision_inputs[name], array, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["single", "two", "multi3", "text", "batch2-0", "batch2-1"])
def test_deepseek_ids_and_visual_positions(
    case: str, processor: MakeProcessor, golden: Path, golden_array: GoldenArray, messages: MakeMessages
) -> None:
    images, prompt, file, row = _deepseek_cases(golden)[case]
    inputs = processor("dsvl2-mha")(messages(images, prompt))
    path = f"dsvl2-inputs/inputs_{file}.npz"
    mask = golden_array(path, "attention_mask")[row]
    assert inputs.input_ids.tolist() == golden_array(path, "input_ids")[row][mask].tolist()
    visual = np.flatnonzero(golden_array(path, "images_seq_mask")[row][mask])
    assert inputs.visual_index.tolist() == visual.tolist()
    crops = golden_array(path, "images_spatial_crop")[row].tolist()
    assert inputs.tile_counts == tuple(1 + wide * high for wide, high in crops if wide)
    assert inputs.image_sizes == tuple(Image.open(golden / "dsvl2-inputs" / f"{name}.png").size for name in images)
    assert bool(inputs.vision_inputs) == bool(images)
    if images:
        assert inputs.vision_inputs["layout_index"].shape == inputs.visual_index.shape


@pytest.mark.parametrize("case", ["single", "batch2"])
def test_deepseek_tensors_give_the_same_as_messages(
    case: str, processor: MakeProcessor, golden: Path, golden_array: GoldenArray, messages: MakeMessages
) -> None:
    rows = processor("dsvl2-mha").from_tensors(_tensors(golden_array, case))
    cases = _deepseek_cases(golden)
    assert len(rows) == (2 if case == "batch2" else 1)
    for row, found in enumerate(rows):
        images, prompt, *_ = cases[f"batch2-{row}" if case == "batch2" else case]
        _assert_same(found, processor("dsvl2-mha")(messages(images, prompt)))


@pytest.mark.parametrize("checkpoint_name", ["dsvl2-mha", "dsvl2-mla"])
@pytest.mark.parametrize("case", ["single", "multi3", "batch2-0"])
def test_layout_index_is_the_official_order(
    checkpoint_name: str,
    case: str,
    processor: MakeProcessor,
    golden: Path,
    golden_array: GoldenArray,
    messages: MakeMessages,
) -> None:
    from safetensors.numpy import load_file

    images, prompt, file, row = _deepseek_cases(golden)[case]
    path = f"{checkpoint_name}/outputs_{file}.npz"
    tiles = golden_array(path, "projected_tiles")
    mask = golden_array(f"dsvl2-inputs/inputs_{file}.npz", "images_seq_mask")[row]
    expected = golden_array(path, "inputs_embeds")[row][mask]
    weights = load_file(golden / checkpoint_name / "model.safetensors")
    inputs = processor(checkpoint_name)(messages(images, prompt))
    count = sum(inputs.tile_counts)
    structural = [weights["image_newline"][None], weights["view_seperator"][None]]
    rows = np.concatenate([tiles[:count].reshape(count * 196, -1), *structural])
    np.testing.assert_array_equal(rows[inputs.vision_inputs["layout_index"]], expected)


def _internvl_row(
    name: str, processor: MakeProcessor, images: list[str], text: str, messages: MakeMessages
) -> ModelInputs:
    system = "You are a helpful assistant." if name == "internvl-qwen3moe" else None
    return processor(name)(messages(images, text, system), max_tiles=6)


@pytest.mark.parametrize("name", INTERNVL)
@pytest.mark.parametrize(
    ("file", "row", "images", "text"),
    [
        ("single", 0, ["img0_700x500"], "What colour is the largest box?"),
        ("batch2", 0, ["img2_300x260"], "OCR."),
        ("batch2", 1, [], "Say hello in three words, no picture here."),
        ("text", 0, [], "Say hello in three words, no picture here."),
    ],
)
def test_internvl_ids(
    name: str, file: str, row: int, images: list[str], text: str,
    processor: MakeProcessor, messages: MakeMessages, golden_array: GoldenArray,
) -> None:  # fmt: skip
    inputs = _internvl_row(name, processor, images, text, messages)
    mask = golden_array(f"{name}/outputs_{file}.npz", "attention_mask")[row] == 1
    expected = golden_array(f"{name}/outputs_{file}.npz", "input_ids")[row][mask]
    assert inputs.input_ids.tolist() == expected.tolist()
    assert inputs.visual_index.tolist() == np.flatnonzero(expected == 392).tolist()
    assert len(inputs.visual_index) == 256 * sum(inputs.tile_counts)
    assert inputs.vision_inputs.keys() == ({"pixel_values"} if images else set())


@pytest.mark.parametrize("name", INTERNVL)
def test_internvl_tensors_give_the_same_as_messages(
    name: str, processor: MakeProcessor, messages: MakeMessages, golden_array: GoldenArray
) -> None:
    names = ("input_ids", "attention_mask", "pixel_values")
    batch = {key: golden_array(f"{name}/outputs_batch2.npz", key) for key in names}
    first, second = processor(name).from_tensors(batch)
    _assert_same(first, _internvl_row(name, processor, ["img2_300x260"], "OCR.", messages))
    text = "Say hello in three words, no picture here."
    _assert_same(second, _internvl_row(name, processor, [], text, messages))
    single = {key: golden_array(f"{name}/outputs_single.npz", key) for key in names[:2]}
    single["pixel_values"] = golden_array("internvl-inputs/pixels_img0_max6.npz", "pixel_values")
    (found,) = processor(name).from_tensors(single)
    expected = _internvl_row(name, processor, ["img0_700x500"], "What colour is the largest box?", messages)
    _assert_same(found, expected)


def test_internvl_tiles_are_dealt_to_the_rows_in_order(processor: MakeProcessor, messages: MakeMessages) -> None:
    make = processor("internvl-qwen3moe")
    inputs = [
        make(messages(images, "Compare."), max_tiles=tiles)
        for images, tiles in ((["img2_300x260"], 1), (["img0_700x500", "img1_420x980"], 2))
    ]
    assert [row.tile_counts for row in inputs] == [(1,), (1, 3)]
    length = max(len(row.input_ids) for row in inputs)
    ids, mask = np.zeros((2, length), np.int64), np.zeros((2, length), np.int64)
    for i, row in enumerate(inputs):
        ids[i, length - len(row.input_ids) :] = row.input_ids
        mask[i, length - len(row.input_ids) :] = 1
    pixels = np.concatenate([row.vision_inputs["pixel_values"] for row in inputs])
    rows = make.from_tensors({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})
    for found, expected in zip(rows, inputs, strict=True):
        _assert_same(found, expected)


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
    config = ConfigReader(json.loads((directory / "config.json").read_text()))
    make = Processor(read_processor_config(directory, config, vocab_size=400), file)
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
    config = ConfigReader(json.loads((directory / "config.json").read_text()))
    make = Processor(read_processor_config(directory, config, vocab_size=1000), file)
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
    config = read_processor_config(
        directory, ConfigReader(json.loads((directory / "config.json").read_text())), vocab_size=320
    )
    assert config.image_token_id == 300
    ids = Processor(config, file)([{"role": "user", "content": "<|ref|>"}]).input_ids.tolist()
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


def test_config_survives_the_manifest(processor: MakeProcessor) -> None:
    for name in ("dsvl2-mha", *INTERNVL):
        config = processor(name).config
        stored = json.loads(msgspec.json.encode(config))
        assert msgspec.convert(stored, ProcessorConfig) == config
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            msgspec.convert({**stored, "colour": 1}, ProcessorConfig)


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


DEEPSEEK_IMAGE_TOKEN = 300


def _deepseek_tensors() -> dict[str, Array]:
    """Two rows: one picture of one tile after a padding token, and text."""
    mask = np.zeros((2, 430), bool)
    mask[0, 3:424] = True
    attention = np.ones((2, 430), np.int64)
    attention[0, 0] = 0
    images = np.zeros((2, 2, 3, 384, 384), np.float32)
    images[0] = 1
    ids = np.full((2, 430), 5, np.int64)
    ids[mask] = DEEPSEEK_IMAGE_TOKEN
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "images_seq_mask": mask,
        "images_spatial_crop": np.array([[[1, 1]], [[0, 0]]]),
        "images": images,
    }


def _internvl_tensors() -> dict[str, Array]:
    ids = np.full((1, 300), 5, np.int64)
    ids[0, 10:266] = 392
    return {"input_ids": ids, "pixel_values": np.zeros((1, 3, 448, 448), np.float32)}


def test_padding_in_front_moves_the_visual_positions(processor: MakeProcessor) -> None:
    first, second = processor("dsvl2-mha").from_tensors(_deepseek_tensors())
    assert (len(first.input_ids), len(second.input_ids)) == (429, 430)
    assert first.visual_index.tolist() == list(range(2, 423))


def _changed(name: str, index: Any, value: Any) -> Callable[[dict[str, Array]], None]:
    def change(tensors: dict[str, Array]) -> None:
        tensors[name][index] = value

    return change


def _replaced(name: str, function: Callable[[Array], Array]) -> Callable[[dict[str, Array]], None]:
    def change(tensors: dict[str, Array]) -> None:
        tensors[name] = function(tensors[name])

    return change


def _rename_images(tensors: dict[str, Array]) -> None:
    tensors["pictures"] = tensors.pop("images")


ALL_ROWS = slice(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename_images, "input tensors: missing images; unknown pictures; expected input_ids, images_seq_mask"),
        (
            _replaced("input_ids", np.float32),
            r"input_ids is float32 \[2, 430\]: expected integer of shape \[any, any\]",
        ),
        (_replaced("input_ids", lambda a: a[0]), r"input_ids is int64 \[430\]: expected integer of shape \[any, any\]"),
        (_changed("input_ids", (1, 3), 320), r"input_ids, row 1: ids from 5 to 320, expected 0 to 319"),
        (_changed("input_ids", (0, 3), -1), r"input_ids, row 0: ids from -1 to 300, expected 0 to 319"),
        (_changed("attention_mask", (0, 9), 2), "attention_mask holds values from 0 to 2: expected 0 and 1"),
        (_changed("attention_mask", (1, 9), 0), "attention_mask, row 1: 429 of 430 positions are set and not all of"),
        (_changed("attention_mask", (1, -1), 0), "attention_mask, row 1: 429 of 430 .* expected left padding"),
        (_changed("attention_mask", (1, ALL_ROWS), 0), "attention_mask, row 1: 0 of 430 .* at least one token"),
        (_replaced("attention_mask", lambda a: a[:, 1:]), r"attention_mask is int64 \[2, 429\]: .* shape \[2, 430\]"),
        (_replaced("images_seq_mask", np.int64), r"images_seq_mask is int64 \[2, 430\]: expected bool of shape"),
        (_changed("images_seq_mask", (0, 1), True), r"row 0: 422 visual positions, expected 421 .* \[\[1, 1\]\]"),
        (_changed("images_seq_mask", (1, 1), True), r"row 1: 1 visual positions, expected 0 .* \[\]"),
        (
            _changed("input_ids", (0, 3), 5),
            "images_seq_mask, row 0: marks position 3, id 5, and 0 more like it; expected True where .* id 300",
        ),
        (_changed("input_ids", (0, slice(3, 424)), 5), "row 0: marks position 3, id 5, and 420 more like it"),
        (_changed("input_ids", (0, 424), 300), "images_seq_mask, row 0: does not mark position 424, id 300"),
        (_changed("input_ids", (1, 7), 300), "images_seq_mask, row 1: does not mark position 7, id 300"),
        (_changed("images_seq_mask", (0, 0), True), "images_seq_mask, row 0: marks position 0, padding"),
        (_replaced("input_ids", np.ndarray.tolist), "input_ids is of type list: expected a NumPy array"),
        (_changed("images", (0, 1, 2, 3, 4), np.nan), r"images holds nan at \[0, 1, 2, 3, 4\]: expected finite"),
        (_changed("images", (0, 1, 2, 3, 4), -np.inf), r"images holds -inf at \[0, 1, 2, 3, 4\]: expected finite"),
        (_replaced("images_spatial_crop", lambda a: a[0]), r"images_spatial_crop is int64 \[1, 2\]: expected integer"),
        (_changed("images_spatial_crop", (0, 0, 1), 0), r"images_spatial_crop, row 0: \[\[1, 0\]\], expected"),
        (_replaced("images_spatial_crop", lambda a: np.insert(a, 0, 0, 1)), r"row 0: \[\[0, 0\], \[1, 1\]\], expected"),
        (_changed("images_spatial_crop", (0, 0), -1), r"images_spatial_crop, row 0: \[\[-1, -1\]\], expected"),
        (
            _changed("images_spatial_crop", (0, 0, 1), 2),
            r"images, row 0: 2 tiles, expected at least 3 for .*\[\[1, 2\]\]",
        ),
        (_changed("images", (1, 0, 0, 0, 0), 1), r"images, row 1: a tile after the first 0, .* is not zero"),
        (_replaced("images", np.float64), r"images is float64 \[2, 2, 3, 384, 384\]: expected float32 of shape"),
        (_replaced("images", lambda a: a[..., :9]), r"images is .*: expected float32 of shape \[2, any, 3, 384, 384\]"),
    ],
)
def test_unusable_deepseek_tensors(
    change: Callable[[dict[str, Array]], None], message: str, processor: MakeProcessor
) -> None:
    make, tensors = processor("dsvl2-mha"), _deepseek_tensors()
    assert [row.tile_counts for row in make.from_tensors(tensors)] == [(2,), ()]
    change(tensors)
    with pytest.raises(InvalidRequest, match=message) as error:
        make.from_tensors(tensors)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _changed("input_ids", (0, 266), 392),
            "input_ids, row 0: 257 image tokens from position 10, expected a multiple",
        ),
        (_changed("input_ids", (0, slice(10, 266)), 5), "pixel_values has 1 tiles: expected 0 for the 0 image tokens"),
        (lambda t: t.pop("pixel_values"), r"pixel_values has 0 tiles: expected 1 for the 256 image tokens \(id 392\)"),
        (_changed("pixel_values", (0, 2, 1, 0), np.nan), r"pixel_values holds nan at \[0, 2, 1, 0\]: expected finite"),
        (_replaced("pixel_values", np.float16), r"pixel_values is float16 \[1, 3, 448, 448\]: expected float32 of"),
        (_replaced("pixel_values", lambda a: a[0]), r"pixel_values is float32 \[3, 448, 448\]: expected float32 of"),
        (lambda t: t.pop("input_ids"), "input tensors: missing input_ids; unknown none; expected input_ids and, opt"),
    ],
)
def test_unusable_internvl_tensors(
    change: Callable[[dict[str, Array]], Any], message: str, processor: MakeProcessor
) -> None:
    make, tensors = processor("internvl-qwen3moe"), _internvl_tensors()
    assert make.from_tensors(tensors)[0].tile_counts == (1,)
    change(tensors)
    with pytest.raises(InvalidRequest, match=message) as error:
        make.from_tensors(tensors)
    assert "\n" not in str(error.value)


def test_the_mask_of_a_bundle_without_tokenizer_marks_one_id(processor: MakeProcessor) -> None:
    config = processor("dsvl2-mha").config
    assert isinstance(config, DeepseekVl2ProcessorConfig)
    make, tensors = Processor(msgspec.structs.replace(config, image_token_id=None), None), _deepseek_tensors()
    assert [len(row.visual_index) for row in make.from_tensors(tensors)] == [421, 0]
    tensors["input_ids"][0, 4] = 5
    with pytest.raises(InvalidRequest, match="row 0: marks position 4, id 5, and 0 more like it"):
        make.from_tensors(tensors)


def test_image_tokens_without_pictures(processor: MakeProcessor) -> None:
    with pytest.raises(InvalidRequest, match="row 1: does not mark position 2, id 300"):
        processor("dsvl2-mha").from_tensors({"input_ids": np.array([[5, 5, 5], [5, 5, 300]])})


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
