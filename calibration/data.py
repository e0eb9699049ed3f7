# SPDX-License-Identifier: Apache-2.0
"""Questions about pictures: drawn scenes, or a directory of the user's own."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL.Image import Image

from fastmmoe.calibration.questions import ask
from fastmmoe.calibration.scenes import SPLITS, Split, draw_scene, make_scene
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.image_reader import open_image

BUILTIN = "builtin"
QUESTIONS = "questions.jsonl"
QUESTIONS_PER_SCENE = 6
DEFAULT_COUNT = 600


@dataclass(frozen=True)
class Sample:
    """A question about a picture.

    Attributes:
        image: RGB; samples of one scene share the object.
        answer: the right one; None = there is no label.
        kind: type of the question, "" when unknown.
        scene: number of the picture.
    """

    image: Image
    question: str
    answer: str | None
    kind: str
    scene: int

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation that asks the question, as `VLM.generate` and the processor take it."""
        content = [{"type": "image", "image": self.image}, {"type": "text", "text": self.question}]
        return [{"role": "user", "content": content}]


def identity_of(samples: Sequence[Sample]) -> str:
    """SHA-256 (hexadecimal) of pictures, questions and answers, in their order."""
    digest = hashlib.sha256()
    before = None
    for sample in samples:
        if sample.image is not before:
            digest.update(repr(sample.image.size).encode() + sample.image.tobytes())
            before = sample.image
        digest.update(repr((sample.scene, sample.question, sample.answer, sample.kind)).encode())
    return digest.hexdigest()


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of questions.jsonl."""

    image: str
    question: str
    answer: str | None = None
    kind: str = ""


def load_samples(
    source: str | Path, *, split: Split = "calibration", count: int | None = None, seed: int = 0
) -> list[Sample]:
    """Questions with their pictures; those of a scene are consecutive.

    Args:
        source: "builtin" for drawn scenes (calibration/scenes.py), or a directory with pictures and questions.jsonl, an
            object a line: {"image": "a.png", "question": "...", "answer": "...", "kind": "..."}; answer and kind may
            be left out.
        split: the part of the drawn scenes; a directory has none.
        count: questions (default: 600 of drawn scenes, all of a directory). Of a directory with more, whole scenes are
            chosen by `seed`.
        seed: another one takes other drawn scenes of the split.
    Raises:
        InvalidRequest: no such directory, a damaged line or picture, fewer questions than asked for.
    """
    if count is not None and count < 1:
        raise InvalidRequest(f"{count} questions: expected 1 or more")
    if str(source) == BUILTIN:
        return _draw_samples(split, DEFAULT_COUNT if count is None else count, seed)
    return _read_samples(Path(source), count, seed)


def _draw_samples(split: Split, count: int, seed: int) -> list[Sample]:
    if split not in SPLITS:
        raise InvalidRequest(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    samples: list[Sample] = []
    index = seed * 1_000_000
    while len(samples) < count:
        scene = make_scene(split, index)
        image = draw_scene(scene)
        questions = ask(scene, min(QUESTIONS_PER_SCENE, count - len(samples)), scene.rng(2))
        samples += [Sample(image, q.text, q.answer, q.kind, index) for q in questions]
        index += 1
    return samples


def _read_samples(directory: Path, count: int | None, seed: int) -> list[Sample]:
    lines = _read_lines(directory / QUESTIONS)
    names = list(dict.fromkeys(line.image for line in lines))
    by_name = {name: [line for line in lines if line.image == name] for name in names}
    if count is not None and count < len(lines):
        names = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    elif count is not None and count > len(lines):
        raise InvalidRequest(f"{directory / QUESTIONS}: has {len(lines)} questions, {count} were asked for")
    samples: list[Sample] = []
    for scene, name in enumerate(names):
        if count is not None and len(samples) >= count:
            break
        image = open_image(directory / name)
        samples += [Sample(image, line.question, line.answer, line.kind, scene) for line in by_name[name]]
    return samples[:count]


def _read_lines(path: Path) -> list[_Line]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"--data: cannot read {path} ({error.strerror}); expected a directory with {QUESTIONS}, or {BUILTIN}"
        ) from None
    lines = []
    # Newlines alone end a line: JSON strings may hold the other characters that Unicode counts as line ends.
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            lines.append(msgspec.json.decode(line, type=_Line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(
                f'{path}:{number}: {error}; expected {{"image": ..., "question": ..., "answer": ..., "kind": ...}}'
            ) from None
    if not lines:
        raise InvalidRequest(f"{path}: holds no question")
    return lines
