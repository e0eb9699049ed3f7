# SPDX-License-Identifier: Apache-2.0
"""Drawn scenes: what follows from split and index, and what the picture shows of the objects."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastmmoe.calibration.scenes import (
    HELD_OUT_PAIRS,
    MAX_OBJECTS,
    MIN_OBJECTS,
    SIZE,
    SPLITS,
    Scene,
    Thing,
    draw_scene,
    make_scene,
    object_map,
)
from fastmmoe.runtime.camera.drawing import COLORS


def test_same_number_same_picture() -> None:
    """A scene is made anew from its split and number alone."""
    one, again = make_scene("test", 7), make_scene("test", 7)
    assert one == again
    assert draw_scene(one).tobytes() == draw_scene(again).tobytes()


def test_splits_and_numbers_differ() -> None:
    """No scene of one split is that of another, or the next one's."""
    scenes = {make_scene(split, index).things for split in SPLITS for index in range(20)}
    assert len(scenes) == 20 * len(SPLITS)


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs(split: str) -> None:
    """Pairs of colour and shape that only the test split has; there they are about as frequent as others."""
    things = [t for index in range(200) for t in make_scene(split, index).things]  # type: ignore[arg-type]
    held_out = sum((t.color, t.shape) in HELD_OUT_PAIRS for t in things) / len(things)
    if split == "test":
        assert 0.06 < held_out < 0.2
    else:
        assert held_out == 0


def test_objects_lie_in_the_picture() -> None:
    """Numbers, borders, and no object hidden by another."""
    counts = set()
    for index in range(200):
        things = make_scene("train", index).things
        counts.add(len(things))
        assert [t.y for t in things] == sorted(t.y for t in things)
        for t in things:
            assert t.radius < t.x < SIZE - t.radius
            assert t.radius < t.y < SIZE - t.radius
        pairs = [(a, b) for i, a in enumerate(things) for b in things[i + 1 :]]
        assert all(math.hypot(a.x - b.x, a.y - b.y) > 0.8 * (a.radius + b.radius) for a, b in pairs)
    assert counts == set(range(MIN_OBJECTS, MAX_OBJECTS + 1))


@pytest.mark.parametrize(("x", "y", "cell", "margin"), [(10, 10, "A1", 30), (42, 39, "B1", 1), (159, 125, "D4", 5)])
def test_cells(x: float, y: float, cell: str, margin: float) -> None:
    """Column letter and row number, and how far the next border is."""
    thing = Thing("red", "ball", x, y, 15, 0.0)
    assert thing.cell == cell
    assert thing.cell_margin == pytest.approx(margin)


@pytest.mark.parametrize("color", COLORS)
def test_colors_can_be_told_apart(color: str) -> None:
    """The pixels of a ball are nearest to its own colour, by direction, in most lights."""
    names, hits = list(COLORS), 0
    directions = np.array([np.array(c) / np.linalg.norm(c) for c in COLORS.values()])
    for index in range(30):
        scene = Scene("validation", index, (Thing(color, "ball", 80, 80, 18, 0.0),), None)
        pixels = np.asarray(draw_scene(scene), np.float32)[object_map(scene, SIZE) == 0].mean(0)
        hits += names[int((directions @ (pixels / np.linalg.norm(pixels))).argmax())] == color
    assert hits >= 27


def test_object_map() -> None:
    """Nearer objects cover farther ones, the gripper covers both, the table is -1."""
    far, near = Thing("red", "cube", 60, 40, 18, 0.0), Thing("blue", "ball", 66, 62, 18, 0.0)
    shown = object_map(Scene("train", 0, (far, near), None), SIZE)
    assert shown[62, 66] == 1
    assert shown[38, 55] == 0
    assert shown[150, 150] == -1
    assert (shown == 0).sum() < (object_map(Scene("train", 0, (far,), None), SIZE) == 0).sum()
    gripped = object_map(Scene("train", 0, (far, near), (60, 40, 0.0)), SIZE)
    assert (gripped == 0).sum() < (shown == 0).sum()
