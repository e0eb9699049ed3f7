# SPDX-License-Identifier: Apache-2.0
"""Drawn table-top scenes as a robot's camera sees them from above, with what stands in them.

Everything follows from (split, index): the objects of a scene from one random stream, table, light and camera noise
from another. NumPy and Pillow only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastmmoe.runtime.camera.drawing import COLOR_NAMES, SHAPE_NAMES, SIZE, Gripper, Thing, draw_map, draw_table_top

Split: TypeAlias = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

HELD_OUT_PAIRS = frozenset(
    {("red", "mug"), ("blue", "star"), ("green", "cone"), ("yellow", "ball"), ("cyan", "cube"), ("orange", "ring")}
)
"""Colour and shape pairs that stand in scenes of the split "test" only."""

MIN_OBJECTS, MAX_OBJECTS = 2, 6
_RADIUS = (12.0, 19.0)
_BORDER = 2.0
# Distance of two centres over the sum of their radii: below 1 the nearer object hides part of the other.
_SPACING = 0.88
_REPEAT = 0.3


@dataclass(frozen=True)
class Scene:
    """Objects from far (small y) to near, and the place of the gripper, which is in the way of the camera."""

    split: Split
    index: int
    things: tuple[Thing, ...]
    gripper: Gripper | None

    def rng(self, stream: int) -> np.random.Generator:
        """A random stream of the scene's own; stream 0 placed the objects."""
        return np.random.default_rng((SPLITS.index(self.split), self.index, stream))


def make_scene(split: Split, index: int) -> Scene:
    """Scene number `index` of a split: 2 to 6 objects, some colours and shapes repeated, little occlusion."""
    rng = np.random.default_rng((SPLITS.index(split), index, 0))
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    things: list[Thing] = []
    while len(things) < count:
        radius = float(rng.uniform(*_RADIUS))
        x, y = (float(v) for v in rng.uniform(radius + _BORDER, SIZE - radius - _BORDER, 2))
        if any(math.hypot(x - t.x, y - t.y) < _SPACING * (radius + t.radius) for t in things):
            continue
        color, shape = _name_pair(rng, things, split)
        things.append(Thing(color, shape, x, y, radius, float(rng.uniform(-0.3, 0.3))))
    gripper = None
    if rng.random() < 0.5:
        side = float(rng.uniform(20, SIZE - 20))
        gripper = (side, float(rng.uniform(4, 16)), float(rng.uniform(-0.2, 0.2)))
    return Scene(split, index, tuple(sorted(things, key=lambda t: t.y)), gripper)


def _name_pair(rng: np.random.Generator, things: list[Thing], split: Split) -> tuple[str, str]:
    """Colour and shape; often one of them is that of an object already there, so that there is something to count."""
    while True:
        color, shape = str(rng.choice(COLOR_NAMES)), str(rng.choice(SHAPE_NAMES))
        if things and rng.random() < _REPEAT:
            color = things[int(rng.integers(len(things)))].color
        if things and rng.random() < _REPEAT:
            shape = things[int(rng.integers(len(things)))].shape
        if split == "test" or (color, shape) not in HELD_OUT_PAIRS:
            return color, shape


def draw_scene(scene: Scene) -> Image.Image:
    """The picture, see `draw_table_top`."""
    return draw_table_top(scene.things, scene.gripper, scene.rng(1))


def object_map(scene: Scene, side: int = SIZE // 2) -> npt.NDArray[np.int8]:
    """[side, side] int8: number of the object that a pixel shows, -1 for table and gripper."""
    return draw_map(scene.things, scene.gripper, side)
