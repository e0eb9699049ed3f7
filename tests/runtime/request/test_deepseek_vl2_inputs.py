# SPDX-License-Identifier: Apache-2.0
"""Inputs of DeepSeek-VL2 against the recorded ones of its official processor, for messages and for tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig
from fastmmoe.runtime.request.processor import Processor
from fastmmoe.runtime.types import Array
from tests.support.golden import GoldenArray
from tests.support.model_inputs import assert_same_inputs, changed, replaced
from tests.support.processors import MakeMessages, MakeProcessor


def deepseek_cases(golden: Path) -> dict[str, tuple[list[str], str, str, int]]:
    """Case -> (pictures, prompt, file, row)."""
    meta = json.loads((golden / "dsvl2-inputs" / "meta.json").read_text())
    cases = {
        name: (meta["images"][name], meta["prompts"][name], name, 0) for name in ("single", "two", "multi3", "text")
    }
    for row in (0, 1):
        cases[f"batch2-{row}"] = (meta["images"]["batch2"][row], meta["prompts"]["batch2"][row], "batch2", row)
    return cases


def tensors(golden_array: GoldenArray, case: str) -> dict[str, Array]:
    names = ("input_ids", "attention_mask", "images_seq_mask", "images_spatial_crop", "images")
    return {name: golden_array(f"dsvl2-inputs/inputs_{case}.npz", name) for name in names}


@pytest.mark.parametrize("case", ["single", "two", "multi3", "text", "batch2-0", "batch2-1"])
def test_deepseek_ids_and_visual_positions(
    case: str, processor: MakeProcessor, golden: Path, golden_array: GoldenArray, messages: MakeMessages
) -> None:
    images, prompt, file, row = deepseek_cases(golden)[case]
    inputs = processor("dsvl2-mha")(messages(images, prompt))
    path = f"dsvl2-inputs/inputs_{file}.npz"
    mask = golden_array(path, "attention_mask")[row]
    assert inputs.input_ids.tolist() == golden_array(path, "input_ids")[row][mask].tolist()
    visual = np.flatnonzero(golden_array(path, "images_seq_mask")[row][mask])
    assert inputs.visual_index.tolist() == visual.tolist()
    crops = golden_array(path, "images_spatial_crop")[row].tolist()
    assert inputs.tile_counts == tuple(1 + wide * high for wide, high in crops if wide)
    assert inputs.picture_sizes == tuple(Image.open(golden / "dsvl2-inputs" / f"{name}.png").size for name in images)
    assert bool(inputs.vision_inputs) == bool(images)
    if images:
        assert inputs.vision_inputs["layout_index"].shape == inputs.visual_index.shape


@pytest.mark.parametrize("case", ["single", "batch2"])
def test_deepseek_tensors_give_the_same_as_messages(
    case: str, processor: MakeProcessor, golden: Path, golden_array: GoldenArray, messages: MakeMessages
) -> None:
    rows = processor("dsvl2-mha").from_tensors(tensors(golden_array, case))
    cases = deepseek_cases(golden)
    assert len(rows) == (2 if case == "batch2" else 1)
    for row, found in enumerate(rows):
        images, prompt, *_ = cases[f"batch2-{row}" if case == "batch2" else case]
        assert_same_inputs(found, processor("dsvl2-mha")(messages(images, prompt)))


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

    images, prompt, file, row = deepseek_cases(golden)[case]
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


DEEPSEEK_IMAGE_TOKEN = 300


def deepseek_tensors() -> dict[str, Array]:
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


def test_padding_in_front_moves_the_visual_positions(processor: MakeProcessor) -> None:
    first, second = processor("dsvl2-mha").from_tensors(deepseek_tensors())
    assert (len(first.input_ids), len(second.input_ids)) == (429, 430)
    assert first.visual_index.tolist() == list(range(2, 423))


def rename_images(tensors: dict[str, Array]) -> None:
    tensors["pictures"] = tensors.pop("images")


ALL_ROWS = slice(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_images, "input tensors: missing images; unknown pictures; expected input_ids, images_seq_mask"),
        (
            replaced("input_ids", np.float32),
            r"input_ids is float32 \[2, 430\]: expected integer of shape \[any, any\]",
        ),
        (replaced("input_ids", lambda a: a[0]), r"input_ids is int64 \[430\]: expected integer of shape \[any, any\]"),
        (changed("input_ids", (1, 3), 320), r"input_ids, row 1: ids from 5 to 320, expected 0 to 319"),
        (changed("input_ids", (0, 3), -1), r"input_ids, row 0: ids from -1 to 300, expected 0 to 319"),
        (changed("attention_mask", (0, 9), 2), "attention_mask holds values from 0 to 2: expected 0 and 1"),
        (changed("attention_mask", (1, 9), 0), "attention_mask, row 1: 429 of 430 positions are set and not all of"),
        (changed("attention_mask", (1, -1), 0), "attention_mask, row 1: 429 of 430 .* expected left padding"),
        (changed("attention_mask", (1, ALL_ROWS), 0), "attention_mask, row 1: 0 of 430 .* at least one token"),
        (replaced("attention_mask", lambda a: a[:, 1:]), r"attention_mask is int64 \[2, 429\]: .* shape \[2, 430\]"),
        (replaced("images_seq_mask", np.int64), r"images_seq_mask is int64 \[2, 430\]: expected bool of shape"),
        (changed("images_seq_mask", (0, 1), True), r"row 0: 422 visual positions, expected 421 .* \[\[1, 1\]\]"),
        (changed("images_seq_mask", (1, 1), True), r"row 1: 1 visual positions, expected 0 .* \[\]"),
        (
            changed("input_ids", (0, 3), 5),
            "images_seq_mask, row 0: marks position 3, id 5, and 0 more like it; expected True where .* id 300",
        ),
        (changed("input_ids", (0, slice(3, 424)), 5), "row 0: marks position 3, id 5, and 420 more like it"),
        (changed("input_ids", (0, 424), 300), "images_seq_mask, row 0: does not mark position 424, id 300"),
        (changed("input_ids", (1, 7), 300), "images_seq_mask, row 1: does not mark position 7, id 300"),
        (changed("images_seq_mask", (0, 0), True), "images_seq_mask, row 0: marks position 0, padding"),
        (replaced("input_ids", np.ndarray.tolist), "input_ids is of type list: expected a NumPy array"),
        (changed("images", (0, 1, 2, 3, 4), np.nan), r"images holds nan at \[0, 1, 2, 3, 4\]: expected finite"),
        (changed("images", (0, 1, 2, 3, 4), -np.inf), r"images holds -inf at \[0, 1, 2, 3, 4\]: expected finite"),
        (replaced("images_spatial_crop", lambda a: a[0]), r"images_spatial_crop is int64 \[1, 2\]: expected integer"),
        (changed("images_spatial_crop", (0, 0, 1), 0), r"images_spatial_crop, row 0: \[\[1, 0\]\], expected"),
        (replaced("images_spatial_crop", lambda a: np.insert(a, 0, 0, 1)), r"row 0: \[\[0, 0\], \[1, 1\]\], expected"),
        (changed("images_spatial_crop", (0, 0), -1), r"images_spatial_crop, row 0: \[\[-1, -1\]\], expected"),
        (
            changed("images_spatial_crop", (0, 0, 1), 2),
            r"images, row 0: 2 tiles, expected at least 3 for .*\[\[1, 2\]\]",
        ),
        (changed("images", (1, 0, 0, 0, 0), 1), r"images, row 1: a tile after the first 0, .* is not zero"),
        (replaced("images", np.float64), r"images is float64 \[2, 2, 3, 384, 384\]: expected float32 of shape"),
        (replaced("images", lambda a: a[..., :9]), r"images is .*: expected float32 of shape \[2, any, 3, 384, 384\]"),
    ],
)
def test_unusable_deepseek_tensors(
    change: Callable[[dict[str, Array]], None], message: str, processor: MakeProcessor
) -> None:
    make, tensors = processor("dsvl2-mha"), deepseek_tensors()
    assert [row.tile_counts for row in make.from_tensors(tensors)] == [(2,), ()]
    change(tensors)
    with pytest.raises(InvalidRequest, match=message) as error:
        make.from_tensors(tensors)
    assert "\n" not in str(error.value)


def test_the_mask_of_a_bundle_without_tokenizer_marks_one_id(processor: MakeProcessor) -> None:
    config = processor("dsvl2-mha").config
    assert isinstance(config, DeepseekVl2ProcessorConfig)
    make, tensors = Processor(msgspec.structs.replace(config, image_token_id=None), None), deepseek_tensors()
    assert [len(row.visual_index) for row in make.from_tensors(tensors)] == [421, 0]
    tensors["input_ids"][0, 4] = 5
    with pytest.raises(InvalidRequest, match="row 0: marks position 4, id 5, and 0 more like it"):
        make.from_tensors(tensors)


def test_image_tokens_without_pictures(processor: MakeProcessor) -> None:
    with pytest.raises(InvalidRequest, match="row 1: does not mark position 2, id 300"):
        processor("dsvl2-mha").from_tensors({"input_ids": np.array([[5, 5, 5], [5, 5, 300]])})
