# SPDX-License-Identifier: Apache-2.0
"""Instrumented runs of every setting: the experts it uses in each layer and the time of its pruning nodes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmark_tools.errors import BenchmarkError
from benchmark_tools.graph_sites import SiteNodes
from benchmark_tools.prefill import Prompt, Setting, plan
from fastmmoe.runtime.backends.base import Observed
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.backends.node_times import Call
from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime
from fastmmoe.runtime.backends.settings import Settings
from fastmmoe.runtime.bundle.manifest import Manifest, graph_file
from fastmmoe.runtime.method.call import Chunk
from fastmmoe.runtime.method.schedule import Schedule
from fastmmoe.runtime.types import Array

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
ROUTING = Observed("FmmSparseMoE", {"router_logits": 1, "visual_index": 2})
RUNS = 3


@dataclass(frozen=True)
class Findings:
    """What the instrumented runs of one setting say.

    Attributes:
        experts_used: experts that some token chose, by layer.
        pruning_share: of the prefill's node time, what the nodes that choose and move rows for this setting's method
            take.
        sites_share: what all nodes take that the graph has for pruning, those of other methods included.
    """

    experts_used: tuple[int, ...]
    pruning_share: float
    sites_share: float


def probe(
    directory: Path, manifest: Manifest, settings: list[Setting], prompt: Prompt, threads: int
) -> dict[Setting, Findings]:
    """Run every setting a few times with ONNX Runtime's profiler on; shares are medians.

    Raises:
        BenchmarkError: the graph or the profile is not what this script understands.
    """
    sites = SiteNodes(
        onnx.load(directory / graph_file("language_model"), load_external_data=False).graph, manifest.policy.sites
    )
    schedules = {setting: plan(manifest, setting) for setting in settings}
    experts: dict[Setting, tuple[int, ...]] = {}
    profiled = Settings(threads=threads, profile=True)
    backend = OnnxRuntime(directory, manifest, profiled, graphs=("language_model",), observed=ROUTING)
    for run in range(RUNS):
        print(f"profile {run + 1} of {RUNS}", flush=True)
        for setting, schedule in schedules.items():
            batch = Batch(backend)
            chunk = Chunk(0, prompt.inputs_embeds, prompt.visual_index, schedule)
            batch.extend([chunk], alpha=manifest.policy.alpha)
            experts[setting] = _experts_used(batch.observed, schedule, manifest)
    runs = [_node_times(call, sites) for call in backend.end_profiling()["language_model"]]
    if len(runs) != RUNS * len(settings):
        raise BenchmarkError(f"the profile has {len(runs)} runs, expected {RUNS * len(settings)}")
    every = sites.of_sites(range(len(manifest.policy.sites)))
    found = {}
    for i, (setting, schedule) in enumerate(schedules.items()):
        times = runs[i :: len(settings)]
        own = sites.choosing(schedule.sites)
        found[setting] = Findings(experts[setting], _median_share(times, own), _median_share(times, every))
    return found


def _experts_used(observed: dict[str, Array], schedule: Schedule, manifest: Manifest) -> tuple[int, ...]:
    """By layer, for a router whose best logits choose (softmax, no groups), as Qwen3's does."""
    used = []
    for n, visual_top_k in enumerate(schedule.visual_top_k):
        logits, visual = (observed[f"{ROUTING.operator}.{name}.{n}"] for name in ROUTING.inputs)
        best = np.argsort(-logits, axis=1, kind="stable")[:, : manifest.language_model.top_k]
        is_used = np.ones(best.shape, bool)
        is_used[visual, visual_top_k:] = False
        used.append(len(np.unique(best[is_used])))
    return tuple(used)


def _node_times(call: Call, sites: SiteNodes) -> dict[str, float]:
    """Milliseconds of every node of the graph in a call."""
    times: dict[str, float] = {}
    for node in call:
        name = sites.original_name(node.name)
        times[name] = times.get(name, 0.0) + node.ms
    return times


def _median_share(runs: list[dict[str, float]], names: set[str]) -> float:
    """What these nodes take of the time of all nodes; fused nodes count for the first of them."""
    return statistics.median(sum(ms for name, ms in run.items() if name in names) / sum(run.values()) for run in runs)
