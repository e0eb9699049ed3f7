# SPDX-License-Identifier: Apache-2.0
"""Questions ready to be asked: prompts are tokenised once, the vision features of a picture are computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fastmmoe.calibration.data import Sample, identity_of
from fastmmoe.calibration.report.settings import Planner, Prompt, Setting
from fastmmoe.runtime.backends.base import Backend
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.policy import SPARSEVLM
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM

# Of method random: questions of one picture share a seed, so that the choice does not hang on how they are packed.
_SEEDS_APART = 1_000_000


@dataclass(frozen=True)
class Question:
    """A labelled sample and its prompt; `picture` counts the scenes from 0."""

    sample: Sample
    picture: int
    input_ids: Array
    visual_index: Array
    prompt: Prompt


class Questions:
    """The labelled samples of a data set, ready to be asked again and again; threads may share it.

    Attributes:
        items: the questions; those of a picture are consecutive.
        unlabelled: samples without an answer, left out.
        max_new_tokens: tokens of the longest right answer and one more, by which a longer answer is seen to be wrong.
        identity: SHA-256 of pictures, questions and answers.
    Raises:
        InvalidRequest: no sample has an answer, or what the processor refuses.
    """

    def __init__(self, vlm: VLM, samples: Sequence[Sample]) -> None:
        labelled = [sample for sample in samples if sample.answer is not None]
        if not labelled:
            raise InvalidRequest(f"none of the {len(samples)} questions has an answer: accuracy cannot be measured")
        self._vlm = vlm
        self._features: dict[int, Array] = {}
        pictures = {scene: i for i, scene in enumerate(dict.fromkeys(sample.scene for sample in labelled))}
        self.items = [self._prepare(sample, pictures[sample.scene]) for sample in labelled]
        self.unlabelled = len(samples) - len(labelled)
        self.identity = identity_of(labelled)
        lengths = [len(vlm.processor.encode([s.answer or ""])) for s in labelled]
        self.max_new_tokens = max(lengths) + 1

    @property
    def pictures(self) -> int:
        """How many there are."""
        return self.items[-1].picture + 1

    def packs(self, size: int) -> Iterator[range]:
        """Numbers of consecutive questions of one picture, at most so many at a time."""
        start = 0
        for end in range(1, len(self.items) + 1):
            is_last = end == len(self.items) or self.items[end].picture != self.items[start].picture
            if is_last or end - start == size:
                yield range(start, end)
                start = end

    def ask(self, backend: Backend, planner: Planner, setting: Setting, numbers: range, seed: int = 0) -> list[str]:
        """Answer questions of one picture in one call, greedily until a stop token, at most max_new_tokens tokens.

        Args:
            backend: the bundle's.
            seed: method random's.
        Returns:
            the texts, stripped.
        """
        size = 1 if setting.variant == SPARSEVLM else len(numbers)
        packs = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        return [text for pack in packs for text in self._answer(backend, planner, setting, pack, seed)]

    def chunk(self, backend: Backend, planner: Planner, setting: Setting, number: int, row: int = 0) -> Chunk:
        """A question's prompt with its picture's features, to be given to `Batch.extend` as sequence `row`."""
        question = self.items[number]
        features = self._image_features(backend, question)
        embeds = backend.embed(question.input_ids, question.visual_index, features)
        schedule = planner.schedule(setting, len(question.visual_index))
        return Chunk(row, embeds, question.visual_index, schedule)

    def _prepare(self, sample: Sample, picture: int) -> Question:
        inputs = self._vlm.processor(sample.messages)
        prompt = Prompt(len(inputs.input_ids), len(inputs.visual_index), sum(inputs.tile_counts))
        return Question(sample, picture, inputs.input_ids, inputs.visual_index, prompt)

    def _image_features(self, backend: Backend, question: Question) -> Array:
        # Pixels are prepared again rather than kept: they take far more memory than features.
        if question.picture not in self._features:
            inputs = self._vlm.processor(question.sample.messages)
            self._features[question.picture] = backend.image_features(inputs.vision_inputs)
        return self._features[question.picture]

    def _answer(self, backend: Backend, planner: Planner, setting: Setting, pack: range, seed: int) -> list[str]:
        config, alpha = self._vlm.processor.config, backend.policy.alpha
        chunks = [self.chunk(backend, planner, setting, n, row) for row, n in enumerate(pack)]
        text_only = [chunk.schedule.for_text() for chunk in chunks]
        batch = Batch(backend, len(chunks))
        own_seed = seed * _SEEDS_APART + self.items[pack[0]].picture
        coming = [self.max_new_tokens - 1] * len(chunks)
        logits = batch.extend(chunks, alpha=alpha, seed=own_seed, new_tokens=coming)
        rows = list(range(len(chunks)))
        answers: list[list[int]] = [[] for _ in rows]
        while True:
            tokens = dict(zip(rows, logits.argmax(axis=1).tolist(), strict=True))
            tokens = {row: token for row, token in tokens.items() if token not in config.stop_token_ids}
            for row, token in tokens.items():
                answers[row].append(token)
            rows = [row for row in tokens if len(answers[row]) < self.max_new_tokens]
            if not rows:
                return [self._text(ids) for ids in answers]
            embeds = backend.embed(np.array([tokens[row] for row in rows]))
            steps = zip(rows, embeds, strict=True)
            logits = batch.extend([Chunk(r, e[None], NO_VISUAL_TOKENS, text_only[r]) for r, e in steps], alpha=alpha)

    def _text(self, ids: Sequence[int]) -> str:
        """As the runtime writes it: an unfinished character at the end is not shown."""
        return self._vlm.processor.decode(ids).strip()
