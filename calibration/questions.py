# SPDX-License-Identifier: Apache-2.0
"""Questions that a robot asks about a drawn scene, with their answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar, get_args

import numpy as np

from fastmmoe.calibration.scenes import COLOR_NAMES, SHAPE_NAMES, Scene, Thing

Kind: TypeAlias = Literal["color", "shape", "exist", "count", "cell", "side"]
KINDS: tuple[Kind, ...] = get_args(Kind)
T = TypeVar("T")

# Pixels. Nearer to a border between cells, or to straight above each other, a question has no fair answer.
_CELL_MARGIN = 4.0
_SIDE_MARGIN = 12.0


@dataclass(frozen=True)
class Question:
    """Text as a user writes it, the one right answer, and the kind of both."""

    text: str
    answer: str
    kind: Kind


def ask(scene: Scene, count: int, rng: np.random.Generator, kinds: Sequence[Kind] = KINDS) -> list[Question]:
    """Up to `count` different questions about a scene, of kinds in equal shares where the scene allows it.

    Questions of yes and no have either answer equally often; a number is asked for more often where it is not 1.
    """
    found: dict[str, Question] = {}
    for attempt in range(8 * count):
        if len(found) == count:
            break
        kind = _pick(rng, kinds) if attempt >= len(kinds) else kinds[attempt]
        question = _MAKERS[kind](scene.things, rng)
        if question is not None:
            found.setdefault(question.text, question)
    questions = list(found.values())
    return [questions[i] for i in rng.permutation(len(questions))]


def _pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _only(things: Sequence[Thing], key: Callable[[Thing], Hashable]) -> list[Thing]:
    """Objects that no other one equals in `key`."""
    keys = [key(t) for t in things]
    return [t for t, k in zip(things, keys, strict=True) if keys.count(k) == 1]


def _pick_only(
    things: Sequence[Thing], rng: np.random.Generator, by_shape: bool, least_margin: float = -np.inf
) -> tuple[Thing, str] | None:
    """An object that is the only one of its shape, or colour, so far from its cell's edges, and what to call it."""
    only = [t for t in _only(things, lambda t: t.shape if by_shape else t.color) if t.cell_margin >= least_margin]
    if not only:
        return None
    t = _pick(rng, only)
    return t, t.shape if by_shape else f"{t.color} object"


def _color(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    picked = _pick_only(things, rng, by_shape=True)
    return None if picked is None else Question(f"What color is the {picked[1]}?", picked[0].color, "color")


def _shape(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    picked = _pick_only(things, rng, by_shape=False)
    return None if picked is None else Question(f"What shape is the {picked[1]}?", picked[0].shape, "shape")


def _exist(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    """No half: colour and shape both there if possible, but not in one object."""
    pairs = {(t.color, t.shape) for t in things}
    colors, shapes = sorted({t.color for t in things}), sorted({t.shape for t in things})
    if rng.random() < 0.5:
        color, shape = _pick(rng, sorted(pairs))
        answer = "yes"
    else:
        near = [(c, s) for c in colors for s in shapes if (c, s) not in pairs]
        far = [(c, s) for c in COLOR_NAMES for s in SHAPE_NAMES if (c, s) not in pairs]
        choice = near if near and rng.random() < 0.7 else far
        color, shape = _pick(rng, choice)
        answer = "no"
    return Question(f"Is there a {color} {shape}?", answer, "exist")


def _count(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    by_color = rng.random() < 0.5
    names = [t.color if by_color else t.shape for t in things]
    every = COLOR_NAMES if by_color else SHAPE_NAMES
    counts = {name: names.count(name) for name in every}
    # Each number that occurs is equally likely, so that 0 and 1 do not fill the set.
    number = _pick(rng, sorted(set(counts.values())))
    fitting = [name for name in every if counts[name] == number]
    name = _pick(rng, fitting)
    what = f"{name} objects" if by_color else f"{name}s"
    return Question(f"How many {what} are there?", str(number), "count")


def _cell(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    picked = _pick_only(things, rng, by_shape=rng.random() < 0.5, least_margin=_CELL_MARGIN)
    return None if picked is None else Question(f"Which cell holds the {picked[1]}?", picked[0].cell, "cell")


def _side(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    """Is there a SHAPE left (right) of the only SHAPE; no means that none is there or all clearly on the other side."""
    anchors = _only(things, lambda t: t.shape)
    if not anchors:
        return None
    anchor = _pick(rng, anchors)
    side, sign = ("left", -1) if rng.random() < 0.5 else ("right", 1)
    offsets = {s: [sign * (t.x - anchor.x) for t in things if t.shape == s] for s in SHAPE_NAMES if s != anchor.shape}
    if rng.random() < 0.5:
        answer, fitting = "yes", [s for s, found in offsets.items() if any(d > _SIDE_MARGIN for d in found)]
    else:
        answer, fitting = "no", [s for s, found in offsets.items() if all(d < -_SIDE_MARGIN for d in found)]
        there = [s for s in fitting if offsets[s]]
        fitting = there if there and rng.random() < 0.8 else fitting
    if not fitting:
        return None
    shape = _pick(rng, fitting)
    return Question(f"Is there a {shape} {side} of the {anchor.shape}?", answer, "side")


_MAKERS: dict[Kind, Callable[[Sequence[Thing], np.random.Generator], Question | None]] = {
    "color": _color,
    "shape": _shape,
    "exist": _exist,
    "count": _count,
    "cell": _cell,
    "side": _side,
}
