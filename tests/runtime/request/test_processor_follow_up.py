# SPDX-License-Identifier: Apache-2.0
"""What a conversation appends after an answer: token ids and pictures of the next question."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.request.tokens import load_tokenizer
from tests.support.processors import MakeMessages, MakeProcessor

# What the model writes and the runtime's cache holds: the stop token is not part of it.
ANSWERS = {
    "dsvl2-mha": "One, héllo 万.",
    "internvl-qwen3moe": "One, héllo 万.",
    "internvl-gptoss": "One, héllo 万.",
}


@pytest.mark.parametrize("name", list(ANSWERS))
@pytest.mark.parametrize("pictures", [[], ["img1_420x980"]])
def test_follow_up_gives_the_ids_of_the_whole_conversation(
    name: str, pictures: list[str], processor: MakeProcessor, checkpoint: Callable[[str], Path], messages: MakeMessages
) -> None:
    make, answer = processor(name), ANSWERS[name]
    tokenizer = load_tokenizer(checkpoint(name) / "tokenizer.json")
    first = messages(["img0_700x500"], "First?")
    (second,) = messages(pictures, "Second?")
    header = "<|channel|>final<|message|>" if name == "internvl-gptoss" else ""
    before, written = make(first), tokenizer.encode(header + answer, add_special_tokens=False).ids
    start = len(before.input_ids) + len(written)
    found = make.follow_up(second["content"], pictures_before=1, tokens_before=start)
    whole = make([*first, {"role": "assistant", "content": answer}, second])
    assert [*before.input_ids, *written, *found.input_ids] == whole.input_ids.tolist()
    assert [*before.visual_index, *(start + found.visual_index)] == whole.visual_index.tolist()
    assert before.tile_counts + found.tile_counts == whole.tile_counts
    assert before.picture_sizes + found.picture_sizes == whole.picture_sizes
    assert bool(found.vision_inputs) == bool(pictures)
    if pictures:
        pixels = np.concatenate([before.vision_inputs["pixel_values"], found.vision_inputs["pixel_values"]])
        np.testing.assert_array_equal(pixels, whole.vision_inputs["pixel_values"])


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("dsvl2-mha", ["<｜end▁of▁sentence｜>", "<|User|>"]),
        ("internvl-qwen3moe", ["<|im_end|>", "Ċ", "<|im_start|>"]),
        ("internvl-gptoss", ["<|end|>", "<|start|>"]),
    ],
)
def test_follow_up_starts_with_the_end_of_the_answer(
    name: str, start: list[str], processor: MakeProcessor, checkpoint: Callable[[str], Path]
) -> None:
    tokenizer = load_tokenizer(checkpoint(name) / "tokenizer.json")
    inputs = processor(name).follow_up("Second?")
    assert inputs.input_ids.dtype == inputs.visual_index.dtype == np.int32
    assert [tokenizer.id_to_token(i) for i in inputs.input_ids[: len(start)]] == start
    assert (inputs.visual_index.shape, inputs.vision_inputs, inputs.tile_counts) == ((0,), {}, ())


def test_token_that_the_tokenizer_puts_in_front_is_not_in_a_follow_up(
    processor: MakeProcessor, own_checkpoint: Callable[[str], Path]
) -> None:
    file = own_checkpoint("internvl-qwen3moe") / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    front = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [front, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [front, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [380], "tokens": ["<|endoftext|>"]}},
    }
    file.write_text(json.dumps(tokenizer))
    make = Processor(processor("internvl-qwen3moe").config, file)
    assert make([{"role": "user", "content": "First?"}]).input_ids[:2].tolist() == [380, 381]
    assert make.follow_up("Second?").input_ids[0] == 382


def test_earlier_pictures_count_for_the_tiling_of_a_follow_up(processor: MakeProcessor, messages: MakeMessages) -> None:
    (message,) = messages(["img0_700x500"], "Second?")
    make = processor("dsvl2-mha")
    counts = [make.follow_up(message["content"], pictures_before=before).tile_counts for before in (0, 1, 2)]
    assert counts == [(5,), (5,), (2,)]
    assert make.follow_up(message["content"], pictures_before=1, max_tiles=2).tile_counts == (3,)
    assert processor("internvl-gptoss").follow_up(message["content"], pictures_before=2, max_tiles=6).tile_counts == (
        7,
    )


@pytest.mark.parametrize("name", ["dsvl2-mha", "internvl-qwen3moe"])
def test_earlier_tokens_count_for_the_length_of_a_follow_up(name: str, processor: MakeProcessor) -> None:
    make = processor(name)
    limit, new = make.config.max_position_embeddings, len(make.follow_up("Second?").input_ids)
    assert len(make.follow_up("Second?", tokens_before=limit - new).input_ids) == new
    expected = (
        rf"has {limit + 1} tokens, {limit + 1 - new} of them of earlier turns and 0 of the new ones visual: the model "
        rf"takes at most {limit}; give fewer tiles .* or a shorter text, or start a new conversation$"
    )
    with pytest.raises(InvalidRequest, match=expected):
        make.follow_up("Second?", tokens_before=limit + 1 - new)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pictures_before": -1}, "pictures_before -1: expected at least 0"),
        ({"tokens_before": -2}, "tokens_before -2: expected at least 0"),
        ({"max_tiles": 0, "content": [{"type": "image", "image": Image.new("RGB", (9, 9))}]}, "max_tiles 0: expected"),
        ({"content": "half a pair: \ud800"}, r"message.content\[0\] has half of a surrogate pair"),
        ({"content": [{"type": "image", "image": "no such file.png"}]}, "no such file.png"),
    ],
)
def test_unusable_follow_up(arguments: dict[str, Any], message: str, processor: MakeProcessor) -> None:
    with pytest.raises(InvalidRequest, match=message) as error:
        processor("internvl-qwen3moe").follow_up(**{"content": "Second?", **arguments})
    assert "\n" not in str(error.value)
