# SPDX-License-Identifier: Apache-2.0
"""The settings that are compared, the prompt they run on, and their prefill times."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from benchmark_tools.errors import BenchmarkError
from fastmmoe.runtime.backends.base import Backend
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.method.call import Chunk
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from fastmmoe.runtime.types import Array

RETENTIONS = (1.0, 0.75, 0.5, 0.25)
TILES, TILE_SIDE = 7, 16
TEXT_BEFORE, TEXT_AFTER = 16, 48
# Features change over a quarter of a tile, as those of a picture do over an object; the noise keeps tokens apart.
FIELD_SIDE = 4
NOISE = 0.3


@dataclass(frozen=True)
class Setting:
    """One row of the table: how a request is answered. visual_top_k: None = what the method does by itself."""

    label: str
    method: str
    retention: float
    visual_top_k: int | tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Label and retention."""
        return f"{self.label} at {self.retention:g}"


@dataclass(frozen=True)
class Prompt:
    """inputs_embeds float32 [T, H] and visual_index int32 [V], ascending."""

    inputs_embeds: Array
    visual_index: Array


UNMODIFIED = Setting("unmodified", "none", 1.0)


def all_settings(policy: Policy, top_k: int) -> list[Setting]:
    """The unmodified model, expert reduction alone, every method of the bundle at every retention, half of both."""
    kinds: tuple[tuple[str, str, int | None], ...] = (
        ("fastmmoe", "fastmmoe", None),
        ("fastmmoe, pruning alone", "fastmmoe", top_k),
        ("fastv", "fastv", None),
        ("sparsevlm", "sparsevlm", None),
        ("random", "random", None),
    )
    return [
        UNMODIFIED,
        Setting("fastmmoe, reduction alone", "fastmmoe", 1.0, policy.visual_top_k),
        *(Setting(label, method, R, k) for label, method, k in kinds if method in policy.methods for R in RETENTIONS),
        Setting("fastmmoe, half the experts", "fastmmoe", 0.5, (top_k // 2,) * len(policy.visual_top_k)),
    ]


def plan(manifest: Manifest, setting: Setting) -> Schedule:
    """The schedule of a setting for the prompt; InvalidRequest where the bundle does not have its method."""
    info = manifest.language_model
    return plan_request(
        manifest.policy,
        visual_tokens=TILES * TILE_SIDE**2,
        moe_layers=info.moe_layers,
        top_k=info.top_k,
        method=setting.method,
        retention=setting.retention,
        visual_top_k=setting.visual_top_k,
    )


def make_prompt(hidden_size: int) -> Prompt:
    """Text, seven tiles of 16 x 16 visual tokens whose features are a smooth random field plus noise, and text."""
    rng = np.random.default_rng(0)
    visual = np.concatenate([_smooth_tile(rng, hidden_size) for _ in range(TILES)])
    before, after = (rng.standard_normal((rows, hidden_size)) for rows in (TEXT_BEFORE, TEXT_AFTER))
    embeds = np.concatenate([before, visual, after]).astype(np.float32)
    return Prompt(embeds, np.arange(TEXT_BEFORE, TEXT_BEFORE + len(visual), dtype=np.int32))


def _smooth_tile(rng: np.random.Generator, hidden_size: int) -> Array:
    """[256, H], of unit variance, row by row: random values on a coarse grid, bilinear between them."""
    grid = rng.standard_normal((FIELD_SIDE, FIELD_SIDE, hidden_size))
    place = np.linspace(0, FIELD_SIDE - 1, TILE_SIDE)
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(FIELD_SIDE)))
    field = np.einsum("ya,xb,abh->yxh", weights, weights, grid).reshape(-1, hidden_size)
    field += NOISE * rng.standard_normal(field.shape)
    return field / field.std(axis=1, keepdims=True)


def measure_prefills(
    backend: Backend, manifest: Manifest, settings: list[Setting], prompt: Prompt, repeats: int
) -> dict[Setting, list[float]]:
    """Milliseconds of a prefill, one for each repeat.

    A repeat runs every setting once, in an order of its own, so that what else the machine does and its clock hit all
    of them alike. One repeat before them does not count.

    Raises:
        BenchmarkError: a setting that should be the unmodified model has other logits, or logits are not finite.
    """
    schedules = {setting: plan(manifest, setting) for setting in settings}
    order = random.Random(0)
    _check_logits(settings, {s: _prefill(backend, manifest, schedules[s], prompt)[0] for s in settings})
    times: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for repeat in range(repeats):
        for setting in order.sample(settings, len(settings)):
            times[setting].append(_prefill(backend, manifest, schedules[setting], prompt)[1])
        print(f"repeat {repeat + 1} of {repeats}: unmodified {times[UNMODIFIED][-1]:.0f} ms", flush=True)
    return times


def _prefill(backend: Backend, manifest: Manifest, schedule: Schedule, prompt: Prompt) -> tuple[Array, float]:
    """Logits [1, vocab] and milliseconds."""
    chunk = Chunk(0, prompt.inputs_embeds, prompt.visual_index, schedule)
    batch = Batch(backend)
    start = time.perf_counter()
    logits = batch.extend([chunk], alpha=manifest.policy.alpha, seed=0)
    return logits, (time.perf_counter() - start) * 1e3


def _check_logits(settings: Iterable[Setting], logits: dict[Setting, Array]) -> None:
    for setting in settings:
        if not np.isfinite(logits[setting]).all():
            raise BenchmarkError(f"{setting.name}: logits are not finite; its time would mean nothing")
        is_identity = setting.retention == 1 and setting.label != "fastmmoe, reduction alone"
        if is_identity and not np.array_equal(logits[setting], logits[UNMODIFIED]):
            raise BenchmarkError(f"{setting.name}: logits differ from those of the unmodified model, expected the same")
