# SPDX-License-Identifier: Apache-2.0
"""A small model by its sizes alone, questions without pictures' pixels, and reports made of invented answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmmoe.calibration.data import Sample
from fastmmoe.calibration.measure.bootstrap import Bootstrap
from fastmmoe.calibration.report.analysis import Analysis, plan_settings, recommend, settings_by_kind, state_claims
from fastmmoe.calibration.report.devices import Device, DeviceTime
from fastmmoe.calibration.report.latency import Latency, Machine, Times
from fastmmoe.calibration.report.results import Origin, Report
from fastmmoe.calibration.report.settings import Planner, Prompt, Setting, curve_settings
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo, VisionInfo
from fastmmoe.runtime.method.policy import Policy

PICTURES, QUESTIONS_EACH = 120, 5
KINDS = ("color", "shape", "count", "cell", "side")
RETENTIONS = (0.9, 0.5, 0.1)

POLICY = Policy(
    method="all",
    prune_layers={"fastmmoe": (1, 2, 3), "random": (1, 2, 3), "fastv": (2,), "sparsevlm": (1, 2, 4)},
    stage_exponents=(0.2, 0.7, 1.0),
    retention=0.5,
    alpha=0.3,
    merge_ratio=0.05,
    window=3,
    merge="mlerp",
    visual_top_k=(4, 2, 2, 1, 2, 2, 3),
    reduction_weights="preserve_sum",
    sparsevlm_positions="compact",
)
INFO = LanguageModelInfo(
    hidden_size=128,
    vocab_size=200,
    layers=8,
    heads=4,
    kv_heads=4,
    query_key_dim=24,
    value_dim=16,
    kv_lora_rank=32,
    rope_dim=8,
    cache_parts=("latent",),
    cache_shape=(1, 40),
    moe_layers=(1, 2, 3, 4, 5, 6, 7),
    num_experts=16,
    top_k=4,
    moe_intermediate_size=64,
    shared_intermediate_size=64,
    dense_intermediate_size=256,
    sliding_layers=(),
    sliding_window=None,
)
VISION = VisionInfo(
    layers=3, width=72, mlp_width=269, rows_per_tile=400, patch_inputs=192, tokens_per_tile=100, projector_inputs=288
)


@pytest.fixture
def manifest() -> Any:
    """What a planner reads of a manifest; tests may change it."""
    return SimpleNamespace(policy=POLICY, language_model=INFO, vision=VISION)


@pytest.fixture(scope="session")
def questions() -> Any:
    """600 questions of five kinds about 120 pictures; prompts of three lengths."""
    image = Image.new("RGB", (8, 8))
    items = [
        SimpleNamespace(
            sample=Sample(image, f"question {i} of {scene}", "yes", KINDS[i], scene),
            picture=scene,
            prompt=Prompt(tokens=235 + (scene + i) % 3, visual_tokens=221, tiles=2),
        )
        for scene in range(PICTURES)
        for i in range(QUESTIONS_EACH)
    ]
    return SimpleNamespace(items=items, pictures=PICTURES)


@pytest.fixture(scope="session")
def planner(questions: Any) -> Planner:
    manifest: Any = SimpleNamespace(policy=POLICY, language_model=INFO, vision=VISION)
    return Planner(manifest, [question.prompt for question in questions.items])


@pytest.fixture(scope="session")
def make_report(planner: Planner, questions: Any) -> Callable[..., Report]:
    """Function (loss by variant) -> report where a variant loses this share of answers at 55% fewer FLOPs."""

    def make(loss: Mapping[str, float], min_quality: float = 0.955) -> Report:
        plan = plan_settings(planner, curve_settings(RETENTIONS))
        rng = np.random.default_rng(7)
        count = len(questions.items)
        knows, hardness = rng.random(count) < 0.95, rng.random(count)
        right, times = {}, []
        for setting in plan.settings:
            saved = planner.cost(setting).reduction
            lost = hardness < loss.get(setting.variant, 0.0) * saved / 0.55
            right[setting] = (knows & ~lost).astype(np.float64)
            prefill = tuple(10.0 * (1 - 0.8 * saved) + 0.1 * i for i in range(5))
            times.append(Times(setting=setting, prefill_ms=prefill, ttft_ms=tuple(t + 9 for t in prefill)))
        latency = Latency(identity="0" * 64, machine=MACHINE, times=tuple(times))
        scenes = [question.picture for question in questions.items]
        analysis = Analysis(planner, questions, right, Bootstrap(scenes, resamples=500, seed=0))
        points, comparisons = analysis.points(plan.settings, latency), analysis.comparisons(plan.pairs)
        claimed = next(point for point in points if point.setting == plan.claimed)
        compared = settings_by_kind(plan)
        recommendation = recommend(points, min_quality, comparisons)
        return Report(
            origin=ORIGIN,
            min_quality=min_quality,
            points=points,
            claimed=plan.claimed,
            claims=state_claims(claimed, "", comparisons),
            comparisons=comparisons,
            compared=compared,
            kinds=analysis.kinds(compared),
            recommended=recommendation.setting,
            not_told_apart=recommendation.not_told_apart,
        )

    return make


MACHINE = Machine(
    processor="Test CPU",
    cores=2,
    system="Linux x86_64",
    python="3.11.0",
    numpy="2.0.0",
    onnxruntime="1.23.0",
    date="2026-01-01 00:00 UTC",
    load=0.5,
)
ORIGIN = Origin(
    command="fastmmoe report demo-all --out report",
    version="0.1.0",
    bundle="demo-all",
    model="demo",
    dtype="fp32",
    bundle_identity="a" * 64,
    checkpoint_identity="b" * 64,
    prune_layers={"fastmmoe": (1, 2, 3), "fastv": (2,)},
    data="builtin",
    split="test",
    data_identity="c" * 64,
    data_seed=0,
    questions=PICTURES * QUESTIONS_EACH,
    unlabelled=4,
    scenes=PICTURES,
    max_new_tokens=3,
    seeds=(0, 1, 2),
    resamples=500,
    bootstrap_seed=0,
    requests=5,
    machine=MACHINE,
)

GOOD = {"fastmmoe": 0.01, "reduction": 0.01, "pruning": 0.03, "random": 0.3, "fastv": 0.2, "sparsevlm": 0.15}
BAD = {"fastmmoe": 0.3, "reduction": 0.01, "pruning": 0.03, "random": 0.3, "fastv": 0.1, "sparsevlm": 0.15}


@pytest.fixture(scope="session")
def good_report(make_report: Callable[..., Report]) -> Report:
    """One in which every claim holds."""
    return make_report(GOOD)


@pytest.fixture(scope="session")
def bad_report(make_report: Callable[..., Report]) -> Report:
    """One in which fastmmoe loses too much, and more than two baselines."""
    return make_report(BAD)


@pytest.fixture(scope="session")
def devices() -> tuple[Device, ...]:
    """Two machines with times at the retentions of made-up reports, the second with another export."""
    settings = ((Setting("none"), 60.0), (Setting("fastmmoe", 0.5), 35.0), (Setting("fastmmoe", 0.1), 22.0))
    return tuple(
        Device(
            file=f"{provider}.json",
            name=name,
            provider=provider,
            power_mode=mode,
            bundle=bundle,
            is_same=provider == "cpu",
            visual_tokens=221,
            vision_ms=40.0 * scale,
            times=tuple(
                DeviceTime(setting=setting, first_token_ms=scale * (45 + ms), without_vision_ms=scale * ms)
                for setting, ms in settings
            ),
        )
        for name, provider, mode, bundle, scale in (
            ("Test CPU", "cpu", None, "cpu, fp32", 1.0),
            ("Orin <NX> Engineering Reference Developer Kit", "tensorrt", "MAXN", "jetson-orin-nx, fp16", 0.25),
        )
    )
