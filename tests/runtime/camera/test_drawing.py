# SPDX-License-Identifier: Apache-2.0
"""Drawn table tops: what stands there is seen there, and the same random stream gives the same picture."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.runtime.camera.drawing import COLORS, SHAPE_NAMES, SIZE, Thing, draw_map, draw_table_top


def draw(*things: Thing) -> np.ndarray:
    return np.asarray(draw_table_top(things, None, np.random.default_rng(3)), np.float32)


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_a_thing_changes_the_picture_where_the_map_has_it_and_around(shape: str) -> None:
    thing, elsewhere = Thing("red", shape, 50, 100, 16, 0.1), Thing("red", shape, 130, 30, 16, 0.1)
    # As many things: table, light and noise come from the same random numbers.
    changed = np.abs(draw(thing) - draw(elsewhere)).max(axis=2) > 12
    changed[:70] = False
    of_map = draw_map([thing], None, SIZE) == 0
    assert of_map.any() and (changed & of_map).sum() > 0.9 * of_map.sum()
    rows, columns = np.nonzero(changed)
    assert rows.min() > 70 and rows.max() < 130 and columns.min() > 20 and columns.max() < 80


def test_each_shape_is_another_one() -> None:
    drawn = [draw_map([Thing("red", shape, 80, 80, 19, 0.1)], None, SIZE) == 0 for shape in SHAPE_NAMES]
    for i, one in enumerate(drawn):
        assert all((one ^ other).sum() > 0.1 * (one | other).sum() for other in drawn[:i])


@pytest.mark.parametrize("color", COLORS)
def test_colours_are_those_of_their_names(color: str) -> None:
    centre = draw(Thing(color, "ball", 80, 80, 19, 0.0))[72:88, 72:88].mean(axis=(0, 1))
    others = {name: np.array(value, float) for name, value in COLORS.items()}
    turn = {name: centre @ value / np.linalg.norm(centre) / np.linalg.norm(value) for name, value in others.items()}
    assert max(turn, key=lambda name: turn[name]) == color


def test_nearer_things_hide_others_and_the_gripper_hides_all() -> None:
    far, near = Thing("red", "ball", 80, 60, 19, 0.0), Thing("blue", "ball", 80, 75, 19, 0.0)
    found = draw_map([far, near], (80.0, 90.0, 0.0), SIZE)
    assert found[70, 80] == 1 and found[45, 80] in (0, -1) and found[20, 80] == -1
    assert set(np.unique(found)) == {-1, 0, 1}


def test_the_same_stream_gives_the_same_picture() -> None:
    assert np.array_equal(draw(), draw()) and draw().shape == (SIZE, SIZE, 3)
