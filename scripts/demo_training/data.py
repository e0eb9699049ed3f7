# SPDX-License-Identifier: Apache-2.0
"""Training data: scenes, pictures, which object each visual token shows, and questions as token ids."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from demo_training.config import FIRST_TOKENS, GRID
from fastmmoe.calibration.questions import KINDS, Question, ask
from fastmmoe.calibration.scenes import (
    COLOR_NAMES,
    MAX_OBJECTS,
    SHAPE_NAMES,
    SIZE,
    Split,
    draw_scene,
    make_scene,
    object_map,
)
from fastmmoe.runtime.request.prompts import Marker, render_prompt, template_tokens
from fastmmoe.runtime.request.tokens import Encoder, load_tokenizer

TURNS = 12
"""Questions of a scene in one training sequence."""
TURN_TOKENS = 16
BINS = 20
"""Steps of an object's x and of its y that the visual tokens carry."""
_MIN_PIXELS = 10
_TOKEN_PIXELS = 8

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Scenes:
    """Scenes of one split; N of them.

    Attributes:
        images: [N, SIZE, SIZE, 3] uint8, memory-mapped; None where only the objects were made.
        objects: [N, GRID * GRID] int8, the object that a token shows, -1 for none.
        attributes: [N, MAX_OBJECTS, 4] int8: color, shape, x bin, y bin.
        ids, targets: [N, TURNS, TURN_TOKENS] int16; a target is the next token where it is the answer's, else -1.
        kinds: [N, TURNS] int8, number of the question's kind, -1 = no question.
    """

    images: npt.NDArray[np.uint8] | None
    objects: npt.NDArray[np.int8]
    attributes: npt.NDArray[np.int8]
    ids: npt.NDArray[np.int16]
    targets: npt.NDArray[np.int16]
    kinds: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.objects)


class Turns:
    """Questions and answers as the runtime's prompts have them: what stands after the picture, then the answer."""

    def __init__(self, tokenizer_file: Path) -> None:
        self._encoder = Encoder(load_tokenizer(tokenizer_file), template_tokens("deepseek"))
        bos, eos = (FIRST_TOKENS.index(token) for token in FIRST_TOKENS[:2])
        self._eos = eos
        before, _ = self._around("?")
        self.prefix = [bos, *before]
        self._known: dict[tuple[str, str], tuple[list[int], int]] = {}

    def _around(self, question: str) -> tuple[list[int], list[int]]:
        content = [{"type": "image", "image": ""}, {"type": "text", "text": question}]
        pieces = render_prompt([{"role": "user", "content": content}], "deepseek").pieces
        picture = pieces.index(Marker.IMAGE)
        before, after = (
            [p for p in part if not isinstance(p, Marker)] for part in (pieces[:picture], pieces[picture:])
        )
        return self._encoder.pieces(before), self._encoder.pieces(after)

    def encode(self, question: Question) -> tuple[list[int], int]:
        """Ids of question and answer, stop token included, and how many of them are the question's."""
        key = question.text, question.answer
        if key not in self._known:
            asked = self._around(question.text)[1]
            self._known[key] = [*asked, *self._encoder.text(question.answer), self._eos], len(asked)
        return self._known[key]


def token_objects(pixels: npt.NDArray[np.int8], count: int) -> npt.NDArray[np.int8]:
    """[2 * 4 * GRID, ...] object of each pixel -> [GRID * GRID] object of each token.

    A token shows the object with the most pixels of it, if these are enough; every object has at least the token with
    the most of its pixels.
    """
    blocks = pixels.reshape(GRID, _TOKEN_PIXELS, GRID, _TOKEN_PIXELS).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    counts = np.stack([(blocks == i).sum(1) for i in range(count)])
    found = np.where(counts.max(0) >= _MIN_PIXELS, counts.argmax(0), -1)
    for i in range(count):
        if not (found == i).any():
            found[counts[i].argmax()] = i
    return found.astype(np.int8)


def _make_one(split: Split, tokenizer_file: Path, index: int, *, draw: bool) -> tuple[Array, ...]:
    scene = make_scene(split, index)
    count = len(scene.things)
    objects = token_objects(object_map(scene, GRID * _TOKEN_PIXELS), count)
    attributes = np.full((MAX_OBJECTS, 4), -1, np.int8)
    for i, t in enumerate(scene.things):
        bins = (int(t.x * BINS / SIZE), int(t.y * BINS / SIZE))
        attributes[i] = (COLOR_NAMES.index(t.color), SHAPE_NAMES.index(t.shape), *bins)
    ids = np.zeros((TURNS, TURN_TOKENS), np.int16)
    targets, kinds = np.full((TURNS, TURN_TOKENS), -1, np.int16), np.full(TURNS, -1, np.int8)
    turns = _turns(tokenizer_file)
    for j, question in enumerate(ask(scene, TURNS, scene.rng(2))):
        tokens, asked = turns.encode(question)
        ids[j, : len(tokens) - 1] = tokens[:-1]
        targets[j, asked - 1 : len(tokens) - 1] = tokens[asked:]
        kinds[j] = KINDS.index(question.kind)
    made = (objects, attributes, ids, targets, kinds)
    return (*made, np.asarray(draw_scene(scene))) if draw else made


_cached_turns: dict[Path, Turns] = {}


def _turns(tokenizer_file: Path) -> Turns:
    if tokenizer_file not in _cached_turns:
        _cached_turns[tokenizer_file] = Turns(tokenizer_file)
    return _cached_turns[tokenizer_file]


def make_scenes(
    directory: Path, split: Split, start: int, count: int, tokenizer_file: Path, *, draw: bool = True
) -> Scenes:
    """Scenes `start` to `start + count` of a split, kept in `directory` for the next time."""
    name = f"{split}-{start}-{count}"
    pictures, rest = directory / f"{name}.npy", directory / f"{name}.npz"
    if not rest.exists() or (draw and not pictures.exists()):
        directory.mkdir(parents=True, exist_ok=True)
        _make_files(pictures, rest, split, range(start, start + count), tokenizer_file, draw=draw)
    with np.load(rest) as saved:
        arrays = {key: saved[key] for key in ("objects", "attributes", "ids", "targets", "kinds")}
    return Scenes(np.load(pictures, mmap_mode="r") if draw else None, **arrays)


def _make_files(pictures: Path, rest: Path, split: Split, indices: range, tokenizer_file: Path, *, draw: bool) -> None:
    images = None
    scratch = pictures.with_suffix(".part")
    if draw:
        shape = (len(indices), SIZE, SIZE, 3)
        images = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=shape)
    made: list[tuple[Array, ...]] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        one = partial(_make_one, split, tokenizer_file, draw=draw)
        for i, arrays in enumerate(pool.map(one, indices, chunksize=64)):
            if images is not None:
                images[i] = arrays[5]
            made.append(arrays[:5])
    if images is not None:
        images.flush()
        scratch.rename(pictures)
    columns = (np.stack(column) for column in zip(*made, strict=True))
    objects, attributes, ids, targets, kinds = columns
    np.savez(rest, objects=objects, attributes=attributes, ids=ids, targets=targets, kinds=kinds)
