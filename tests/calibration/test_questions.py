# SPDX-License-Identifier: Apache-2.0
"""Questions about drawn scenes: every answer against a second reading of the scene, and their balance."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from fastmmoe.calibration.questions import KINDS, Question, ask
from fastmmoe.calibration.scenes import Scene, Thing, make_scene


def _only(found: list[Thing]) -> Thing:
    assert len(found) == 1
    return found[0]


def read_answer(scene: Scene, text: str) -> str:
    """The answer as a reader of the question's words finds it."""
    things = scene.things
    if match := re.fullmatch(r"What color is the (\w+)\?", text):
        return _only([t for t in things if t.shape == match[1]]).color
    if match := re.fullmatch(r"What shape is the (\w+) object\?", text):
        return _only([t for t in things if t.color == match[1]]).shape
    if match := re.fullmatch(r"Is there a (\w+) (left|right) of the (\w+)\?", text):
        anchor = _only([t for t in things if t.shape == match[3]])
        sign = 1 if match[2] == "right" else -1
        offsets = [sign * (t.x - anchor.x) for t in things if t.shape == match[1]]
        assert match[1] != match[3]
        assert any(d > 12 for d in offsets) or all(d < -12 for d in offsets)
        return "yes" if any(d > 12 for d in offsets) else "no"
    if match := re.fullmatch(r"Is there a (\w+) (\w+)\?", text):
        return "yes" if any((t.color, t.shape) == (match[1], match[2]) for t in things) else "no"
    if match := re.fullmatch(r"How many (\w+) objects are there\?", text):
        return str(sum(t.color == match[1] for t in things))
    if match := re.fullmatch(r"How many (\w+)s are there\?", text):
        return str(sum(t.shape == match[1] for t in things))
    match = re.fullmatch(r"Which cell holds the (\w+)( object)?\?", text)
    assert match is not None, text
    found = _only([t for t in things if match[1] == (t.color if match[2] else t.shape)])
    assert found.cell_margin >= 4
    return found.cell


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    scenes = [make_scene("validation", index) for index in range(250)]
    return [(scene, question) for scene in scenes for question in ask(scene, 6, scene.rng(2))]


def test_answers(asked: list[tuple[Scene, Question]]) -> None:
    """Every answer is what the scene says."""
    assert len(asked) == 1500
    for scene, question in asked:
        assert question.answer == read_answer(scene, question.text), (scene, question)


def test_every_kind_is_asked(asked: list[tuple[Scene, Question]]) -> None:
    """Shares of the kinds; each has at least a tenth."""
    shares = Counter(question.kind for _, question in asked)
    assert set(shares) == set(KINDS)
    assert min(shares.values()) >= len(asked) / 10


@pytest.mark.parametrize(
    ("kind", "most"), [("exist", 0.6), ("side", 0.65), ("count", 0.5), ("color", 0.25), ("cell", 0.2)]
)
def test_no_answer_can_be_guessed(asked: list[tuple[Scene, Question]], kind: str, most: float) -> None:
    """The most frequent answer of a kind is right for at most this share."""
    answers = Counter(question.answer for _, question in asked if question.kind == kind)
    assert max(answers.values()) / sum(answers.values()) <= most


def test_questions_of_a_scene_differ() -> None:
    """No question twice, the kinds can be chosen, and the same generator asks the same."""
    scene = make_scene("train", 3)
    texts = [q.text for q in ask(scene, 12, np.random.default_rng(1))]
    assert len(texts) == len(set(texts)) == 12
    assert texts == [q.text for q in ask(scene, 12, np.random.default_rng(1))]
    assert {q.kind for q in ask(scene, 4, np.random.default_rng(1), ("count", "exist"))} == {"count", "exist"}
