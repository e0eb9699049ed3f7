# SPDX-License-Identifier: Apache-2.0
"""Small models and questions for calibration: golden checkpoints, and directories of pictures drawn here."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmmoe.calibration.data import Sample
from fastmmoe.calibration.prompts import Prompts, prepare
from fastmmoe.calibration.torch_model import TorchModel

QUESTIONS = ("What is there?", "What colour is the thing on the left?")


def draw_picture(seed: int, side: int = 96) -> Image.Image:
    """Blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(side // 6, axis=0).repeat(side // 6, axis=1))


@pytest.fixture(scope="session")
def golden_model(checkpoint: Callable[[str], Path]) -> Callable[[str], TorchModel]:
    """Function name -> the golden checkpoint's model, one for the whole session."""
    return cache(lambda name: TorchModel(checkpoint(name)))


@pytest.fixture(scope="session")
def golden_prompts(golden_model: Callable[[str], TorchModel]) -> Callable[[str], Prompts]:
    """Function name -> two questions about each of two pictures, without answers."""

    @cache
    def get(name: str) -> Prompts:
        pictures = [draw_picture(seed) for seed in (0, 1)]
        samples = [
            Sample(picture, question, None, "", scene)
            for scene, picture in enumerate(pictures)
            for question in QUESTIONS
        ]
        return prepare(golden_model(name), samples)

    return get


@pytest.fixture
def write_data(tmp_path: Path) -> Callable[..., Path]:
    """Function (pictures, answer=None) -> directory with so many pictures, two questions about each."""

    def write(pictures: int, answer: str | None = None) -> Path:
        directory = tmp_path / "data"
        directory.mkdir()
        lines = []
        for i in range(pictures):
            draw_picture(i).save(directory / f"{i}.png")
            for question in QUESTIONS:
                line = {"image": f"{i}.png", "question": question}
                lines.append(json.dumps(line if answer is None else line | {"answer": answer}))
        (directory / "questions.jsonl").write_text("\n".join(lines) + "\n")
        return directory

    return write
