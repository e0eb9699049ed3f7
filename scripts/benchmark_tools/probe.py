# SPDX-License-Identifier: Apache-2.0
"""Instrumented runs of every setting: the experts it uses in each layer and the time of its pruning nodes."""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from benchmark_tools.errors import BenchmarkError
from benchmark_tools.graph_sites import SPARSE_MOE, SiteNodes
from benchmark_tools.prefill import Prompt, Setting, plan
from fastmmoe.runtime.backends.feeds import Chunk
from fastmmoe.runtime.backends.native import register_native_ops
from fastmmoe.runtime.backends.onnxruntime import Batch
from fastmmoe.runtime.bundle.manifest import Manifest, graph_file
from fastmmoe.runtime.method.schedule import Schedule

Array = npt.NDArray[Any]

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
ROUTER_LOGITS, VISUAL_INDEX = 1, 2  # inputs of FmmSparseMoE
NODE_SUFFIX = "_kernel_time"
RUNS = 3


@dataclass(frozen=True)
class Findings:
    """What the instrumented runs of one setting say.

    Attributes:
        experts_used: experts that some token chose, by layer.
        pruning_share: of the prefill's node time, what the nodes that choose and move rows for this setting's method
            take. sites_share: what all nodes take that the graph has for pruning, those of other methods included.
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
    model = onnx.load(directory / graph_file("language_model"), load_external_data=False)
    sites = SiteNodes(model.graph, manifest.policy.sites)
    routing = _add_routing_outputs(model.graph)
    schedules = {setting: plan(manifest, setting) for setting in settings}
    experts: dict[Setting, tuple[int, ...]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        session = _RecordingSession(_open(model, directory, manifest, Path(scratch), threads))
        for run in range(RUNS):
            print(f"profile {run + 1} of {RUNS}", flush=True)
            for setting, schedule in schedules.items():
                _run(session, manifest, schedule, prompt)
                experts[setting] = _experts_used(session.outputs, routing, prompt, schedule, manifest)
        runs = _node_times(Path(session.end_profiling()), sites)
    if len(runs) != RUNS * len(settings):
        raise BenchmarkError(f"the profile has {len(runs)} runs, expected {RUNS * len(settings)}")
    every = sites.of_sites(range(len(manifest.policy.sites)))
    found = {}
    for i, (setting, schedule) in enumerate(schedules.items()):
        times = runs[i :: len(settings)]
        own = sites.choosing(schedule.stages)
        found[setting] = Findings(experts[setting], _median_share(times, own), _median_share(times, every))
    return found


class _RecordingSession:
    """An inference session that keeps the outputs of its last run."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.get_outputs, self.end_profiling = session.get_outputs, session.end_profiling
        self.outputs: dict[str, ort.OrtValue] = {}

    def run_with_ort_values(self, names: list[str], feeds: dict[str, ort.OrtValue]) -> list[ort.OrtValue]:
        values = self._session.run_with_ort_values(names, feeds)
        self.outputs = dict(zip(names, values, strict=True))
        return values


def _add_routing_outputs(graph: onnx.GraphProto) -> list[tuple[str, str]]:
    """Make the router's logits and the visual rows of every layer outputs of the graph; their names, by layer."""
    known = {value.name for value in (*graph.input, *graph.output)}
    names = []
    for node in graph.node:
        if node.op_type != SPARSE_MOE:
            continue
        pair = (node.input[ROUTER_LOGITS], node.input[VISUAL_INDEX])
        names.append(pair)
        for name, kind in zip(pair, (onnx.TensorProto.FLOAT, onnx.TensorProto.INT32), strict=True):
            if name not in known:
                known.add(name)
                graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return names


def _open(
    model: onnx.ModelProto, directory: Path, manifest: Manifest, scratch: Path, threads: int
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "profile")
    options.add_session_config_entry(WEIGHTS_FOLDER, str(directory))
    register_native_ops(options, manifest.ops)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(session: _RecordingSession, manifest: Manifest, schedule: Schedule, prompt: Prompt) -> None:
    chunk = Chunk(0, prompt.inputs_embeds, prompt.visual_index, schedule)
    Batch(manifest, session, 1).extend([chunk], alpha=manifest.policy.alpha, seed=0)


def _experts_used(
    outputs: dict[str, ort.OrtValue],
    routing: list[tuple[str, str]],
    prompt: Prompt,
    schedule: Schedule,
    manifest: Manifest,
) -> tuple[int, ...]:
    """By layer, for a router whose best logits choose (softmax, no groups), as Qwen3's does."""
    used = []
    for (logits_name, visual_name), visual_top_k in zip(routing, schedule.visual_top_k, strict=True):
        logits = outputs[logits_name].numpy()
        visual = outputs[visual_name].numpy() if visual_name in outputs else prompt.visual_index
        best = np.argsort(-logits, axis=1, kind="stable")[:, : manifest.language_model.top_k]
        is_used = np.ones(best.shape, bool)
        is_used[visual, visual_top_k:] = False
        used.append(len(np.unique(best[is_used])))
    return tuple(used)


def _node_times(profile: Path, sites: SiteNodes) -> list[dict[str, float]]:
    """Microseconds of every node, for every run in order."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    times: list[dict[str, float]] = [{} for _ in runs]
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(NODE_SUFFIX):
            continue
        run = next(i for i, (start, end) in enumerate(runs) if start <= event["ts"] <= end)
        name = sites.original_name(event["name"].removesuffix(NODE_SUFFIX))
        times[run][name] = times[run].get(name, 0) + event["dur"]
    return times


def _median_share(runs: list[dict[str, float]], names: set[str]) -> float:
    """What these nodes take of the time of all nodes; fused nodes count for the first of them."""
    return statistics.median(sum(us for name, us in run.items() if name in names) / sum(run.values()) for run in runs)
