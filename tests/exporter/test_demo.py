# SPDX-License-Identifier: Apache-2.0
"""The built-in checkpoint: small, whole, in the published layout, with a tokenizer that knows the questions' words, and
right about scenes it was not trained on."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from fastmmoe.calibration.data import load_samples
from fastmmoe.calibration.questions import KINDS, ask
from fastmmoe.calibration.scenes import COLOR_NAMES, SHAPE_NAMES, make_scene
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.config import DEMO, ExportConfig, checkpoint_directory
from fastmmoe.exporter.export import export
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.vlm import VLM

# On the worker that traces the same model for the tests of end_to_end.
pytestmark = pytest.mark.xdist_group("end_to_end")

DIRECTORY = checkpoint_directory(DEMO)
FILES = ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]
QUESTIONS, LEAST_RIGHT = 120, 0.9
SCENES = 400
"""So many hold every kind of question with every colour and shape."""


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(DIRECTORY)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))


def test_files_are_all_there_and_small() -> None:
    files = {file.name: file.stat().st_size for file in DIRECTORY.iterdir()}
    assert sorted(files.keys() - {"README.md"}) == FILES
    assert sum(files.values()) < 20_000_000


def test_every_tensor_is_finite_bfloat16(checkpoint: Checkpoint) -> None:
    assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16"}
    assert [name for name in checkpoint.tensors if not checkpoint.load(name).isfinite().all()] == []


def test_layout_is_that_of_deepseek_vl2(checkpoint: Checkpoint, golden: Path) -> None:
    """Tensor names, numbers of layers and experts apart, are those of the golden checkpoint without latent attention.

    The tower's pooling head, which no model runs, is left out.
    """
    official = {re.sub(r"\d+", "#", name) for name in Checkpoint(golden / "dsvl2-mha").tensors}
    ours = {re.sub(r"\d+", "#", name) for name in checkpoint.tensors}
    assert ours == {name for name in official if not name.startswith("vision.attn_pool.")}


def test_opens_as_a_model() -> None:
    """A tensor too many, too few or of another shape is refused."""
    model = Model(Checkpoint(DIRECTORY), PolicyOptions(), Precision(torch.float32, torch.float32))
    assert (model.family_name, model.config.num_hidden_layers) == ("deepseek_vl2", 8)
    assert (model.config.moe.num_experts, model.config.moe.top_k, len(model.config.moe_layers)) == (16, 4, 7)


def test_processor_files_have_the_official_form(golden: Path) -> None:
    own = {"processor_config.json": {"candidate_resolutions": [[160, 160]], "patch_size": 8}}
    own["tokenizer_config.json"] = {"model_max_length": 2048}
    for name, differences in own.items():
        official = json.loads((golden / "dsvl2-inputs" / name).read_text())
        assert json.loads((DIRECTORY / name).read_text()) == official | differences


def test_each_word_of_a_question_is_one_token(tokenizer: Tokenizer) -> None:
    """The question mark is one more."""
    scenes = [make_scene("test", i) for i in range(SCENES)]
    questions = [question for scene in scenes for question in ask(scene, 2 * len(KINDS), scene.rng(2))]
    words = {word for question in questions for word in re.findall(r"\w+", question.text)}
    assert {question.kind for question in questions} == set(KINDS)
    assert words >= {*COLOR_NAMES, *SHAPE_NAMES, *(f"{shape}s" for shape in SHAPE_NAMES)}
    for question in questions:
        # As it stands in the prompt, after the picture.
        tokens = tokenizer.encode(f"\n{question.text}", add_special_tokens=False).tokens
        assert len(tokens) == 1 + len(re.findall(r"\w+|\?", question.text)), (question.text, tokens)
    cells = {f"{letter}{number}" for letter, number in itertools.product("ABCD", "1234")}
    for answer in {question.answer for question in questions} | cells:
        tokens = tokenizer.encode(answer, add_special_tokens=False).tokens
        assert len(tokens) == (2 if answer in cells else 1), (answer, tokens)


def test_any_text_has_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    language = checkpoint.config["language_config"]
    assert tokenizer.get_vocab_size() == language["vocab_size"]
    assert tokenizer.token_to_id("<｜begin▁of▁sentence｜>") == language["bos_token_id"]
    assert tokenizer.token_to_id("<｜end▁of▁sentence｜>") == language["eos_token_id"]
    text = "Größe: 3 × 4 cm\n\tBox 🙂"
    encoded = tokenizer.encode(f"<|User|>: <image>\n{text}", add_special_tokens=False)
    assert encoded.tokens[0] == "<|User|>"
    assert encoded.tokens.count("<image>") == 1
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == f": \n{text}"


def test_answers_are_right(tmp_path: Path) -> None:
    """At all visual tokens, through the exported bundle, about scenes that were not trained on."""
    vlm = VLM(export(ExportConfig(model=DEMO, out=tmp_path / "bundle")))
    samples = load_samples("builtin", split="validation", count=QUESTIONS)
    texts = [vlm.generate(sample.messages, retention=1.0, max_new_tokens=3).text.strip() for sample in samples]
    wrong = [(s.question, s.answer, text) for s, text in zip(samples, texts, strict=True) if text != s.answer]
    assert len(wrong) <= (1 - LEAST_RIGHT) * QUESTIONS, wrong
