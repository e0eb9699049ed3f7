# SPDX-License-Identifier: Apache-2.0
"""Whole models through ONNX Runtime's CUDA provider with our operators: the demo beside float32 on the CPU, and one of
the size of InternVL3.5-30B-A3B with 4 layers, timed.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmmoe.runtime.backends.base import place_features
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.bundle.manifest import weights_file
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.method.schedule import plan_request
from fastmmoe.runtime.types import Array
from gpu_acceptance_tools.answers import HALF, LARGE, REFERENCE, RETENTIONS, WEIGHTS, answer
from gpu_acceptance_tools.ort_cuda import onnxruntime
from gpu_acceptance_tools.ort_graphs import DTYPES, OrtGraphs
from gpu_acceptance_tools.report import Recorder, Unavailable
from gpu_acceptance_tools.work import REPOSITORY, Work

LIBRARY = REPOSITORY / "plugins" / "lib" / "libfastmmoe_ort_cuda.so"
LOGITS = 3e-2
"""Greatest relative error of float16 logits, over a prompt and the steps after it."""
FEATURES = 1e-2
KEPT = 0.97
"""Least share of survivors that float16 has to choose as float32 does: scores that are close may change places."""
ROUTER_GAIN = 2.5
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
    time_large(work, record, ort, library)


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


def fill_large(work: Work) -> tuple[Path, dict[str, torch.Tensor]]:
    """The large graph's folder, whose file of weights is made here, and the experts' weights on the device."""
    directory = work.scratch / LARGE
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(work.bundles / LARGE, directory)
    weights = json.loads((directory / WEIGHTS).read_text(encoding="utf-8"))
    with (directory / weights_file("language_model")).open("wb") as file:
        for name, tensor in weights["dense"].items():
            file.seek(tensor["offset"])
            file.write(_random(work, name, tensor).cpu().numpy().tobytes())
    return directory, {name: _random(work, name, tensor) for name, tensor in weights["experts"].items()}


def _random(work: Work, name: str, tensor: dict[str, Any]) -> torch.Tensor:
    """Random values; sums of products keep their size, and routers are as decisive as a trained model's."""
    *_, rows, columns = shape = tensor["shape"]
    # Weights of linear layers may lie as [inputs, outputs]: the smaller side errs to larger sums, which norms take up.
    std = (ROUTER_GAIN if "router" in name else 1.0) / math.sqrt(columns if len(shape) == 3 else max(rows, columns))
    made = torch.empty(shape, dtype=DTYPES[tensor["dtype"]], device=work.device)
    for part in made if len(shape) == 3 else [made]:
        part.copy_(torch.randn(part.shape, device=work.device).mul_(std))
    return made


def time_large(work: Work, record: Recorder, ort: Any, library: Path) -> None:
    """Prefill of a picture and its text at each retention, and decode steps after it; logits are finite."""
    directory, experts = fill_large(work)
    backend = OrtGraphs(work, ort, directory, library, graphs=("language_model",), experts=experts)
    info, policy, random = backend.info, backend.policy, np.random.default_rng(0)
    visual, text = work.pick((1792, 64), (24, 4))
    record.fact(large_layers=info.layers, large_hidden=info.hidden_size, large_experts=info.num_experts)
    embeds = random.standard_normal((visual + text, info.hidden_size)).astype(np.float16)
    visual_index = np.arange(text // 4, text // 4 + visual, dtype=np.int32)
    steps = work.pick(32, 1)
    for retention in RETENTIONS:
        plan = functools.partial(plan_request, policy, moe_layers=info.moe_layers, top_k=info.top_k)
        schedule, decoding = plan(visual_tokens=visual, retention=retention), plan(visual_tokens=0, method=UNMODIFIED)
        prefills, decodes = [], []
        for _ in range(work.pick(4, 1)):
            batch, start = Batch(backend), time.perf_counter()
            logits = batch.extend([Chunk(0, embeds, visual_index, schedule)], alpha=policy.alpha, new_tokens=[steps])
            prefills.append(1e3 * (time.perf_counter() - start))
            for _ in range(steps):
                row, start = random.standard_normal((1, info.hidden_size)).astype(np.float16), time.perf_counter()
                logits = batch.extend([Chunk(0, row, NO_VISUAL_TOKENS, decoding)], alpha=policy.alpha)
                decodes.append(1e3 * (time.perf_counter() - start))
        is_finite = bool(np.isfinite(logits).all())
        record.check(f"large at retention {retention}", is_finite, "finite" if is_finite else "not", "finite logits")
        # The first warms up.
        record.measure("large prefill", statistics.median(prefills[1:] or prefills), "ms", retention=retention)
        record.measure("large decode step", statistics.median(decodes), "ms", retention=retention)
