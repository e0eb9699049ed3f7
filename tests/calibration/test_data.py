# SPDX-License-Identifier: Apache-2.0
"""Questions from drawn scenes and from a directory."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fastmmoe.calibration.data import Sample, identity_of, load_samples
from fastmmoe.runtime.errors import InvalidRequest


def _directory(path: Path, lines: list[dict[str, str]]) -> Path:
    for name in {line["image"] for line in lines}:
        Image.new("L", (8, 6), 40).save(path / name)
    (path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    return path


LINES = [
    {"image": "a.png", "question": "What is it?", "answer": "grey", "kind": "color"},
    {"image": "b.png", "question": "And this?"},
    {"image": "a.png", "question": "How many?", "answer": "0"},
]


def test_drawn() -> None:
    """As many as asked for; questions of a scene share the picture; seeds and splits give others."""
    samples = load_samples("builtin", count=20)
    assert len(samples) == 20
    assert len({s.scene for s in samples}) == 4
    assert all((a.scene == b.scene) == (a.image is b.image) for a, b in itertools.pairwise(samples))
    again = load_samples("builtin", count=20)
    assert [(s.question, s.answer, s.image.tobytes()) for s in samples] == [
        (s.question, s.answer, s.image.tobytes()) for s in again
    ]
    others = (load_samples("builtin", count=20, seed=1), load_samples("builtin", count=20, split="test"))
    assert all({s.image.tobytes() for s in other}.isdisjoint(s.image.tobytes() for s in samples) for other in others)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\u0085b", "a\x0bb\x0cc\x1cd\x1de\x1ef", "\ufeffa"])
def test_newlines_alone_end_a_line(tmp_path: Path, text: str, end: str) -> None:
    """JSON lets the other line ends of Unicode stand in strings, control characters below U+0020 as escapes."""
    lines = [LINES[0] | {"question": text}, LINES[1]]
    _directory(tmp_path, lines)
    raw = [json.dumps(line, ensure_ascii=False) for line in lines]
    for start in ("", "\ufeff"):
        (tmp_path / "questions.jsonl").write_bytes((start + end.join(raw) + end).encode())
        assert [s.question for s in load_samples(tmp_path)] == [text, "And this?"]


def test_directory(tmp_path: Path) -> None:
    """Questions of one picture come together; labels may be missing; pictures become RGB."""
    samples = load_samples(_directory(tmp_path, LINES))
    assert [(s.question, s.answer, s.kind, s.scene) for s in samples] == [
        ("What is it?", "grey", "color", 0),
        ("How many?", "0", "", 0),
        ("And this?", None, "", 1),
    ]
    assert samples[0].image.mode == "RGB"
    assert len(load_samples(tmp_path, count=2, seed=1)) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": "a.png"}', "questions.jsonl:1: .*question"),
        ('{"image": "a.png", "question": "x", "label": 1}', "questions.jsonl:1: .*label"),
        ("not json", "questions.jsonl:1: "),
        ("", "holds no question"),
        ('{"image": "missing.png", "question": "x"}', "image .*missing.png: No such file"),
    ],
)
def test_damaged_directory(tmp_path: Path, line: str, words: str) -> None:
    """The line and what is wrong with it."""
    (tmp_path / "questions.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(InvalidRequest, match=words):
        load_samples(tmp_path)


def test_refused(tmp_path: Path) -> None:
    """Too many, too few, no directory, no such split."""
    with pytest.raises(InvalidRequest, match="has 3 questions, 4 were asked for"):
        load_samples(_directory(tmp_path, LINES), count=4)
    with pytest.raises(InvalidRequest, match="0 questions: expected 1 or more"):
        load_samples("builtin", count=0)
    with pytest.raises(InvalidRequest, match=r"expected a directory with questions\.jsonl, or builtin"):
        load_samples(tmp_path / "nothing")
    with pytest.raises(InvalidRequest, match="split 'dev': expected one of train"):
        load_samples("builtin", split="dev")  # type: ignore[arg-type]


def test_identity_is_that_of_everything_asked() -> None:
    grey, dark = (Image.new("RGB", (4, 4), color) for color in ((90, 90, 90), (9, 9, 9)))
    one, two = Sample(grey, "What is it?", "grey", "color", 0), Sample(grey, "How many?", None, "", 0)
    again = grey.copy()
    assert identity_of([one, two]) == identity_of([replace(one, image=again), replace(two, image=again)])
    others = [
        [two, one],
        [one],
        [replace(one, image=dark), two],
        [replace(one, question="What is this?"), two],
        [replace(one, answer=None), two],
    ]
    found = {identity_of(samples) for samples in [[one, two], *others]}
    assert len(found) == 1 + len(others)
