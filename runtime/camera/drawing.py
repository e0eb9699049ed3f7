# SPDX-License-Identifier: Apache-2.0
"""Drawn table-top scenes as a robot's camera sees them from above: things of six shapes and eight colours.

NumPy and Pillow only. What stands where is decided elsewhere: calibration/scenes.py has the scenes of the demo model,
sources.py one in which things move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

SIZE = 160
"""Pixels of a side; coordinates of a scene are in these pixels, y downwards."""
CELLS = 4
CELL = SIZE // CELLS
"""Questions name a cell by column letter and row number: A1 is the upper left one, D4 the lower right one."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (206, 38, 36),
    "green": (46, 158, 62),
    "blue": (44, 84, 204),
    "yellow": (240, 222, 50),
    "purple": (140, 56, 180),
    "orange": (236, 116, 20),
    "cyan": (48, 200, 208),
    "white": (238, 238, 238),
}
COLOR_NAMES = tuple(COLORS)
SHAPE_NAMES = ("cube", "ball", "mug", "cone", "star", "ring")
Gripper: TypeAlias = tuple[float, float, float]
"""Place from the left, length and turn of the gripper, which is in the way of the camera."""

_TABLES = ((150, 111, 72), (124, 96, 70), (128, 128, 126), (96, 100, 106), (168, 150, 122), (104, 112, 96))
_OVERSAMPLING = 2
_EMPTY = 255


@dataclass(frozen=True)
class Thing:
    """An object: names of colour and shape, centre and radius in pixels, turn in radians."""

    color: str
    shape: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def cell(self) -> str:
        """Name of the grid cell that holds the centre."""
        return f"{'ABCD'[int(self.x // CELL)]}{int(self.y // CELL) + 1}"

    @property
    def cell_margin(self) -> float:
        """Pixels from the centre to the nearest border between cells."""
        return min(abs(v - CELL * line) for v in (self.x, self.y) for line in range(1, CELLS))


def draw_table_top(things: Sequence[Thing], gripper: Gripper | None, rng: np.random.Generator) -> Image.Image:
    """The picture, RGB [SIZE, SIZE]: table, shadows, objects, gripper, then light and camera noise.

    Args:
        things: from far (small y) to near.
        rng: table, light, tints and noise follow from it.
    """
    scale = _OVERSAMPLING
    image = _draw_table(rng).resize((SIZE * scale, SIZE * scale), Image.Resampling.BICUBIC)
    slant = rng.uniform(-5, 5, 2)
    shadows = Image.new("L", image.size, 0)
    for thing in things:
        _draw_thing(_Pen(shadows, scale, 90, (float(slant[0]), float(slant[1]) + 3.0)), thing)
    shadows = shadows.filter(ImageFilter.GaussianBlur(2.0 * scale))
    image.paste((12, 10, 8), mask=shadows)
    for thing in things:
        tint = rng.uniform(0.95, 1.05, 3)
        color = tuple(float(c * t) for c, t in zip(COLORS[thing.color], tint, strict=True))
        _draw_thing(_Pen(image, scale, color), thing)
    if gripper is not None:
        _draw_gripper(_Pen(image, scale, (84.0, 88.0, 94.0)), *gripper)
    return _expose(image.resize((SIZE, SIZE), Image.Resampling.BOX), rng)


def draw_map(things: Sequence[Thing], gripper: Gripper | None, side: int) -> npt.NDArray[np.int8]:
    """[side, side] int8: number of the object that a pixel shows, -1 for table and gripper."""
    image = Image.new("L", (side, side), _EMPTY)
    for number, thing in enumerate(things):
        _draw_thing(_Pen(image, side / SIZE, number), thing)
    if gripper is not None:
        _draw_gripper(_Pen(image, side / SIZE, _EMPTY), *gripper)
    return np.asarray(image).view(np.int8)


