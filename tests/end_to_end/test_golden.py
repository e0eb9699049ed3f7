# SPDX-License-Identifier: Apache-2.0
"""Exported and run by command, the unmodified model gives the recorded outputs of the official code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM
from tests.support.golden import CHECKPOINTS
from tests.support.messages import question

pytestmark = pytest.mark.engines

Tensors = dict[str, Array]

UNMODIFIED = ("--retention", "1.0")


def outputs_file(name: str, case: str) -> str:
    return f"{name.removesuffix('-original')}/outputs_{case}.npz"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_picture_and_decoding(
    name: str,
    bundle: Callable[..., Path],
    case_tensors: Callable[[str, str], Tensors],
    run_tensors: Callable[..., Tensors],
    golden_array: Callable[[str, str], Array],
    golden_last_logits: Callable[[str], Array],
    assert_close: Callable[..., None],
) -> None:
    tensors = case_tensors(name, "single")
    file = outputs_file(name, "single")
    tokens, steps = golden_array(file, "decode_tokens"), golden_array(file, "decode_logits")
    found = run_tensors(bundle(name), tensors, *UNMODIFIED, "--max-new-tokens", str(len(tokens)))
    layers = found["cache_lengths"].shape[-1]
    assert found["logits"].dtype == np.float32
    assert_close("logits", found["logits"], golden_last_logits(file), layers)
    assert found["decode_tokens"].tolist() == tokens.tolist()
    assert_close("logits", found["decode_logits"], steps, layers)
    assert found["cache_lengths"].tolist() == [tensors["input_ids"].shape[1]] * layers


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("case", ["text", "batch2"])
def test_text_and_left_padded_batch(
    name: str,
    case: str,
    bundle: Callable[..., Path],
    case_tensors: Callable[[str, str], Tensors],
    run_tensors: Callable[..., Tensors],
    golden_last_logits: Callable[[str], Array],
    assert_close: Callable[..., None],
) -> None:
    tensors = case_tensors(name, case)
    expected = golden_last_logits(outputs_file(name, case))
    found = run_tensors(bundle(name), tensors, *UNMODIFIED, "--max-new-tokens", "1")
    assert_close("logits", found["logits"], expected, found["cache_lengths"].shape[-1])
    assert np.ravel(found["decode_tokens"]).tolist() == expected.argmax(axis=1).tolist()
    if case == "batch2":
        lengths = tensors["attention_mask"].sum(axis=1)
        assert lengths[1] < lengths[0]
        assert found["cache_lengths"][:, 0].tolist() == lengths.tolist()


@pytest.mark.parametrize("name", ["dsvl2-mha", "dsvl2-mla"])
def test_three_pictures(
    name: str,
    vlm: Callable[..., VLM],
    golden: Path,
    golden_array: Callable[[str, str], Array],
    golden_last_logits: Callable[[str], Array],
    assert_close: Callable[..., None],
) -> None:
    # The golden set has no pixels of this case: they are made here, from the same PNG files.
    meta = json.loads((golden / "dsvl2-inputs" / "meta.json").read_text())
    pictures = [golden / "dsvl2-inputs" / f"{image}.png" for image in meta["images"]["multi3"]]
    messages = question(meta["prompts"]["multi3"].replace("<image>", "{}"), *pictures)
    model = vlm(name)
    inputs = model.processor(messages)
    file = "dsvl2-inputs/inputs_multi3.npz"
    tensors = {key: golden_array(file, key) for key in ("input_ids", "images_seq_mask", "images_spatial_crop")}
    assert inputs.input_ids.tolist() == tensors["input_ids"][0].tolist()
    tensors["images"] = inputs.vision_inputs["pixel_values"][None]
    found = model.run_tensors(tensors, retention=1.0, max_new_tokens=1)
    expected = golden_last_logits(outputs_file(name, "multi3"))
    assert_close("logits", found["logits"], expected, found["cache_lengths"].shape[-1])
    answer = model.generate(messages, retention=1.0, max_new_tokens=1)
    assert answer.token_ids == tuple(expected.argmax(axis=1))
