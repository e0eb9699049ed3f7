# SPDX-License-Identifier: Apache-2.0
"""The questions of a calibration: those to calibrate on, and those held out for the comparison at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastmmoe.calibration.data import BUILTIN, Sample, load_samples
from fastmmoe.calibration.evaluate import Kind
from fastmmoe.calibration.options import CalibrationOptions
from fastmmoe.runtime.errors import InvalidRequest

HELD_OUT_PART = 5
"""One picture in so many of a directory is held out."""


@dataclass(frozen=True)
class Data:
    """Samples of two sets that share no picture.

    Attributes:
        kind: what their quality is.
        note: one line on what was chosen and left out.
    """

    calibration: list[Sample]
    held_out: list[Sample]
    kind: Kind
    note: str


def load_data(options: CalibrationOptions) -> Data:
    """Both sets, in the same scenes' order as `load_samples` gives them.

    Raises:
        InvalidRequest: what `load_samples` refuses, a directory of one picture, or accuracy without answers.
    """
    if options.data == BUILTIN:
        calibration = load_samples(BUILTIN, split="calibration", count=options.questions, seed=options.seed)
        held_out = load_samples(BUILTIN, split="validation", count=options.held_out_questions, seed=options.seed)
    else:
        calibration, held_out = _split(options, load_samples(options.data))
    labelled = [[s for s in samples if s.answer is not None] for samples in (calibration, held_out)]
    if options.quality == "kl" or (options.quality == "auto" and not any(labelled)):
        return Data(calibration, held_out, "kl", "quality is exp(-KL) to the full model")
    if not all(labelled):
        raise InvalidRequest(
            f"{options.data}: {len(labelled[0])} calibration and {len(labelled[1])} held-out questions have an answer: "
            "accuracy needs answers in both; give answers, or --quality kl"
        )
    left_out = len(calibration) + len(held_out) - sum(map(len, labelled))
    note = "quality is accuracy" + (f"; {left_out} questions without an answer are left out" if left_out else "")
    return Data(labelled[0], labelled[1], "accuracy", note)


def _split(options: CalibrationOptions, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """A directory's questions, its pictures divided by the seed."""
    scenes = sorted({s.scene for s in samples})
    if len(scenes) < 2:
        raise InvalidRequest(f"{options.data}: has {len(scenes)} picture: expected 2 or more, as some are held out")
    shuffled = np.random.default_rng(options.seed).permutation(scenes).tolist()
    held = set(shuffled[: max(1, len(scenes) // HELD_OUT_PART)])
    calibration = [s for s in samples if s.scene not in held]
    if options.questions is not None and options.questions > len(calibration):
        raise InvalidRequest(
            f"--questions {options.questions}: {options.data} has {len(calibration)} beside those held out"
        )
    return calibration[: options.questions], [s for s in samples if s.scene in held]
