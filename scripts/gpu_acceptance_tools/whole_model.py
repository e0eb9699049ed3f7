# SPDX-License-Identifier: Apache-2.0
"""Whole models through ONNX Runtime's CUDA provider with our operators: the demo beside float32 on the CPU, and one of
the size of InternVL3.5-30B-A3B with 4 layers, timed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from fastmmoe.runtime.backends.base import place_features
from fastmmoe.runtime.types import Array
from gpu_acceptance_tools.answers import HALF, REFERENCE, RETENTIONS, answer
from gpu_acceptance_tools.ort_cuda import onnxruntime
from gpu_acceptance_tools.ort_graphs import OrtGraphs
from gpu_acceptance_tools.report import Recorder, Unavailable
from gpu_acceptance_tools.work import REPOSITORY, Work

LIBRARY = REPOSITORY / "plugins" / "lib" / "libfastmmoe_ort_cuda.so"
LOGITS = 3e-2
"""Greatest relative error of float16 logits, over a prompt and the steps after it."""
FEATURES = 1e-2
KEPT = 0.97
"""Least share of survivors that float16 has to choose as float32 does: scores that are close may change places."""
GAP = 0.2
"""A token counts where the reference's greatest logit is above the next by more."""


def run(work: Work, record: Recorder) -> None:
    """The demo at each retention, then the large model."""
    library = _library(work)
    if work.is_rehearsal:
        from gpu_acceptance_tools.bundles import make_bundles

        make_bundles(work.bundles, is_rehearsal=True)
    if not (work.bundles / REFERENCE).is_file():
        raise Unavailable(f"{work.bundles} has no {REFERENCE}: pack run 2 anew")
    ort = onnxruntime(work)
    record.fact(onnxruntime=ort.__version__, onnxruntime_from=str(Path(ort.__file__).parent))
    check_demo(work, record, ort, library)


def _library(work: Work) -> Path:
    """Our operators for the CUDA provider; in a rehearsal with the emulator's kernels, for the CPU's."""
    if not work.is_rehearsal:
        if not LIBRARY.is_file():
            raise Unavailable(f"{LIBRARY} was not brought")
        return LIBRARY
    from tests.support.emulated_ort import build_emulated_ort, fetch_ort_headers

    return build_emulated_ort(work.scratch, fetch_ort_headers())


def check_demo(work: Work, record: Recorder, ort: Any, library: Path) -> None:
    """Features, survivors, logits and tokens beside those of float32 on the CPU."""
    with np.load(work.bundles / REFERENCE) as file:
        reference = dict(file)
    backend = OrtGraphs(work, ort, work.bundles / HALF, library)
    vision = {name.removeprefix("vision."): v for name, v in reference.items() if name.startswith("vision.")}
    features = backend.image_features(vision)
    error = _relative(features, reference["features"])
    record.check("features", error <= FEATURES, error, FEATURES)
    visual_index = reference["visual_index"]
    embeds = place_features(backend.embed(reference["input_ids"]), visual_index, features)
    for retention in RETENTIONS:
        expected = {
            name.removesuffix(f".{retention}"): v for name, v in reference.items() if name.endswith(f".{retention}")
        }
        start = time.perf_counter()
        steps = len(expected["tokens"]) - 1
        found = answer(backend, embeds, visual_index, retention, steps, expected["tokens"])
        record.measure("demo", 1e3 * (time.perf_counter() - start), "ms", retention=retention, tokens=steps + 1)
        _compare(record, retention, found, expected)


def _relative(ours: Array, theirs: Array) -> float:
    difference = np.linalg.norm(ours.astype(np.float64) - theirs)
    return float(difference / np.linalg.norm(theirs.astype(np.float64)))


def _compare(record: Recorder, retention: float, found: dict[str, Array], expected: dict[str, Array]) -> None:
    for name in sorted(name for name in expected if name.startswith("kept_index")):
        same = len(np.intersect1d(found[name], expected[name])) / max(1, len(expected[name]))
        passed = same >= KEPT and len(found[name]) == len(expected[name])
        record.check(f"{name} at retention {retention}", passed, same, KEPT)
    error = _relative(found["logits"], expected["logits"])
    record.check(f"logits at retention {retention}", error <= LOGITS, error, LOGITS)
    ranked = np.sort(expected["logits"], axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > GAP
    wrong = int((found["tokens"] != expected["tokens"])[clear].sum())
    record.check(f"tokens at retention {retention}", wrong == 0, f"{wrong} of {clear.sum()} clear ones", "0 wrong")
