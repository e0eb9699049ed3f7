# SPDX-License-Identifier: Apache-2.0
"""Pictures of a prompt's visual tokens, at their places in the views of the picture that the model sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastmmoe.calibration.report.stages import Fate, Stage
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.request.family import family_of
from fastmmoe.runtime.request.images import PictureMap
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.types import Array

Rgb = tuple[int, int, int]

CELL, GAP, MARGIN, LINE = 22, 18, 14, 20
"""Pixels: side of a token, between panels, around them, of a line of text."""
PAPER: Rgb = (255, 255, 255)
INK: Rgb = (34, 34, 34)
MERGED: Rgb = (0, 114, 178)
DROPPED: Rgb = (213, 94, 0)
GONE: Rgb = (208, 208, 208)
STRUCTURE: Rgb = (150, 150, 150)
"""Colour of a newline or separator vector, which shows no part of the picture."""


@dataclass(frozen=True)
class View:
    """One view of the picture: name, and the visual token at every place [rows, columns], -1 = none.

    Attributes:
        patches: uint8 [V, p, p, 3] pixels of every visual token of the prompt, grey where it shows none.
    """

    name: str
    tokens: Array
    patches: Array


def find_views(inputs: ModelInputs, config: ProcessorConfig) -> list[View]:
    """The views of a prompt with one picture: whole and local ones, with the newlines and separators that a family has.

    Raises:
        InvalidRequest: the prompt has no picture, or several.
    """
    if len(inputs.tile_counts) != 1:
        raise InvalidRequest(f"the prompt has {len(inputs.tile_counts)} pictures: expected one")
    pixels = _denormalise(inputs.vision_inputs["pixel_values"], config)
    of_picture = family_of(config).picture_map(config, inputs)
    patches = _cut_patches(pixels, of_picture)
    return [View(name, tokens, patches) for name, tokens in of_picture.views.items()]


def draw_survivors(inputs: ModelInputs, config: ProcessorConfig, stages: Sequence[Stage]) -> Image.Image:
    """The picture as the model sees it and, for each stage, which visual tokens were kept, merged and dropped.

    Args:
        inputs: a prompt with one picture, from the runtime's processor.
        stages: what `StageTracer.trace` returns.
    Returns:
        an RGB picture: a column for the picture and for each stage, a row for each view, a legend below.
    Raises:
        InvalidRequest: see `find_views`.
    """
    views = find_views(inputs, config)
    headings = ["the picture"]
    for stage in stages:
        kept, merged, dropped = (stage.count(fate) for fate in (Fate.KEPT, Fate.MERGED, Fate.DROPPED))
        headings.append(f"layer {stage.layer}: {kept} kept, {merged} merged, {dropped} dropped")
    legend = [("kept", None), ("merged", MERGED), ("dropped here", DROPPED), ("gone before", GONE)]
    columns = [_shown_patch, *(_fate_painter(stage) for stage in stages)]
    return draw_panels(views, headings, columns, legend)


def draw_panels(
    views: Sequence[View],
    headings: Sequence[str],
    columns: Sequence[Callable[[View, int], Array]],
    legend: Sequence[tuple[str, Rgb | None]],
) -> Image.Image:
    """A grid of panels, a column for each painter, a row for each view.

    Args:
        columns: functions (view, visual token) -> uint8 [p, p, 3], the token's cell.
        legend: texts with the colour in front of them; None = a bare frame.
    """
    font = ImageFont.load_default(13)
    # A heading takes as many lines as its column is narrow.
    wide = max(view.tokens.shape[1] for view in views) * CELL
    wrapped = [_wrap(heading, font, wide) for heading in headings]
    top = MARGIN + LINE * max(map(len, wrapped)) + 4
    high = sum(view.tokens.shape[0] * CELL + LINE + GAP for view in views)
    width = 2 * MARGIN + len(columns) * (wide + GAP) - GAP
    canvas = Image.new("RGB", (width, top + high + LINE + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, (lines, paint) in enumerate(zip(wrapped, columns, strict=True)):
        x, y = MARGIN + column * (wide + GAP), top
        for i, line in enumerate(lines):
            draw.text((x, MARGIN + i * LINE), line, INK, font)
        for view in views:
            draw.text((x, y), view.name, STRUCTURE, font)
            _paste_tokens(canvas, (x, y + LINE), view, paint)
            y += view.tokens.shape[0] * CELL + LINE + GAP
    _draw_legend(draw, font, legend, top + high)
    return canvas


def _paste_tokens(
    canvas: Image.Image, corner: tuple[int, int], view: View, paint: Callable[[View, int], Array]
) -> None:
    for (row, column), token in np.ndenumerate(view.tokens):
        if token >= 0:
            cell = Image.fromarray(paint(view, int(token))).resize((CELL - 1, CELL - 1), Image.Resampling.BICUBIC)
            canvas.paste(cell, (corner[0] + column * CELL, corner[1] + row * CELL))


def _draw_legend(draw: ImageDraw.ImageDraw, font: Any, legend: Sequence[tuple[str, Rgb | None]], y: int) -> None:
    x = MARGIN
    for text, color in legend:
        draw.rectangle((x, y + 2, x + 13, y + 15), fill=color, outline=INK if color is None else color)
        draw.text((x + 20, y), text, INK, font)
        x += 20 + int(font.getlength(text)) + GAP


def _wrap(text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line]


def _shown_patch(view: View, token: int) -> Array:
    patch: Array = view.patches[token]
    return patch


def _fate_painter(stage: Stage) -> Callable[[View, int], Array]:
    def paint(view: View, token: int) -> Array:
        fate, patch = Fate(stage.fates[token]), view.patches[token].astype(np.float32)
        if fate == Fate.GONE:
            patch = 0.12 * patch + 0.88 * np.array(GONE)
        elif fate == Fate.DROPPED:
            patch = 0.25 * patch + 0.75 * np.array(DROPPED)
        elif fate == Fate.MERGED:
            patch = 0.35 * patch + 0.65 * np.array(MERGED)
        return patch.round().astype(np.uint8)

    return paint


def _denormalise(pixels: Array, config: ProcessorConfig) -> Array:
    """uint8 [tiles, S, S, 3] of float32 [tiles, 3, S, S]."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (config.image_mean, config.image_std))
    return (255 * (pixels * std + mean)).round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _cut_patches(pixels: Array, of_picture: PictureMap) -> Array:
    """uint8 [V, p, p, 3]: what every visual token shows; the last cells of a row may reach beyond the tile."""
    side, pitch = of_picture.side, of_picture.pitch
    patches = np.full((len(of_picture.cells), pitch, pitch, 3), STRUCTURE, np.uint8)
    for patch, place in zip(patches, of_picture.cells, strict=True):
        if place >= 0:
            tile, cell = divmod(int(place), side * side)
            y, x = cell // side * pitch, cell % side * pitch
            part = pixels[tile, y : y + pitch, x : x + pitch]
            patch[:] = np.pad(part, ((0, pitch - part.shape[0]), (0, pitch - part.shape[1]), (0, 0)), mode="edge")
    return patches