def _draw_table(rng: np.random.Generator) -> Image.Image:
    color = np.array(_TABLES[int(rng.integers(len(_TABLES)))], np.float32) + rng.uniform(-10, 10, 3)
    rough = rng.normal(0, 1, (10, 40) if rng.random() < 0.5 else (20, 20)).astype(np.float32)
    grain = np.asarray(Image.fromarray(rough).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    table = color + grain[..., None] * float(rng.uniform(2, 9))
    return Image.fromarray(np.clip(table, 0, 255).astype(np.uint8))


def _expose(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A light that falls off to one side, exposure, white balance, sensor noise."""
    pixels = np.asarray(image, np.float32)
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    fall = 1 + float(rng.uniform(-0.18, 0.18)) * ramp[None, :] + float(rng.uniform(-0.18, 0.18)) * ramp[:, None]
    gain = float(rng.uniform(0.78, 1.1)) * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    noise = rng.standard_normal(pixels.shape, np.float32) * float(rng.uniform(1.5, 7))
    return Image.fromarray(np.clip(pixels * fall[..., None] * gain + noise, 0, 255).astype(np.uint8))


class _Pen:
    """Draws in scene coordinates. A number as colour is written as it is, an RGB colour is shaded."""

    def __init__(
        self,
        image: Image.Image,
        scale: float,
        color: int | tuple[float, ...],
        offset: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self._draw, self._scale, self._color, self._offset = ImageDraw.Draw(image), scale, color, offset

    def polygon(self, points: list[tuple[float, float]], shade: float = 1.0) -> None:
        self._draw.polygon([self._place(x, y) for x, y in points], fill=self._fill(shade))

    def ellipse(self, x: float, y: float, rx: float, ry: float, shade: float = 1.0) -> None:
        self._draw.ellipse((*self._place(x - rx, y - ry), *self._place(x + rx, y + ry)), fill=self._fill(shade))

    def ring(self, x: float, y: float, rx: float, ry: float, width: float, shade: float = 1.0) -> None:
        box = (*self._place(x - rx, y - ry), *self._place(x + rx, y + ry))
        self._draw.ellipse(box, outline=self._fill(shade), width=max(1, round(width * self._scale)))

    def _place(self, x: float, y: float) -> tuple[float, float]:
        return (x + self._offset[0]) * self._scale, (y + self._offset[1]) * self._scale

    def _fill(self, shade: float) -> int | tuple[int, ...]:
        if isinstance(self._color, int):
            return self._color
        return tuple(min(255, max(0, round(c * shade))) for c in self._color)


def _draw_thing(pen: _Pen, t: Thing) -> None:
    {"cube": _cube, "ball": _ball, "mug": _mug, "cone": _cone, "star": _star, "ring": _ring}[t.shape](pen, t)


def _turned(t: Thing, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points in units of the radius around the centre -> scene coordinates."""
    cos, sin = math.cos(t.angle) * t.radius, math.sin(t.angle) * t.radius
    return [(t.x + x * cos - y * sin, t.y + x * sin + y * cos) for x, y in points]


def _cube(pen: _Pen, t: Thing) -> None:
    pen.polygon(_turned(t, [(-0.9, -0.35), (0.45, -0.35), (0.45, 0.9), (-0.9, 0.9)]))
    pen.polygon(_turned(t, [(-0.9, -0.35), (-0.45, -0.85), (0.9, -0.85), (0.45, -0.35)]), 1.22)
    pen.polygon(_turned(t, [(0.45, -0.35), (0.9, -0.85), (0.9, 0.4), (0.45, 0.9)]), 0.62)


def _ball(pen: _Pen, t: Thing) -> None:
    for step, shade in enumerate((0.66, 0.82, 0.95, 1.06, 1.2)):
        r, shift = t.radius * (0.95 - 0.19 * step), t.radius * 0.09 * step
        pen.ellipse(t.x - shift, t.y - shift, r, r, shade)


def _mug(pen: _Pen, t: Thing) -> None:
    r = t.radius
    side = 1 if t.angle >= 0 else -1
    pen.ring(t.x + side * 0.55 * r, t.y + 0.1 * r, 0.42 * r, 0.45 * r, 0.17 * r, 0.8)
    body = [(-0.62, -0.65), (0.62, -0.65), (0.55, 0.75), (-0.55, 0.75)]
    pen.polygon([(t.x + x * r, t.y + y * r) for x, y in body])
    pen.ellipse(t.x, t.y + 0.75 * r, 0.55 * r, 0.2 * r)
    pen.polygon([(t.x + x * r, t.y + y * r) for x, y in [(0.3, -0.6), (0.62, -0.6), (0.55, 0.75), (0.26, 0.85)]], 0.75)
    pen.ellipse(t.x, t.y - 0.65 * r, 0.62 * r, 0.26 * r, 1.15)
    pen.ellipse(t.x, t.y - 0.65 * r, 0.48 * r, 0.17 * r, 0.4)


def _cone(pen: _Pen, t: Thing) -> None:
    pen.ellipse(t.x, t.y + 0.6 * t.radius, 0.9 * t.radius, 0.32 * t.radius)
    pen.polygon([(t.x + x * t.radius, t.y + y * t.radius) for x, y in [(-0.9, 0.58), (0.0, -0.98), (0.9, 0.58)]])
    pen.polygon([(t.x + x * t.radius, t.y + y * t.radius) for x, y in [(0.2, 0.86), (0.0, -0.98), (0.9, 0.6)]], 0.68)


def _star(pen: _Pen, t: Thing) -> None:
    def points(radius: float) -> list[tuple[float, float]]:
        turns = [(i * math.pi / 5 - math.pi / 2, radius * (1.0 if i % 2 == 0 else 0.42)) for i in range(10)]
        return _turned(t, [(math.cos(a) * r, math.sin(a) * r) for a, r in turns])

    pen.polygon(points(1.0), 0.85)
    pen.polygon(points(0.7), 1.12)


def _ring(pen: _Pen, t: Thing) -> None:
    pen.ring(t.x, t.y, 0.92 * t.radius, 0.92 * t.radius, 0.36 * t.radius, 0.85)
    pen.ring(t.x, t.y, 0.84 * t.radius, 0.84 * t.radius, 0.16 * t.radius, 1.15)


def _draw_gripper(pen: _Pen, x: float, y: float, angle: float) -> None:
    """Two fingers that reach in from the upper border."""
    bend = math.tan(angle) * 18
    for side in (-1, 1):
        at = x + side * 7
        pen.polygon([(at - 2, -2), (at + 2, -2), (at + 2 + bend, y + 6), (at - 2 + bend, y + 6)], 1.0 + 0.15 * side)
    pen.polygon([(x - 11, -2), (x + 11, -2), (x + 11, y * 0.4), (x - 11, y * 0.4)], 0.7)
