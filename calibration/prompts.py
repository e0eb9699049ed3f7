# SPDX-License-Identifier: Apache-2.0
"""Questions about pictures as the language model takes them: token ids, vision features, the tokens of the answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fastmmoe.calibration.data import Sample
from fastmmoe.calibration.torch_model import TorchModel
from fastmmoe.runtime.files import replacing
from fastmmoe.runtime.request.answers import CHANNEL_TEMPLATES
from fastmmoe.runtime.request.prompts import GPT_OSS_ANSWER_HEADER, Special, join_text
from fastmmoe.runtime.types import Array

AnswerStart: TypeAlias = "tuple[str | Special, ...]"


@dataclass(frozen=True)
class Prompt:
    """A question.

    Attributes:
        input_ids: int32 [T].
        visual_index: int32 [V].
        picture: the picture's place in `Prompts.features`.
        scene: number of the picture in the data.
        answer_ids: int32 [N], without a stop token; None = no label.
    """

    input_ids: Array
    visual_index: Array
    picture: int
    scene: int
    answer_ids: Array | None


@dataclass(frozen=True)
class Prompts:
    """Questions, and the features [V, H] float32 of their pictures."""

    questions: tuple[Prompt, ...]
    features: tuple[Array, ...]

    @property
    def scenes(self) -> Array:
        """int64 [questions]: the scene of each, whose questions are not independent."""
        return np.array([q.scene for q in self.questions], np.int64)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(tokens, visual tokens) of each prompt."""
        return [(len(q.input_ids), len(q.visual_index)) for q in self.questions]

    def save(self, path: Path) -> str:
        """Write them for other processes; returns the file's SHA-256 (hexadecimal)."""
        questions = self.questions
        arrays = {f"feature_{i}": values for i, values in enumerate(self.features)}
        for i, q in enumerate(questions):
            arrays[f"ids_{i}"], arrays[f"visual_{i}"] = q.input_ids, q.visual_index
            if q.answer_ids is not None:
                arrays[f"answer_{i}"] = q.answer_ids
        arrays["pictures"] = np.array([q.picture for q in questions], np.int64)
        with replacing(path, sum(values.nbytes for values in arrays.values())) as file:
            np.savez(file, scenes=self.scenes, **arrays)  # type: ignore[arg-type]
        return hashlib.sha256(path.read_bytes()).hexdigest()

    @staticmethod
    def load(path: Path) -> Prompts:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            pictures, scenes = arrays["pictures"].tolist(), arrays["scenes"].tolist()
            questions = tuple(
                Prompt(
                    arrays[f"ids_{i}"],
                    arrays[f"visual_{i}"],
                    picture,
                    scene,
                    arrays[f"answer_{i}"] if f"answer_{i}" in arrays.files else None,
                )
                for i, (picture, scene) in enumerate(zip(pictures, scenes, strict=True))
            )
            return Prompts(questions, tuple(arrays[f"feature_{i}"] for i in range(max(pictures) + 1)))


def prepare(model: TorchModel, samples: Sequence[Sample], answer_start: AnswerStart = ()) -> Prompts:
    """Tokenise the questions and run the vision tower once for each picture.

    Args:
        answer_start: what the model writes in front of an answer, see `answer_starts`.
    Raises:
        InvalidRequest: a prompt is longer than the model takes.
    """
    pictures: dict[int, int] = {}
    features: list[Array] = []
    questions = []
    for sample in samples:
        inputs = model.processor(sample.messages)
        if id(sample.image) not in pictures:
            pictures[id(sample.image)] = len(features)
            features.append(model.image_features(inputs.vision_inputs))
        answer = None
        if sample.answer is not None:
            answer = np.array(model.processor.encode(join_text([*answer_start, sample.answer])), np.int32)
        picture = pictures[id(sample.image)]
        questions.append(Prompt(inputs.input_ids, inputs.visual_index, picture, sample.scene, answer))
    return Prompts(tuple(questions), tuple(features))


def answer_starts(model: TorchModel) -> tuple[AnswerStart, ...]:
    """What a model may write in front of an answer: nothing, a space or, as gpt-oss does, a channel header."""
    starts: tuple[AnswerStart, ...] = ((), (" ",))
    if model.processor.config.template in CHANNEL_TEMPLATES:
        return (*starts, GPT_OSS_ANSWER_HEADER)
    return starts
