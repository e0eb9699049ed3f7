# SPDX-License-Identifier: Apache-2.0
"""Pictures for the report: what survives fastmmoe's stages in a few scenes, and how alike the routing is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastmmoe.calibration.report.questions import Questions
from fastmmoe.calibration.report.settings import FULL, Planner, Setting
from fastmmoe.calibration.report.stages import Stage, StageTracer
from fastmmoe.calibration.report.survivors import GONE, Rgb, View, draw_panels, draw_survivors, find_views
from fastmmoe.runtime.backends.base import observable
from fastmmoe.runtime.method.policy import FASTMMOE
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM

# Where no retention saves the claimed share.
_FALLBACK = Setting(FASTMMOE, 0.5)
_SCALE_STEPS = 5


@dataclass(frozen=True)
class SceneMap:
    """One question: what the full model and the setting answered, and two pictures of the setting's stages."""

    question: str
    expected: str
    full_answer: str
    answer: str
    setting: Setting
    survivors: Image.Image
    similarity: Image.Image


def draw_maps(vlm: VLM, planner: Planner, questions: Questions, claimed: Setting | None, count: int) -> list[SceneMap]:
    """Maps of the first questions of `count` scenes, evenly spread over the data set; fewer if it has fewer scenes."""
    setting = _FALLBACK if claimed is None else claimed
    count = min(count, questions.pictures)
    if count == 0:
        return []
    tracer = StageTracer(observable(vlm.backend))
    chosen = {round(i * (questions.pictures - 1) / max(count - 1, 1)) for i in range(count)}
    first = {question.picture: number for number, question in reversed(list(enumerate(questions.items)))}
    maps = []
    for number in (first[picture] for picture in sorted(chosen)):
        sample = questions.items[number].sample
        inputs = vlm.processor(sample.messages)
        stages = tracer.trace(questions.chunk(vlm.backend, planner, setting, number))
        alone = range(number, number + 1)
        maps.append(
            SceneMap(
                question=sample.question,
                expected=sample.answer or "",
                full_answer=questions.ask(vlm.backend, planner, Setting(FULL), alone)[0],
                answer=questions.ask(vlm.backend, planner, setting, alone)[0],
                setting=setting,
                survivors=draw_survivors(inputs, vlm.manifest.processor, stages),
                similarity=draw_similarity(inputs, vlm.manifest.processor, stages),
            )
        )
    return maps


def draw_similarity(inputs: ModelInputs, config: ProcessorConfig, stages: Sequence[Stage]) -> Image.Image:
    """A heat map for each stage: the redundancy of each token's window (docs/operators.md, FmmTokenPrune, step 2).

    The colours span the values found. A window of one token, which has the similarity 0 by definition, gets the least.

    Args:
        inputs: a prompt with one picture.
        stages: what `StageTracer.trace` returns.
    """
    from matplotlib import colormaps

    values = np.concatenate([stage.similarity for stage in stages])
    found = values[values > 0]
    low, high = float(found.min(initial=1)), float(found.max(initial=0))
    colormap = colormaps["cividis"]

    def color(value: float) -> Rgb:
        red, green, blue, _ = colormap(max(0.0, value - low) / max(high - low, 1e-6), bytes=True)
        return int(red), int(green), int(blue)

    def painter(stage: Stage) -> Callable[[View, int], Array]:
        def paint(view: View, token: int) -> Array:
            value = float(stage.similarity[token])
            return np.full(view.patches[token].shape, GONE if np.isnan(value) else color(value), np.uint8)

        return paint

    def shown(view: View, token: int) -> Array:
        patch: Array = view.patches[token]
        return patch

    steps = np.linspace(low, high, _SCALE_STEPS).tolist()
    legend: list[tuple[str, Rgb | None]] = [(f"{value:.2f}", color(value)) for value in steps]
    headings = ["the picture", *(f"layer {stage.layer}: similarity of routing" for stage in stages)]
    columns = [shown, *(painter(stage) for stage in stages)]
    return draw_panels(find_views(inputs, config), headings, columns, [*legend, ("gone before", GONE)])
